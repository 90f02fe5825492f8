"""Low-rank factors that keep what a network says: truncated as by `LoRA`, then tuned against the network itself.

Truncation treats all directions of a layer's input alike, though images reach only some of them. A few hundred steps of
gradient descent on unlabelled images (distillation, Hinton et al. 2015) spend the rank where it is heard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flownlib.extensions.lora import LoRA
from flownlib.networks import Classifier, classifier
from flownlib.scoring import Task
from flownlib.vae import behaviour_distance
from flownlib.weights import Artifact, Layout, check_count
from flownlib.zoo import Zoo

LEARNING_RATE, BATCH = 0.06, 24  # of the distillation, in images at each step


@dataclass(frozen=True, eq=False)
class DistilledLoRA:
    """A LoRA space whose `encode` minimises the distance of behaviours; latents, gauge and `decode` are the space's own.

    `images` float32 [tasks, n, c, h, w] are training images without labels, and belong to the encoder: a network is asked
    about those of the one task whose images it is surest about.
    """

    space: LoRA
    model: Classifier
    images: Tensor
    steps: int

    @classmethod
    def fit(cls, zoo: Zoo, tasks: Mapping[str, Task], rank: int, steps: int = 400, images: int = 1500) -> DistilledLoRA:
        """Matrices change by products of this rank, biases and the head freely; scaled on the zoo's truncated factors.

        Args:
            images: how many of each task are kept, fewer if a task has fewer.
        """
        whole = ("*.bias", f"{zoo.model.layer_names[-1]}.*")
        space = LoRA.of(zoo.layout, zoo.weights.mean(0), rank, whole=whole).standardised(zoo.weights)
        kept = min(images, *(len(tasks[name].train) for name in zoo.tasks))
        probes = torch.stack([tasks[name].train.x[:kept] for name in zoo.tasks])
        return cls(space, zoo.model, probes, steps)

    @property
    def layout(self) -> Layout:
        """The layout of the networks that it encodes."""
        return self.space.layout

    @property
    def latent_dim(self) -> int:
        """k."""
        return self.space.latent_dim

    @torch.no_grad()
    def surest(self, weights: Tensor) -> Tensor:
        """The task, int64 [n], on whose images each network [n, p] has the lowest entropy."""
        entropies = []
        for images in self.images:
            log_p = self.model.forward(weights, images[:100]).log_softmax(-1)
            # H = -sum_c p_c log p_c
            entropies.append(-(log_p.exp() * log_p).sum(-1).mean(-1))
        return torch.stack(entropies).argmin(0)

    def encode(self, weights: Tensor) -> Tensor:
        """Canonical latents [n, k]; each network's do not depend on the others."""
        latents, own = self.space.encode(weights), self.surest(weights)
        for task in own.unique():
            rows = own == task
            latents[rows] = self._distil(latents[rows], weights[rows], self.images[task])
        return self.space.canonical(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """Weights [n, p]."""
        return self.space.decode(latents)

    @torch.enable_grad()
    def _distil(self, start: Tensor, weights: Tensor, images: Tensor) -> Tensor:
        """Adam from `start`, every network with the same batches; the learning rate comes down along half a cosine."""
        check_count("the number of training steps", self.steps)
        generator = torch.Generator().manual_seed(0)
        latents = start.clone().requires_grad_()
        # eps: where truncation loses nothing, only rounding errors are left to follow, and they are followed slowly
        optimizer = torch.optim.Adam([latents], LEARNING_RATE, eps=1e-6)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for _ in range(self.steps):
            batch = images[torch.randperm(len(images), generator=generator)[:BATCH]]
            loss = len(weights) * behaviour_distance(self.model, weights, self.decode(latents), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return latents.detach()

    def as_artifact(self) -> Artifact:
        """The space, the images and how they are used, to be stored."""
        stored = self.space.as_artifact()
        meta = {"encoder": "lora_distilled", "classifier": self.model.name, "steps": self.steps}
        return replace(stored, tensors=stored.tensors | {"images": self.images}, meta=stored.meta | meta)

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> DistilledLoRA:
        """The inverse of `as_artifact`."""
        space, model = LoRA.from_artifact(artifact), classifier(artifact.meta["classifier"])
        return cls(space, model, artifact.tensors["images"], artifact.meta["steps"])

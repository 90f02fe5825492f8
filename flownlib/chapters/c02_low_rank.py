"""The study of the LoRA encoder: how much rank it takes to adapt one base to twelve alphabets, for one training seed.

The base has been trained on the training images of all twelve. Every method starts from it, sees the same minibatches and
chooses among the same learning rates by validation images.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flownlib.chapters.records import Records
from flownlib.extensions.bodies import pretrain_body
from flownlib.extensions.lora import LoRA, adapt
from flownlib.harness.devices import device_of
from flownlib.harness.memo import memo
from flownlib.harness.profiles import Profile
from flownlib.networks import Model, cnn_medium
from flownlib.optimisation import seeded
from flownlib.scoring import Split, Task, score
from flownlib.speed.loops import train_many
from flownlib.speed.plan import Training, minibatch_orders
from flownlib.tasks import load_task
from flownlib.tasks.base import SplitSizes
from flownlib.tasks.glyphs import ALPHABETS

log = logging.getLogger(__name__)
MODEL = cnn_medium(1)
RANKS = (1, 2, 4)
HEAD = ("fc2.*",)
FULL = "full_fine_tuning"
LEARNING_RATES = (3e-3, 1e-2, 3e-2)
TUNED_ON = 4  # of the alphabets


def padded(x: Tensor) -> Tensor:
    """Images [n, 1, 28, 28] with a margin of their background: [n, 1, 32, 32]."""
    return F.pad(x, [2] * 4, value=x.min().item())


def alphabets(settings: Profile) -> list[Task]:
    """All embedded alphabets as tasks of 32 × 32 images."""
    sizes = SplitSizes(settings.lora_images, settings.lora_validation_images, settings.lora_test_images)
    tasks = [load_task(name, sizes).to(device_of(settings)) for name in ALPHABETS]
    return [
        Task(task.name, task.num_classes, *(Split(padded(s.x), s.y) for s in (task.train, task.validation, task.test)))
        for task in tasks
    ]


@memo(lambda stored: stored.tensors["base"])
def base_weights(settings: Profile, seed: int, tasks: list[Task]) -> dict[str, Tensor]:
    """The base [p] that the tasks share, with zeros for a head: trained on their training images to tell all classes apart."""
    splits = [task.train for task in tasks]
    fewest = min(int(split.y.bincount().min()) for split in splits)
    classes = [split.x[(split.y == label).nonzero()[:fewest, 0]] for split in splits for label in range(MODEL.num_classes)]
    return {"base": pretrain_body(MODEL, torch.stack(classes), settings.lora_base_steps, seed)[0]}


@dataclass(frozen=True)
class Comparison:
    """What all methods share: the base [p] of a model, the tasks, and which images each of them sees at each step."""

    model: Model
    base: Tensor
    tasks: list[Task]
    data: Split
    orders: Tensor
    seed: int

    @classmethod
    def of(cls, model: Model, base: Tensor, tasks: list[Task], training: Training, seed: int) -> Comparison:
        """The training images of all tasks in one list, from whose i-th part task i takes its minibatches."""
        count = len(tasks[0].train)
        data = Split(torch.cat([task.train.x for task in tasks]), torch.cat([task.train.y for task in tasks]))
        orders = minibatch_orders([1000 * seed + i for i in range(len(tasks))], count, training)
        return cls(model, base, tasks, data, orders + count * torch.arange(len(tasks))[:, None, None], seed)

    def adapted(self, space: LoRA | None, learning_rate: float) -> Tensor:
        """Networks [tasks, p] adapted in a space, or in all their weights if there is none.

        Two thirds of the steps run at the learning rate, the rest at a tenth of it.
        """
        m, turn = len(self.tasks), 2 * self.orders.shape[1] // 3
        weights = space.start(m, seeded(self.seed, 3)) if space else self.base.expand(m, -1)
        for orders, rate in ((self.orders[:, :turn], learning_rate), (self.orders[:, turn:], learning_rate / 10)):
            arguments = (weights, self.data, orders, rate)
            weights = (adapt(self.model, space, *arguments) if space else train_many(self.model, *arguments))[-1]
        return space.decode(weights) if space else weights

    def accuracy(self, weights: Tensor, split: str = "test") -> Tensor:
        """Accuracy [tasks] of each network [tasks, p] on its own task's split."""
        parts = [getattr(task, split) for task in self.tasks]
        return torch.cat([score(self.model, w[None], part.x, part.y).accuracy for w, part in zip(weights, parts, strict=True)])


def choose_learning_rate(comparison: Comparison, space: LoRA | None, rates: Sequence[float]) -> float:
    """The rate with the best mean validation accuracy on some of the tasks."""

    def accuracy(rate: float) -> float:
        return comparison.accuracy(comparison.adapted(space, rate), "validation").mean().item()

    return max(rates, key=accuracy)


def spaces(base: Tensor) -> dict[int, LoRA]:
    """By rank, the spaces that adapt all matrices of the base [p] in factors, biases and head whole; rank 0: the head alone."""
    ranks = {rank: LoRA.of(MODEL.layout, base, rank, ("*.weight",), ("*.bias", *HEAD)) for rank in RANKS}
    return {0: LoRA.of(MODEL.layout, base, 0, (), HEAD)} | ranks


def compare(
    tuning: Comparison, comparison: Comparison, by_rank: dict[int, LoRA], candidates: Sequence[float], setting: dict
) -> list[dict]:
    """Raw records by rank beside full fine-tuning; learning rates are chosen on `tuning`, and rank 1's serves all ranks."""
    tuned = {FULL: None, "head_only": by_rank[0], "lora": by_rank[RANKS[0]]}
    rates = {method: choose_learning_rate(tuning, space, candidates) for method, space in tuned.items()}
    log.info("seed %d: learning rates %s", comparison.seed, rates)
    full, size = comparison.accuracy(comparison.adapted(None, rates[FULL])), len(comparison.base)
    records = Records(**setting)
    records.add("test_accuracy_mean", FULL, full.tolist(), latent_dim=size, adapted=size)
    for rank, space in by_rank.items():
        method = "lora" if rank else "head_only"
        accuracy = comparison.accuracy(comparison.adapted(space, rates[method]))
        sizes = {"rank": rank, "latent_dim": space.latent_dim, "adapted": space.adapted_size}
        records.add("test_accuracy_mean", method, accuracy.tolist(), **sizes)
        records.add("accuracy_gain", method, (accuracy - full).tolist(), **sizes, over=FULL)
    return records

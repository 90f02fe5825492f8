"""The study of the LoRA encoder: how much rank it takes to adapt one base to twelve alphabets, for one training seed.

Every method starts from the same base, sees the same minibatches and chooses its learning rate from as many candidates, by
validation images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import flownlib.encoders.base as encoders_base
import flownlib.encoders.lora as encoders_lora
from flownlib import bodies, classifiers, layout, operations
from flownlib.artifacts import Artifact, cached
from flownlib.bodies import pretrain_body
from flownlib.classifiers import cnn_medium
from flownlib.encoders.lora import LoRA, adapt
from flownlib.profiles import Profile
from flownlib.scoring import score
from flownlib.tasks import ALPHABETS, Split, SplitSizes, Task, glyph_pool, glyphs, load_task
from flownlib.tasks.glyphs import TRAINING_SCRIPTS, characters, without_lookalikes
from flownlib.training import Training, loops, minibatch_orders, plan, seeded, train_many

CODE = (bodies, classifiers, operations, layout, plan, loops, glyphs, encoders_base, encoders_lora)
MODEL = cnn_medium(1)
RANKS = (1, 2, 4, 8)
HEAD = ("fc2.*",)
FULL = "full_fine_tuning"
LEARNING_RATES = (1e-3, 3e-3, 1e-2)


def padded(x: Tensor) -> Tensor:
    """Images [n, 1, 28, 28] with a margin of their background: [n, 1, 32, 32]."""
    return F.pad(x, [2] * 4, value=x.min().item())


def alphabets(settings: Profile) -> list[Task]:
    """All embedded alphabets as tasks of 32 × 32 images."""
    sizes = SplitSizes(settings.lora_images, settings.lora_validation_images, settings.lora_test_images)
    tasks = [load_task(name, sizes) for name in ALPHABETS]
    return [
        Task(task.name, task.num_classes, *(Split(padded(s.x), s.y) for s in (task.train, task.validation, task.test)))
        for task in tasks
    ]


def base_weights(settings: Profile, seed: int) -> Tensor:
    """The base [p]: trained on characters that neither occur in the alphabets nor resemble theirs, with zeros for a head."""
    avoid = "".join(text for text, _ in ALPHABETS.values())
    text = without_lookalikes("".join(c for c in characters(TRAINING_SCRIPTS) if c not in avoid), avoid)
    text = text[: settings.lora_base_classes]

    def build() -> Artifact:
        pool = glyph_pool(text, settings.lora_base_images).float()
        x = padded(((pool - pool.mean()) / pool.std()).flatten(0, 1)[:, None]).unflatten(0, pool.shape[:2])
        return Artifact({"base": pretrain_body(MODEL, x, settings.lora_base_steps, seed)[0]})

    key = {name: value for name, value in settings.as_dict().items() if name.startswith("lora_base")} | {"text": text}
    return cached("lora-base", {**key, "seed": seed}, build, code=CODE).tensors["base"]


@dataclass(frozen=True)
class Comparison:
    """What all methods share: the base [p], the tasks, and which images each of them sees at each step."""

    base: Tensor
    tasks: list[Task]
    data: Split
    orders: Tensor
    seed: int

    @classmethod
    def of(cls, base: Tensor, tasks: list[Task], training: Training, seed: int) -> Comparison:
        """The training images of all tasks in one list, from whose i-th part task i takes its minibatches."""
        count = len(tasks[0].train)
        data = Split(torch.cat([task.train.x for task in tasks]), torch.cat([task.train.y for task in tasks]))
        orders = minibatch_orders([1000 * seed + i for i in range(len(tasks))], count, training)
        return cls(base, tasks, data, orders + count * torch.arange(len(tasks))[:, None, None], seed)

    def adapted(self, space: LoRA | None, learning_rate: float) -> Tensor:
        """Networks [tasks, p] adapted in a space, or in all their weights if there is none."""
        if space is None:
            return train_many(MODEL, self.base.expand(len(self.tasks), -1), self.data, self.orders, learning_rate)[-1]
        return space.decode(adapt(MODEL, space, self.data, self.orders, learning_rate, seeded(self.seed, 3))[-1])

    def accuracy(self, weights: Tensor, split: str) -> Tensor:
        """Accuracy [tasks] of each network [tasks, p] on its own task's split."""
        parts = [getattr(task, split) for task in self.tasks]
        return torch.cat([score(MODEL, w[None], part.x, part.y).accuracy for w, part in zip(weights, parts, strict=True)])

    def test_accuracy(self, space: LoRA | None) -> Tensor:
        """Test accuracies [tasks] at the learning rate whose mean validation accuracy is best."""
        trained = [self.adapted(space, rate) for rate in LEARNING_RATES]
        return self.accuracy(max(trained, key=lambda weights: self.accuracy(weights, "validation").mean().item()), "test")


def spaces(base: Tensor) -> dict[int, LoRA]:
    """By rank, the spaces that adapt every matrix of the base [p] in factors, and biases and head whole; rank 0 is the head alone."""
    layout = MODEL.layout
    ranks = {rank: LoRA.of(layout, base, rank, ("*.weight",), ("*.bias", *HEAD)) for rank in RANKS}
    return {0: LoRA.of(layout, base, 0, (), HEAD)} | ranks


def run_seed(seed: int, settings: Profile) -> list[dict]:
    """One training seed: the base is trained anew; raw accuracies and paired gains on full fine-tuning, one value a task."""
    base = base_weights(settings, seed)
    training = Training(settings.lora_epochs, settings.batch_size)
    comparison = Comparison.of(base, alphabets(settings), training, seed)
    full, size = comparison.test_accuracy(None), MODEL.layout.size
    records = [_record("test_accuracy_mean", FULL, {"latent_dim": size, "adapted": size}, full)]
    for rank, space in spaces(base).items():
        accuracy, method = comparison.test_accuracy(space), "lora" if rank else "head_only"
        setting = {"rank": rank, "latent_dim": space.latent_dim, "adapted": space.adapted_size}
        records.append(_record("test_accuracy_mean", method, setting, accuracy))
        records.append(_record("accuracy_gain", method, {**setting, "over": FULL}, accuracy - full))
    return records


def _record(quantity: str, method: str, setting: dict, values: Tensor) -> dict:
    return {"quantity": quantity, "method": method, "setting": setting, "values": values.tolist()}

"""What a zoo is made of, checked before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, replace

import torch

from flownlib.harness.devices import DEVICES, check_device
from flownlib.harness.memory import require_memory
from flownlib.harness.settings import SEED, check_fields, one_line, rules, setting, shown
from flownlib.networks import Classifier, classifier
from flownlib.speed import backends
from flownlib.speed.plan import Training
from flownlib.tasks import check_task, split_sizes
from flownlib.tasks.base import SplitSizes

# what differs between the networks of one task
KINDS = {
    "independent": "the seed: initialisation and minibatch order",
    "shared": "the minibatch order only; all start from one initialisation",
    "one_run": "the step: the last checkpoints of a single run (p-diff's setting)",
    "varied": "the seed, the learning rate, the weight decay and the share of the images",
    "trajectories": "the seed and the epoch: every run from its initialisation to its end",
}
SHARD = 16  # networks trained together; also what an interrupted collection loses at most, per worker
GPU_SHARD = 512  # the same on a GPU, which is filled by many
ORDERS = ("own", "shared")
LEAST_DATA = 0.2  # of the images, that a network of kind "varied" is trained on
NESTED = {"sizes": SplitSizes, "training": Training}


@dataclass(frozen=True)
class ZooSettings:
    """What to collect: `networks` runs for each task, or for "one_run" that many checkpoints of one run's last steps."""

    tasks: tuple[str, ...]
    networks: int = setting(MISSING, "runs for each task", 1, 10_000_000, kind=int)
    kind: str = setting("independent", "what differs between the networks of a task", choices=tuple(KINDS))
    classifier: str = setting("cnn_small", "the networks' architecture")
    sizes: SplitSizes = SplitSizes()
    training: Training = Training()
    seed: int = setting(0, "which networks: another seed, others", *SEED)
    backend: str = setting("auto", "who trains; auto is the faster one here", choices=backends.BACKENDS)
    minibatches: str = setting("own", "each network's own order, or one for all of a task, which is faster", choices=ORDERS)
    device: str = setting("cpu", "where networks are trained, and where the zoo is", choices=DEVICES[1:])

    def __post_init__(self) -> None:
        """Refuse what cannot be, whatever the machine."""
        check_fields(self)
        if not isinstance(self.tasks, tuple | list) or not self.tasks:
            raise ValueError(f"setting 'tasks' takes a list of names such as [\"latin\"], not {shown(self.tasks)}")
        object.__setattr__(self, "tasks", tuple(self.tasks))
        for task in self.tasks:
            check_task(task)
            if self.tasks.count(task) > 1:
                raise ValueError(f"setting 'tasks' names {task} twice")
        for name, kind in NESTED.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"setting {name!r} takes {', '.join(rules(kind))}, not {shown(getattr(self, name))}")
        if self.minibatches == "shared" and self.kind != "independent":
            raise ValueError(f"minibatches can be shared among independent networks only, not in a zoo of kind {self.kind!r}")
        self._check_steps()

    def _check_steps(self) -> None:
        images = min(split_sizes(task, self.sizes).train for task in self.tasks)
        least = round(images * (LEAST_DATA if self.kind == "varied" else 1))
        if self.training.batch_size > least:
            words = f"setting 'batch_size' may be at most {least}, for a network may see no more images"
            raise ValueError(f"{words}, not {self.training.batch_size}")
        if self.kind == "one_run" and self.networks > self.training.steps(images):
            raise ValueError(f"one run of {self.training.steps(images)} steps has no {self.networks} checkpoints")

    def checked(self) -> ZooSettings:
        """These settings with the backend that "auto" stands for here.

        Raises:
            ValueError: for an unknown classifier, a backend or device that is not here, or sizes beyond this machine's memory.
        """
        check_device(self.device)
        model = classifier(self.classifier)
        require_memory(self._memory(model))
        return replace(self, backend=backends.choose(self.backend, model, torch.float32, self.device))

    def _memory(self, model: Classifier) -> dict[str, int]:
        """Bytes of the largest tables, by what they are: an estimate."""
        checkpoints = self.training.epochs + 1 if self.kind == "trajectories" else 1
        weights = 2 * 4 * model.layout.size  # the parts and the whole
        return {
            "the zoo (tasks, networks)": weights * len(self.tasks) * self.networks * checkpoints,
            "a task's images (sizes)": 16 * math.prod(model.image_shape) * self.sizes.total,
            "the order of the images (epochs, sizes)": 8 * SHARD * self.training.epochs * self.sizes.train,
        }

    @classmethod
    def from_json(cls, values: dict) -> ZooSettings:
        """The inverse of `dataclasses.asdict`; what is left out takes its default.

        Raises:
            ValueError: for a name that is not a setting, or a value that cannot be.
        """
        try:
            parts = {name: kind(**values[name]) for name, kind in NESTED.items() if isinstance(values.get(name), Mapping)}
            return cls(**(values | parts))
        except TypeError as error:
            raise ValueError(f"these are not the settings of a zoo: {one_line(error)}") from None

    def shards(self) -> list[tuple[str, tuple[int, ...]]]:
        """(task, seeds) of each unit of work."""
        first = self.seed * 100_000
        seeds = [first] if self.kind == "one_run" else range(first, first + self.networks)
        size = SHARD if self.device == "cpu" else GPU_SHARD
        parts = [tuple(seeds[i : i + size]) for i in range(0, len(seeds), size)]
        return [(task, part) for task in self.tasks for part in parts]

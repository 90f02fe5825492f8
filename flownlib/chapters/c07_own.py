"""Notebook 07's example: a folder of checkpoints as a user would have one, of a torchvision ResNet-18 fine-tuned many times.

The network is pre-trained on one alphabet; a few of its tensors are then fine-tuned, once for each run.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from flownlib.baselines import all_baselines
from flownlib.chapters.records import Records
from flownlib.chapters.shared import CanonicalZoo
from flownlib.chapters.shared_resnet import Example, base_checkpoint, colour_task, own_model, split_sizes
from flownlib.context import Contexts
from flownlib.encoders import WeightSpace, reconstruct
from flownlib.evaluation import MEASURES, ReferenceSet, compare
from flownlib.extensions.checkpoints.folders import import_checkpoints
from flownlib.extensions.frozen_prefix import SuffixClassifier
from flownlib.extensions.modules import ModuleClassifier
from flownlib.extensions.pca import PCA
from flownlib.generators import FlowGenerator, FlowTraining, Generator
from flownlib.harness.cache import cached_folder
from flownlib.harness.devices import device_of
from flownlib.harness.folders import disk_trouble
from flownlib.harness.profiles import Profile
from flownlib.optimisation import seeded
from flownlib.scoring import Split, Task, score
from flownlib.speed.loops import train_many
from flownlib.speed.plan import Training, minibatch_orders
from flownlib.symmetry import Aligner
from flownlib.zoo import Zoo

KEPT = 3  # checkpoints of a run: after each of its last epochs
FEW = 8  # principal components


LAST_NORMS = "layer4.1.bn?.*"
EXAMPLES = {
    "norms": Example("greek", "greek", (LAST_NORMS,), 1e-2),  # p-diff's choice: 2,048 numbers, on the task it knows already
    "norms_head": Example("latin", "greek", (LAST_NORMS, "fc.*"), 3e-2),  # a new task: 7,178 numbers
}


def folder_of_runs(settings: Profile, seed: int, example: Example) -> Path:
    """A folder with one sub-folder a run, and in it the tensors that were fine-tuned, after each of the last epochs.

    Half of the runs are written by torch, half as safetensors.
    """
    base = base_checkpoint(settings, seed, example)
    training = Training(settings.own_epochs, settings.batch_size, example.learning_rate)
    key = {"base": base.parent.name, "example": asdict(example), "images": asdict(split_sizes(settings))}
    key |= {"runs": settings.own_runs, "training": asdict(training), "seed": seed}

    def write(folder: Path) -> None:
        model = SuffixClassifier.of(own_model(base, example.patterns))
        images = colour_task(example.task, settings).train
        checkpoints = fine_tuned(model, Split(model.features(images.x), images.y), training, settings.own_runs, seed)
        for epoch, weights in zip(last_epochs(training), checkpoints, strict=True):
            for run, vector in enumerate(weights):
                write_checkpoint(model.layout.state_dict(vector), folder / f"run_{run:03d}", epoch, pickled=run % 2 == 1)

    return cached_folder("own-runs", key, write)


def last_epochs(training: Training) -> range:
    """After which epochs a run writes a checkpoint."""
    return range(max(1, training.epochs - KEPT + 1), training.epochs + 1)


def fine_tuned(model: ModuleClassifier, images: Split, training: Training, runs: int, seed: int) -> Tensor:
    """Weights [epochs kept, runs, p] of runs that differ in the order of their images."""
    orders = minibatch_orders([seed * 100_000 + run for run in range(runs)], len(images), training)
    start = model.initialise(1, seeded(seed)).to(images.x).repeat(runs, 1)
    record = [training.steps(len(images)) // training.epochs * epoch for epoch in last_epochs(training)]
    return train_many(model, start, images, orders, training.learning_rate, record).cpu()


def write_checkpoint(state: dict[str, Tensor], folder: Path, epoch: int, pickled: bool) -> None:
    """One state dict as users write it: as safetensors, or wrapped and pickled by torch."""
    with disk_trouble(folder):
        folder.mkdir(exist_ok=True)
        if pickled:
            torch.save({"state_dict": state, "epoch": epoch}, buffer := io.BytesIO())
            (folder / f"epoch_{epoch}.pt").write_bytes(buffer.getvalue())
        else:
            save_file(state, folder / f"epoch_{epoch}.safetensors")


@dataclass(frozen=True)
class OwnSetup:
    """A zoo of the last checkpoint of each run, split by run, and what its generators are given and judged by.

    The task's images are features of the frozen part. There is one task, so that the context says nothing.
    """

    zoo: CanonicalZoo
    task: Task
    contexts: Contexts
    reference: ReferenceSet


def setup(settings: Profile, seed: int, example: Example) -> OwnSetup:
    """Build or load everything of an example, as the notebook does step by step."""
    whole = own_model(base_checkpoint(settings, seed, example), example.patterns)
    model, folder = SuffixClassifier.of(whole), folder_of_runs(settings, seed, example)
    task = model.task(colour_task(example.task, settings))
    imported = import_checkpoints(folder, whole, task.name)
    imported = replace(imported, model=model, weights=imported.weights.to(device_of(settings)))
    zoo = with_accuracy(last_of_each_run(imported), task)
    return ready(zoo, task, settings.own_held_out)


def last_of_each_run(zoo: Zoo) -> Zoo:
    """Only the last checkpoint of each run: networks that are independent of each other.

    Raises:
        ValueError: if a run has several checkpoints of which none is known to be the last.
    """
    step = zoo.table["step"].fillna(-1)
    last = step == step.groupby(zoo.table["run"]).transform("max")
    for run, files in zoo.table[last].groupby("run")["file"]:
        if len(files) > 1:
            raise ValueError(
                f"which is the last checkpoint of run {run!r}, {', '.join(files[:3])}? Say their steps by names such as "
                "epoch_3, or move all but one out of the folder"
            )
    return zoo.select(last)


def with_accuracy(zoo: Zoo, task: Task) -> Zoo:
    """The zoo with the networks' test accuracy in its table.

    Raises:
        ValueError: if the task's labels are not the classes of these networks.
    """
    low, high = int(task.test.y.min()), int(task.test.y.max())
    if low < 0 or high >= zoo.model.num_classes:
        raise ValueError(
            f"the labels of task {task.name!r} are {low} to {high}, and the networks' classes 0 to "
            f"{zoo.model.num_classes - 1}: labels begin at 0"
        )
    accuracy = score(zoo.model, zoo.weights, task.test.x, task.test.y).accuracy
    return replace(zoo, table=zoo.table.assign(test_accuracy=accuracy.tolist()))


def ready(zoo: Zoo, task: Task, held_out: int, aligned: bool = False) -> OwnSetup:
    """Split by run, measured; weights are compared as they are, or `aligned`: whole networks of different initialisations.

    Raises:
        ValueError: if the zoo is of another task, has too few runs, or a run is a copy of another; to be aligned, if the
            symmetries of its model are not known.
    """
    if zoo.tasks != [task.name]:
        raise ValueError(f"the zoo's networks are of {zoo.tasks} and not of {task.name!r}: name the task when you import them")
    copies: dict[bytes, str] = {}
    for run, row in zip(zoo.table["run"], zoo.weights, strict=True):
        if (other := copies.setdefault(hashlib.sha256(row.cpu().numpy().tobytes()).digest(), run)) != run:
            raise ValueError(
                f"runs {other!r} and {run!r} hold the same network, so that none of it can be held out; remove one"
            )
    train, unseen = zoo.split(held_out)
    if len(train) < 2:
        raise ValueError(f"generators need at least two training networks, and {len(train)} is left: import more runs")
    aligner = Aligner.fit(train) if aligned else None
    train, unseen = (aligner(part) if aligner else part for part in (train, unseen))
    reference = ReferenceSet.of(task, train, unseen, WeightSpace.fit(train), aligner)
    return OwnSetup(CanonicalZoo(train, unseen, aligner), task, {task.name: zoo.weights.new_zeros(2, 1)}, reference)


def generators(settings: Profile, train: Zoo) -> list[Generator]:
    """Flows on a few and on all principal components, and every baseline; not yet fitted."""
    training, most = FlowTraining(settings.flow_steps, settings.flow_batch), len(train) - 1
    encoders = {"flow_few": PCA.fit(train, min(FEW, most)), "flow_all": PCA.fit(train, most, whiten=False)}
    flows = [FlowGenerator(space, name, "x_1", settings.flow_width, training) for name, space in encoders.items()]
    return [*all_baselines(), *flows]


def compared(name: str, own: OwnSetup, settings: Profile, seed: int) -> list[dict]:
    """Raw records of one example: accuracy before fine-tuning, what principal components keep, every method's `MEASURES`."""
    records, train, unseen = Records(zoo=name), own.zoo.train, own.zoo.held_out
    test, start = own.task.test, train.model.initialise(1, torch.Generator()).to(train.weights)
    records.add("test_accuracy", "base", score(train.model, start, test.x, test.y).accuracy.tolist())
    kept = reconstruct(PCA.fit(train, len(train) - 1), unseen, {own.task.name: own.task}, train.weights.mean(0))
    records.add("r2", "pca", [kept.r2])
    records.add("accuracy_gain", "pca", (kept.accuracy_after - kept.accuracy_before).tolist())
    methods = [generator.fit(train, own.contexts, seed) for generator in generators(settings, train)]
    references, n = {own.task.name: own.reference}, settings.samples_per_task
    table = compare(methods, references, own.contexts, unseen, n, seed).set_index("method")
    table["accuracy_gain"] = table["test_accuracy_mean"] - table.loc["zoo_held_out", "test_accuracy_mean"]
    for method, row in table.iterrows():
        for quantity in (*MEASURES, "accuracy_gain"):
            records.add(quantity, method, [row[quantity]], networks=n)
    return records

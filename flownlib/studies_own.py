"""The study of a user's own checkpoints: two ways of fine-tuning a ResNet-18, and what can be generated from each."""

from __future__ import annotations

import torch

from flownlib import checkpoints, modules, recipes_own, studies_generation, suffix
from flownlib.encoders import PCA, reconstruct
from flownlib.evaluation import MEASURES, compare
from flownlib.profiles import Profile
from flownlib.recipes_own import EXAMPLES, OwnSetup, generators, setup
from flownlib.scoring import score

CODE = (*studies_generation.CODE, checkpoints, modules, suffix, recipes_own)


def compared(name: str, made: OwnSetup, settings: Profile, seed: int) -> list[dict]:
    """Raw records of one example: accuracy before fine-tuning, what principal components keep, every method's `MEASURES`."""
    records, train, unseen = [], made.zoo.train, made.zoo.held_out

    def add(quantity: str, method: str, values: list[float], **setting: int) -> None:
        records.append({"quantity": quantity, "method": method, "setting": {"zoo": name, **setting}, "values": values})

    test, start = made.task.test, train.model.initialise(1, torch.Generator())
    add("test_accuracy", "base", score(train.model, start, test.x, test.y).accuracy.tolist())
    kept = reconstruct(PCA.fit(train, len(train) - 1), unseen, {made.task.name: made.task}, train.weights.mean(0))
    add("r2", "pca", [kept.r2])
    add("accuracy_gain", "pca", (kept.accuracy_after - kept.accuracy_before).tolist())
    methods = [one.fit(train, made.contexts, seed) for one in generators(settings, train)]
    references = {made.task.name: made.reference}
    table = compare(methods, references, made.contexts, unseen, settings.samples_per_task, seed).set_index("method")
    for method, row in table.iterrows():
        for measure in MEASURES:
            add(measure, method, [row[measure]], networks=settings.samples_per_task)
        gain = row["test_accuracy_mean"] - table.loc["zoo_held_out", "test_accuracy_mean"]
        add("accuracy_gain", method, [gain], networks=settings.samples_per_task)
    return records


def run_seed(seed: int, settings: Profile) -> list[dict]:
    """Raw records of one seed: both examples."""
    torch.set_num_threads(1)
    return [r for name, example in EXAMPLES.items() for r in compared(name, setup(settings, seed, example), settings, seed)]

"""Many-seed studies: what one live run of a notebook cannot show. Resumable, since each seed's result is cached.

A study is a function (seed, settings) → raw values; this module repeats it over seeds and turns the seeds' means
into intervals whose unit is the seed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from tqdm.auto import tqdm

from flownlib import networks as classifiers
from flownlib import networks as operations
from flownlib import weights as layout
from flownlib.chapters import c02_low_rank as studies_lora
from flownlib.chapters import c02_resnet as studies_resnet
from flownlib.chapters import c02_study as studies_encoders
from flownlib.chapters import c03_choices as studies_choices
from flownlib.chapters import c03_study as studies_generation
from flownlib.chapters import c04_study as studies_ood
from flownlib.chapters import c05_few_shot as studies_fewshot
from flownlib.chapters import c06_study as studies_frontier
from flownlib.chapters import c07_own as studies_own
from flownlib.chapters import shared as recipes
from flownlib.chapters import shared as tuned
from flownlib.harness import cache as artifacts
from flownlib.harness import results
from flownlib.harness.cache import cached
from flownlib.harness.rules import rules, shown
from flownlib.harness.settings import Profile, load
from flownlib.speed import collect as zoo_module
from flownlib.speed import loops, plan, zoo_settings
from flownlib.speed.collect import collect
from flownlib.statistics import mean_interval
from flownlib.tasks import DIGITS, glyphs
from flownlib.tasks.glyphs import ALPHABETS
from flownlib.weights import Artifact

Raw = list[dict]  # records {"quantity", "method", "setting", "values"}


def raw(quantity: str, method: str, setting: dict, values: list[float]) -> dict:
    """One raw record of one seed."""
    return {"quantity": quantity, "method": method, "setting": setting, "values": [float(value) for value in values]}


def zoo_accuracy(seed: int, settings: Profile) -> Raw:
    """Test accuracy of fresh networks on every embedded task."""
    chosen = recipes.zoo_settings(settings, seed, tasks=(*ALPHABETS, DIGITS), networks=settings.survey_networks)
    zoo = collect(chosen)
    return [
        raw("test_accuracy", "trained", {"zoo": "independent", "task": task}, zoo.task(task).table["test_accuracy"].tolist())
        for task in zoo.tasks
    ]


@dataclass(frozen=True)
class Study:
    """A study's function for one seed, what it answers, and how long the tutorial's takes on two cores."""

    run_seed: Callable[[int, Profile], Raw]
    about: str
    minutes: float
    code: tuple[ModuleType, ...]  # the modules whose change makes the study's results old


ZOO_CODE = (classifiers, operations, layout, plan, loops, glyphs, zoo_settings, zoo_module)
TUNING_CODE = (*ZOO_CODE, *studies_generation.CODE)
GENERATION_CODE = (*TUNING_CODE, tuned)
STUDIES = {
    "zoo": Study(zoo_accuracy, "accuracy of trained networks on every task", 3, ZOO_CODE),
    "encoders": Study(
        studies_encoders.run_seed, "held-out networks through every encoder", 75, (*ZOO_CODE, *studies_encoders.CODE)
    ),
    "refined": Study(
        studies_encoders.run_refined,
        "encoders that are asked for behaviour, a larger VAE, and a graph encoder of several widths",
        12,
        (*ZOO_CODE, *studies_encoders.CODE),
    ),
    "tuning": Study(
        studies_generation.tune_seed, "validation accuracy of every setting of notebook 03's methods", 50, TUNING_CODE
    ),
    "choices": Study(studies_choices.run_seed, "what each choice of a flow does to its samples", 12, TUNING_CODE),
    "generation": Study(studies_generation.run_seed, "generated networks beside every rival and null", 30, GENERATION_CODE),
    "frontier": Study(
        studies_frontier.run_seed, "accuracy with diversity: what passes", 30, (*ZOO_CODE, *studies_frontier.CODE)
    ),
    "ood": Study(studies_ood.run_seed, "initialisations for held-out alphabets and real digits", 15, studies_ood.CODE),
    "fewshot": Study(studies_fewshot.run_seed, "5-way heads beside their rivals", 10, studies_fewshot.CODE),
    "own": Study(studies_own.run_seed, "generated checkpoints of a fine-tuned ResNet-18", 12, (*ZOO_CODE, *studies_own.CODE)),
    "lora": Study(studies_lora.run_seed, "rank against accuracy of low-rank adaptation", 15, studies_lora.CODE),
    "resnet": Study(studies_resnet.run_seed, "low-rank adaptation of a ResNet-18's last stage", 30, studies_resnet.CODE),
}


def seed_records(name: str, settings: Profile, seed: int) -> Raw:
    """One seed of a study, from the cache if it is there; several seeds may be made by as many processes."""
    study, key = STUDIES[name], {"settings": settings.as_dict(), "seed": seed}

    def build() -> Artifact:
        records = study.run_seed(seed, settings)
        return Artifact({"values": torch.cat([torch.tensor(record["values"]) for record in records])}, {"records": records})

    return cached(f"study-{name}", key, build, code=study.code).meta["records"]


def run(name: str, profile: str = "tutorial", seeds: int | None = None) -> Path:
    """Run a study over seeds 0, 1, … and write figures/results/study_<name>.json; seeds done before are read from the cache.

    Raises:
        ValueError: for an unknown study or less than one seed.
    """
    if name not in STUDIES:
        raise ValueError(f"there is no study {shown(name)}; choose one of {', '.join(STUDIES)}")
    settings = load(profile)
    count = settings.study_seeds if seeds is None else rules(Profile)["study_seeds"].check("the number of seeds", seeds)
    bar = tqdm(range(count), desc=f"study {name} (about {STUDIES[name].minutes:g} minutes in all)")
    by_seed = [seed_records(name, settings, seed) for seed in bar]
    extra = {"settings": settings.as_dict(), "code_version": artifacts.fingerprint(*STUDIES[name].code)}
    return results.write(f"study_{name}", settings.profile, aggregate(by_seed), committed=True, **extra)


def aggregate(by_seed: list[Raw]) -> list[dict]:
    """Raw values of each seed → records whose unit is the seed: the interval of the seeds' means.

    A study of a single seed has no such interval; its unit is whatever that seed measured, e.g. the task.
    """
    means = defaultdict(list)
    for records in by_seed:
        for record in records:
            address = (record["quantity"], record["method"], json.dumps(record["setting"]))
            values = record["values"]
            means[address] += values if len(by_seed) == 1 else [sum(values) / len(values)]
    seeds = list(range(len(by_seed)))
    return [
        results.record(quantity, method, json.loads(setting), mean_interval(values), seeds)
        for (quantity, method, setting), values in means.items()
    ]

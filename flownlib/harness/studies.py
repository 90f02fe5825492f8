"""Many-seed studies: what one live run of a notebook cannot show. A seed that is done for this code is not run again.

A study is a function (seed, settings) → raw values; this module repeats it over seeds and turns the seeds' means
into intervals whose unit is the seed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tqdm.auto import tqdm

from flownlib.harness import results
from flownlib.harness.closure import fingerprint
from flownlib.harness.memo import memo
from flownlib.harness.profiles import Profile, load
from flownlib.harness.settings import rules, shown
from flownlib.statistics import mean_interval
from flownlib.weights import Artifact

Raw = list[dict]  # records {"quantity", "method", "setting", "values"}


@dataclass(frozen=True)
class Study:
    """Where a study's function for one seed is, what it answers, and the minutes that the tutorial's takes on two cores."""

    place: str  # "module:function", inside flownlib.chapters
    about: str
    minutes: float

    @property
    def module(self) -> str:
        """The function's module."""
        return f"flownlib.chapters.{self.place.split(':')[0]}"

    @property
    def code(self) -> str:
        """The hash of all code that the study depends on."""
        return fingerprint(self.module)

    def run_seed(self, seed: int, settings: Profile) -> Raw:
        """Raw records of one seed."""
        return getattr(import_module(self.module), self.place.split(":")[1])(seed, settings)


STUDIES = {
    "zoo": Study("c01_zoo:run_seed", "accuracy of trained networks on every task", 3),
    "encoders": Study("c02_study:run_seed", "held-out networks through every encoder", 75),
    "refined": Study(
        "c02_study:run_refined", "encoders asked for behaviour, a larger VAE, and a graph encoder of several widths", 12
    ),
    "lora": Study("c02_low_rank:run_seed", "rank against accuracy of low-rank adaptation", 15),
    "resnet": Study("c02_resnet:run_seed", "low-rank adaptation of a ResNet-18's last stage", 30),
    "tuning": Study("c03_study:tune_seed", "validation accuracy of every setting of notebook 03's methods", 50),
    "choices": Study("c03_choices:run_seed", "what each choice of a flow does to its samples", 12),
    "generation": Study("c03_study:run_seed", "generated networks beside every rival and baseline", 30),
    "ood": Study("c04_study:run_seed", "initialisations for held-out alphabets and real digits", 15),
    "fewshot": Study("c05_few_shot:run_seed", "5-way heads beside their rivals", 10),
    "frontier": Study("c06_study:run_seed", "accuracy with diversity: what passes", 30),
    "own": Study("c07_own:run_seed", "generated checkpoints of a fine-tuned ResNet-18", 12),
}


@memo(lambda stored: stored.meta["records"])
def seed_records(name: str, settings: Profile, seed: int, code: str) -> Artifact:
    """One seed of a study; several seeds may be made by as many processes. `code` is the study's."""
    return Artifact({}, {"records": STUDIES[name].run_seed(seed, settings)})


def run(name: str, profile: str = "tutorial", seeds: int | None = None) -> Path:
    """Run a study over seeds 0, 1, … and write figures/results/study_<name>.json; seeds done before are read from the cache.

    Raises:
        ValueError: for an unknown study or less than one seed.
    """
    if name not in STUDIES:
        raise ValueError(f"there is no study {shown(name)}; choose one of {', '.join(STUDIES)}")
    settings, study = load(profile), STUDIES[name]
    count = settings.study_seeds if seeds is None else rules(Profile)["study_seeds"].check("the number of seeds", seeds)
    bar = tqdm(range(count), desc=f"study {name} (about {study.minutes:g} minutes in all)")
    by_seed = [seed_records(name, settings, seed, study.code) for seed in bar]
    extra = {"settings": settings.as_dict(), "code_version": study.code}
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

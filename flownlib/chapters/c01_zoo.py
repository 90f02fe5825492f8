"""The study of notebook 01: how well freshly trained networks do on every embedded task."""

from __future__ import annotations

from flownlib.chapters import shared
from flownlib.harness.profiles import Profile
from flownlib.speed.collect import collect
from flownlib.tasks import DIGITS
from flownlib.tasks.glyphs import ALPHABETS


def run_seed(seed: int, settings: Profile) -> list[dict]:
    """Raw records of one training seed: test accuracy of each network, by task."""
    zoo = collect(shared.zoo_settings(settings, seed, tasks=(*ALPHABETS, DIGITS), networks=settings.survey_networks))
    return [
        {
            "quantity": "test_accuracy",
            "method": "trained",
            "setting": {"zoo": "independent", "task": task},
            "values": zoo.task(task).table["test_accuracy"].tolist(),
        }
        for task in zoo.tasks
    ]

"""The recipes of CONTRIBUTING.md are followed, and what they make is used like the project's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from flownlib.chapters import shared
from flownlib.encoders import reconstruct
from flownlib.evaluation import compare
from flownlib.extensions.audit import audit
from flownlib.networks import cnn_small
from flownlib.scoring import score

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(), re.S)


def made(word: str) -> dict:
    """The names that the recipe with this word in it defines."""
    (block,) = [block for block in BLOCKS if word in block]
    assert len(block.splitlines()) <= 20
    names: dict = {}
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def contexts(tasks):
    return shared.support_contexts(shared.image_features(tasks), tasks, 2, 4, 0)


def test_a_task() -> None:
    task = made("make_task")["task"]
    weights = cnn_small().initialise(2, torch.Generator().manual_seed(0))
    accuracy = score(cnn_small(), weights, task.test.x, task.test.y).accuracy
    assert (len(task.train), len(task.validation), len(task.test)) == (200, 50, 50) and (accuracy < 0.5).all()


def test_an_encoder(canonical, tasks) -> None:
    encoder = made("class Signs")["Signs"](canonical.train.layout)
    report = reconstruct(encoder, canonical.held_out, tasks)
    assert encoder.encode(canonical.train.weights).shape == (len(canonical.train), encoder.latent_dim)
    assert report.r2 < 1 and len(report.accuracy_after) == len(canonical.held_out)


def test_a_generator(canonical, tasks, contexts) -> None:
    coin = made("class Coin")["Coin"]().fit(canonical.train, contexts, 0)
    table = compare([coin], shared.references(canonical, tasks), contexts, canonical.held_out, n=8, seed=0)
    assert set(table["method"]) == {"coin", "zoo_held_out"}
    assert audit(coin, canonical, tasks, contexts, n=8, likelihood=False).verdict

"""Zoos from several processes: the same as from one, whatever is killed when."""

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from flownlib.benchmarks.collection import killed
from flownlib.harness.cache import load_artifact
from flownlib.speed.__main__ import main, read_settings
from flownlib.speed.collect import collect
from flownlib.speed.plan import Training
from flownlib.speed.zoo_settings import ZooSettings
from flownlib.tasks.base import SplitSizes
from flownlib.zoo import Zoo

SETTINGS = ZooSettings(("latin", "greek"), 40, sizes=SplitSizes(200, 50, 50), training=Training(2, 25))
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def settings_file(tmp_path):
    """SETTINGS as JSON."""
    path = tmp_path / "zoo.json"
    path.write_text(json.dumps(asdict(SETTINGS)))
    return path


def launch(arguments, cache, **options):
    """A command in the project with a cache of its own."""
    environment = os.environ | {"FLOWN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_torchrun_makes_the_zoo_that_one_process_makes_and_then_rests(tmp_path, settings_file):
    command = ["torch.distributed.run", "--nproc-per-node", 2, "-m", "flownlib.speed", "--zoo-settings", settings_file]
    command += ["--output", tmp_path / "zoo"]
    first, errors = launch(command, tmp_path / "cache").communicate(timeout=120)
    assert b"process 0 of 2: 3 shards trained" in first and b"process 1 of 2: 3 shards trained" in first, errors.decode()
    alone = collect(SETTINGS, 1, progress=False)
    assert Zoo.from_artifact(load_artifact(tmp_path / "zoo")).digest() == alone.digest() and alone.digest().encode() in first
    second, _ = launch(command, tmp_path / "cache").communicate(timeout=120)
    assert second.count(b": 0 shards trained") == 2


def test_killed_at_random_moments_it_goes_on(tmp_path, settings_file):
    """Kill -9 three times at moments drawn at random; `python -m flownlib.benchmarks kills` does it twenty times."""
    draw, cache = random.Random(0), tmp_path / "cache"
    command = ["flownlib.speed", "--zoo-settings", settings_file, "--output", tmp_path / "zoo"]
    stored = [killed([sys.executable, "-m", *map(str, command)], cache, shards, draw.uniform(0, 0.1)) for shards in (1, 3, 4)]
    assert stored[0] < 6 and stored == sorted(stored)  # else the kill came too late to show anything
    _, errors = launch(command, cache).communicate(timeout=120)
    zoo = Zoo.from_artifact(load_artifact(tmp_path / "zoo"))
    assert zoo.digest() == collect(SETTINGS, 1, progress=False).digest(), errors.decode()
    assert len(zoo) == 80 and not zoo.table.duplicated(["task", "seed"]).any()


def test_settings_are_read_strictly(tmp_path, settings_file, capsys):
    assert read_settings(settings_file) == SETTINGS.checked()
    bad = tmp_path / "bad.json"
    for text, sentence in (
        ("{", "cannot read zoo settings from"),
        ("[]", "holds no settings"),
        ('{"networks": 3}', "these are not the settings of a zoo"),
        ('{"tasks": ["latin"], "networks": 3, "colour": 1}', "unexpected keyword argument 'colour'"),
        ('{"tasks": ["latin"], "networks": 3, "kind": "lucky"}', "setting 'kind' takes one of independent"),
        ('{"tasks": ["elvish"], "networks": 3}', "there is no task 'elvish'"),
    ):
        bad.write_text(text)
        assert main(["--zoo-settings", str(bad)]) == 2
        found = capsys.readouterr().err
        assert sentence in found and found.count("\n") == 1
    assert main(["--zoo-settings", str(tmp_path / "none.json")]) == 2


def test_one_process_does_it_all_without_torchrun(settings_file, capsys, monkeypatch):
    threads = torch.get_num_threads()
    assert main(["--zoo-settings", str(settings_file)]) == 0
    torch.set_num_threads(threads)
    assert "80 networks, zoo " in capsys.readouterr().out

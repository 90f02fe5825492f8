"""Training many at once, collecting, resuming, splitting, storing."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch

from flownlib import recipes
from flownlib.artifacts import ArtifactError, save_artifact
from flownlib.classifiers import cnn_embed, cnn_small, mlp
from flownlib.tasks import Split, SplitSizes, load_task
from flownlib.training import Training, initial_weights, minibatch_orders, train_many, train_one
from flownlib.zoo import Zoo, ZooSettings, collect

SIZES = SplitSizes(200, 50, 50)
SMALL = ZooSettings(("latin", "greek"), 20, sizes=SIZES, training=Training(2, 25))


@pytest.mark.parametrize("model", [cnn_small(), cnn_small(strided=False), cnn_embed(), mlp()], ids=lambda model: model.name)
def test_batched_training_equals_sequential_training_in_float64(model):
    train = load_task("latin", SIZES).train
    train = Split(train.x.double(), train.y)
    seeds, training = range(3), Training(1, 25)
    starts, orders = initial_weights(model, seeds, torch.float64), minibatch_orders(seeds, len(train), training)
    together = train_many(model, starts, train, orders, 3e-3)[-1]
    alone = torch.stack([train_one(model, starts[i], train, orders[i], 3e-3) for i in range(3)])
    assert (together - alone).abs().max() < 1e-10
    control = train_one(model, starts[0], train, orders[0].flip(0), 3e-3)
    assert (control - alone[0]).abs().max() > 1e-3


def test_minibatches_cover_every_epoch_and_checkpoints_are_where_they_were_asked_for():
    orders = minibatch_orders([5], 200, Training(2, 25))
    assert orders.shape == (1, 16, 25)
    assert all(sorted(epoch.flatten().tolist()) == list(range(200)) for epoch in orders[0].split(8))
    train, model = load_task("latin", SIZES).train, cnn_small()
    all_steps = train_many(model, initial_weights(model, [5]), train, orders, 3e-3, record=(4, 16))
    assert torch.equal(all_steps[0], train_many(model, initial_weights(model, [5]), train, orders[:, :4], 3e-3)[0])


def test_the_same_zoo_from_one_and_two_workers(tmp_path, monkeypatch):
    zoos = []
    for workers in (1, 2):
        monkeypatch.setenv("FLOWN_CACHE", str(tmp_path / str(workers)))
        zoos.append(collect(SMALL, workers, progress=False))
    assert torch.equal(zoos[0].weights, zoos[1].weights) and zoos[0].table.equals(zoos[1].table)


@pytest.mark.parametrize("kind", ["shared", "one_run"])
def test_kinds_of_zoo(kind):
    zoo = collect(dataclasses.replace(SMALL, tasks=("latin",), networks=6, kind=kind), 1, progress=False)
    independent = collect(dataclasses.replace(SMALL, tasks=("latin",), networks=6), 1, progress=False)
    assert len(zoo) == 6 and zoo.weights.unique(dim=0).shape[0] == 6
    assert torch.pdist(zoo.weights).mean() < torch.pdist(independent.weights).mean()
    assert zoo.table["seed"].nunique() == (1 if kind == "one_run" else 6)


def test_a_killed_collection_resumes_and_yields_the_same_zoo(tmp_path):
    environment = os.environ | {"FLOWN_CACHE": str(tmp_path / "killed")}
    code = (
        "from tests.test_zoo import SMALL\nfrom flownlib.zoo import collect\n"
        "if __name__ == '__main__': collect(SMALL, 1, progress=False)"
    )
    root = recipes.__file__.rsplit("/", 2)[0]
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=root)
    deadline = time.time() + 90
    while not list((tmp_path / "killed").glob("zoo-shard-*")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list((tmp_path / "killed").glob("zoo-shard-*")))
    assert done >= 1
    resumed = subprocess.run(
        [sys.executable, "-c", code.replace("collect(SMALL", "z = collect(SMALL") + f"; z.save({str(tmp_path / 'zoo')!r})"],
        env=environment,
        cwd=root,
    )
    assert resumed.returncode == 0
    zoo, whole = Zoo.load(tmp_path / "zoo"), collect(SMALL, 1, progress=False)
    assert torch.equal(zoo.weights, whole.weights) and not zoo.table.duplicated(["task", "seed"]).any()


def test_zoo_round_trip_and_split_by_seed(canonical, tmp_path):
    zoo = canonical.train
    zoo.save(tmp_path / "zoo")
    loaded = Zoo.load(tmp_path / "zoo")
    assert torch.equal(loaded.weights, zoo.weights) and loaded.table.equals(zoo.table) and loaded.layout == zoo.layout
    run = collect(dataclasses.replace(SMALL, networks=4), 1, progress=False)
    train, held_out = run.split(1)
    assert len(train) == 6 and len(held_out) == 2
    assert not set(zip(train.table.task, train.table.seed)) & set(zip(held_out.table.task, held_out.table.seed))
    with pytest.raises(ValueError, match="cannot hold out 4 seeds"):
        run.split(4)


def test_what_is_not_a_zoo_is_refused(tmp_path, canonical):
    with pytest.raises(ArtifactError, match="is not a saved artefact"):
        Zoo.load(tmp_path / "nowhere")
    stored = canonical.train.as_artifact()
    save_artifact(tmp_path / "bare", dataclasses.replace(stored, meta={}))
    with pytest.raises(ArtifactError, match="is not a zoo"):
        Zoo.load(tmp_path / "bare")
    save_artifact(tmp_path / "other", dataclasses.replace(stored, meta=stored.meta | {"layout": [["w", [3]]]}))
    with pytest.raises(ArtifactError, match="another layout"):
        Zoo.load(tmp_path / "other")


def test_unknown_kind_and_task_are_refused():
    with pytest.raises(ValueError, match="there is no kind of zoo 'lucky'"):
        collect(ZooSettings(("latin",), 2, "lucky"))
    with pytest.raises(ValueError, match="there is no task 'elvish'"):
        collect(ZooSettings(("elvish",), 2))


def test_the_table_reports_what_the_weights_do(canonical, tasks):
    zoo = canonical.held_out
    name = zoo.tasks[0]
    part = zoo.task(name)
    recomputed = (part.model.forward(part.weights, tasks[name].test.x).argmax(-1) == tasks[name].test.y).float().mean(1)
    assert torch.allclose(recomputed, torch.tensor(part.table["test_accuracy"].to_numpy(), dtype=torch.float32), atol=0.02)
    assert asdict(recipes.zoo_settings(recipes.Profile(), 0))["networks"] == 80

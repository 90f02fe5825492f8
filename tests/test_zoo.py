"""Training many at once, collecting, resuming, splitting, storing."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from flownlib.chapters import shared
from flownlib.harness import profiles as settings
from flownlib.harness.cache import load_artifact, save_artifact
from flownlib.networks import cnn_small
from flownlib.scoring import Split
from flownlib.speed import backends
from flownlib.speed.collect import collect
from flownlib.speed.loops import train_many, train_one
from flownlib.speed.plan import Training, initial_weights, minibatch_orders
from flownlib.speed.zoo_settings import ZooSettings
from flownlib.tasks import load_task
from flownlib.tasks.base import SplitSizes
from flownlib.weights import ArtifactError
from flownlib.zoo import Zoo

SIZES = SplitSizes(200, 50, 50)
SMALL = ZooSettings(("latin", "greek"), 20, sizes=SIZES, training=Training(2, 25))


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


def test_a_network_with_less_data_sees_its_own_share_for_as_many_steps():
    orders = minibatch_orders([5, 6], 200, Training(2, 25), [0.3, 1.0])
    assert orders.shape == (2, 16, 25)
    seen = orders[0].unique()
    assert len(seen) == 60 and torch.equal(orders[0].flatten()[:50].unique(), orders[0].flatten()[:50].sort()[0])
    assert torch.equal(orders[1], minibatch_orders([6], 200, Training(2, 25))[0]) and len(orders[1].unique()) == 200
    with pytest.raises(ValueError, match="leaves 20 images, less than a batch of 25"):
        minibatch_orders([5], 200, Training(2, 25), [0.1])


def test_each_network_has_its_own_rate_and_decay():
    train, model = load_task("latin", SIZES).train, cnn_small()
    train = Split(train.x.double(), train.y)
    starts, orders = initial_weights(model, range(3), torch.float64), minibatch_orders(range(3), 200, Training(1, 25))
    rates, decays = torch.tensor([1e-3, 3e-3, 1e-2]), torch.tensor([0.0, 1e-3, 1e-2])
    together = train_many(model, starts, train, orders, rates.double(), weight_decay=decays.double(), backend="torch")[-1]
    alone = [train_one(model, starts[i], train, orders[i], rates[i].item(), decays[i].item()) for i in range(3)]
    assert (together - torch.stack(alone)).abs().max() < 1e-8  # the rates were float32


def test_training_refuses_what_cannot_be():
    train, model = load_task("latin", SIZES).train, cnn_small()
    starts, orders = initial_weights(model, range(3)), minibatch_orders(range(2), 200, Training(1, 25))
    with pytest.raises(
        ValueError, match="3 networks need 3 minibatch orders, or one that all share, .m, steps, batch., not .2, 8, 25."
    ):
        train_many(model, starts, train, orders, 3e-3)
    with pytest.raises(ValueError, match="must lie between 0 and 8, got \\[9\\]"):
        train_many(model, starts, train, orders[:1], 3e-3, record=(9,))


@pytest.mark.parametrize("kind", ["shared", "one_run"])
def test_kinds_of_zoo(kind):
    zoo = collect(dataclasses.replace(SMALL, tasks=("latin",), networks=6, kind=kind), 1, progress=False)
    independent = collect(dataclasses.replace(SMALL, tasks=("latin",), networks=6), 1, progress=False)
    assert len(zoo) == 6 and zoo.weights.unique(dim=0).shape[0] == 6
    assert torch.pdist(zoo.weights).mean() < torch.pdist(independent.weights).mean()
    assert zoo.table["seed"].nunique() == (1 if kind == "one_run" else 6)


def test_trajectories_run_from_initialisation_to_end():
    settings = dataclasses.replace(SMALL, tasks=("latin",), networks=3)
    ends = collect(settings, 1, progress=False)
    zoo = collect(dataclasses.replace(settings, kind="trajectories"), 1, progress=False)
    assert len(zoo) == 9 and zoo.table["epoch"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert torch.equal(zoo.weights[:3], initial_weights(cnn_small(), ends.table["seed"].tolist()))
    assert torch.equal(zoo.weights[-3:], ends.weights)
    train, held_out = zoo.split(1)
    assert len(train) == 6 and len(held_out) == 3  # a run is held out whole


def test_hyper_parameters_vary_and_are_in_the_table():
    settings = dataclasses.replace(SMALL, tasks=("latin",), kind="varied")
    table = collect(settings, 1, progress=False).table
    assert table["learning_rate"].between(3e-4, 3e-2).all() and table["learning_rate"].max() > 10 * table["learning_rate"].min()
    assert table["weight_decay"].between(1e-5, 1e-2).all() and table["data_fraction"].between(0.2, 1).all()
    assert (table[["learning_rate", "weight_decay", "data_fraction"]].nunique() == 20).all()


def test_shared_minibatches_are_one_order_for_all():
    settings = dataclasses.replace(SMALL, tasks=("latin",), networks=5, minibatches="shared")
    zoo = collect(settings, 1, progress=False)
    model, task = cnn_small(), load_task("latin", SIZES)
    orders = minibatch_orders([1_000_000], 200, SMALL.training)
    own = train_many(model, initial_weights(model, range(5)), task.train, orders.expand(5, -1, -1), 3e-3)[-1]
    assert torch.allclose(zoo.weights, own, atol=1e-5) and zoo.weights.unique(dim=0).shape[0] == 5


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_diverged_networks_are_counted_and_marked(caplog, backend):
    wild = Training(2, 25, learning_rate=10.0)
    settings = dataclasses.replace(SMALL, tasks=("latin",), networks=6, training=wild, backend=backend)
    zoo = collect(settings, 1, progress=False)
    assert zoo.table["diverged"].sum() >= 4 and f"{zoo.table['diverged'].sum()} of 6 networks diverged" in caplog.text
    assert (zoo.table["train_loss"] > 2.3).all()
    assert not collect(dataclasses.replace(settings, training=SMALL.training), 1, progress=False).table["diverged"].any()


def test_a_zoo_says_who_trained_it():
    for backend in ("torch", "auto"):
        zoo = collect(dataclasses.replace(SMALL, tasks=("latin",), networks=2, backend=backend), 1, progress=False)
        used = backends.choose(backend, cnn_small(), torch.float32)
        assert set(zoo.table["backend"]) == {used} and zoo.settings["backend"] == used


def test_a_killed_collection_resumes_and_yields_the_same_zoo(tmp_path):
    environment = os.environ | {"FLOWN_CACHE": str(tmp_path / "killed")}
    code = (
        "from tests.test_zoo import SMALL\nfrom flownlib.speed.collect import collect\n"
        "from flownlib.harness.cache import save_artifact\n"
        "if __name__ == '__main__': zoo = collect(SMALL, 1, progress=False)"
    )
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=root)
    deadline = time.time() + 90
    while not list((tmp_path / "killed").glob("zoo-shard-*")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list((tmp_path / "killed").glob("zoo-shard-*")))
    assert done >= 1
    resumed = subprocess.run(
        [sys.executable, "-c", code + f"; save_artifact({str(tmp_path / 'zoo')!r}, zoo.as_artifact())"],
        env=environment,
        cwd=root,
    )
    assert resumed.returncode == 0
    zoo, whole = Zoo.from_artifact(load_artifact(tmp_path / "zoo")), collect(SMALL, 1, progress=False)
    assert torch.equal(zoo.weights, whole.weights) and not zoo.table.duplicated(["task", "seed"]).any()


def test_zoo_round_trip_and_split_by_seed(canonical, tmp_path):
    zoo = canonical.train
    save_artifact(tmp_path / "zoo", zoo.as_artifact())
    loaded = Zoo.from_artifact(load_artifact(tmp_path / "zoo"))
    assert torch.equal(loaded.weights, zoo.weights) and loaded.table.equals(zoo.table) and loaded.layout == zoo.layout
    run = collect(dataclasses.replace(SMALL, networks=4), 1, progress=False)
    train, held_out = run.split(1)
    assert len(train) == 6 and len(held_out) == 2
    pairs = [set(part.table[["task", "seed"]].itertuples(index=False, name=None)) for part in (train, held_out)]
    assert not pairs[0] & pairs[1]
    with pytest.raises(ValueError, match="cannot hold out 4 seeds"):
        run.split(4)


def test_what_is_not_a_zoo_is_refused(tmp_path, canonical):
    with pytest.raises(ArtifactError, match="is not a saved artefact"):
        Zoo.from_artifact(load_artifact(tmp_path / "nowhere"))
    stored = canonical.train.as_artifact()
    save_artifact(tmp_path / "bare", dataclasses.replace(stored, meta={}))
    with pytest.raises(ArtifactError, match="is not a zoo"):
        Zoo.from_artifact(load_artifact(tmp_path / "bare"))
    save_artifact(tmp_path / "other", dataclasses.replace(stored, meta=stored.meta | {"layout": [["w", [3]]]}))
    with pytest.raises(ArtifactError, match="another layout"):
        Zoo.from_artifact(load_artifact(tmp_path / "other"))
    table = {name: column[:2] for name, column in stored.meta["table"].items()}
    for change in ({"layout": None}, {"layout": [[]]}, {"table": 3}, {"table": table}, {"classifier": ["cnn_small"]}):
        save_artifact(tmp_path / "odd", dataclasses.replace(stored, meta=stored.meta | change))
        with pytest.raises(ArtifactError, match="is (not )?a zoo"):
            Zoo.from_artifact(load_artifact(tmp_path / "odd"))


def test_unknown_kind_and_task_are_refused():
    with pytest.raises(ValueError, match="setting 'kind' takes one of independent, .*, not 'lucky'"):
        collect(ZooSettings(("latin",), 2, "lucky"))
    with pytest.raises(ValueError, match="there is no task 'elvish'"):
        collect(ZooSettings(("elvish",), 2))
    with pytest.raises(ValueError, match="setting 'networks' takes a whole number from 1 to 10,000,000, not 0"):
        collect(ZooSettings(("latin",), 0))
    with pytest.raises(ValueError, match="setting 'minibatches' takes one of own, shared, not 'ours'"):
        collect(ZooSettings(("latin",), 2, minibatches="ours"))
    with pytest.raises(ValueError, match="shared among independent networks only, not in a zoo of kind 'varied'"):
        collect(ZooSettings(("latin",), 2, "varied", minibatches="shared"))
    with pytest.raises(ValueError, match="one run of 16 steps has no 17 checkpoints"):
        collect(dataclasses.replace(SMALL, networks=17, kind="one_run"), 1, progress=False)


def test_the_table_reports_what_the_weights_do(canonical, tasks):
    zoo = canonical.held_out
    name = zoo.tasks[0]
    part = zoo.task(name)
    recomputed = (part.model.forward(part.weights, tasks[name].test.x).argmax(-1) == tasks[name].test.y).float().mean(1)
    assert torch.allclose(recomputed, torch.tensor(part.table["test_accuracy"].to_numpy(), dtype=torch.float32), atol=0.02)
    assert asdict(shared.zoo_settings(settings.Profile(), 0))["networks"] == 80

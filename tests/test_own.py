"""A user's own checkpoints: the frozen part computed once, files that do not fit the model, and the whole way through."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from flownlib.baselines import Retrieval
from flownlib.chapters import c07_own, shared_resnet
from flownlib.encoders import reconstruct
from flownlib.extensions.audit import audit
from flownlib.extensions.checkpoints.folders import import_checkpoints
from flownlib.extensions.checkpoints.reading import CheckpointError
from flownlib.extensions.checkpoints.writing import export_checkpoints
from flownlib.extensions.frozen_prefix import SuffixClassifier
from flownlib.extensions.modules import ModuleClassifier
from flownlib.extensions.pca import PCA
from flownlib.generators import FlowGenerator, FlowTraining
from flownlib.harness.cache import cached_folder
from flownlib.scoring import score
from flownlib.speed.loops import train_many
from flownlib.speed.plan import Training, minibatch_orders
from flownlib.tasks import load_task
from flownlib.tasks.base import SplitSizes
from flownlib.zoo import Zoo


class Net(torch.nn.Module):
    """A network that this library has never seen: two branches, a batch norm, and a part that may be frozen."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 5, 4), torch.nn.BatchNorm2d(4), torch.nn.ReLU(inplace=True))
        self.left, self.right = torch.nn.Linear(144, 12), torch.nn.Linear(144, 12, bias=False)
        self.norm, self.head = torch.nn.BatchNorm1d(12), torch.nn.Linear(12, classes)

    def forward(self, x):
        h = torch.flatten(self.stem(x), 1)
        return self.head(torch.relu(self.norm(self.left(h)) + self.right(h)))


def net(**tensors) -> Net:
    torch.manual_seed(3)
    network = Net()
    network.load_state_dict(network.state_dict() | tensors)
    return network


ALL = ModuleClassifier("net", (1, 28, 28), net, statistics=True)


@pytest.fixture(scope="module")
def task():
    return load_task("greek", SplitSizes(300, 100, 200))


def write_runs(folder, model, images, runs=9, epochs=(4, 8)) -> torch.Tensor:
    """Plain .pt files of whole state dicts, a sub-folder a run; returns the last weights [runs, p].

    Where the running statistics are weights, each run has its own.
    """
    trained = replace(model, statistics=False)
    start = trained.initialise(1, torch.Generator().manual_seed(0)).repeat(runs, 1)
    training, last = Training(max(epochs), 50, 1e-2), []
    steps = [training.steps(len(images)) // training.epochs * epoch for epoch in epochs]
    made = train_many(trained, start, images, minibatch_orders(range(runs), len(images), training), 1e-2, steps)
    for epoch, weights in zip(epochs, made, strict=True):
        for run, vector in enumerate(weights):
            state = trained.state_dict(vector)
            if model.statistics:
                state["norm.running_mean"] = torch.full((12,), run / 100)
            (folder / f"run_{run}").mkdir(parents=True, exist_ok=True)
            torch.save(state, folder / f"run_{run}" / f"epoch_{epoch}.pt")
            last += [model.layout.flatten(state)] if epoch == epochs[-1] else []
    return torch.stack(last)


@pytest.mark.parametrize(
    "patterns, features",
    [(("*",), 784), (("left.*", "head.*"), 156), (("norm.*", "head.*"), 24), (("head.*",), 12), (("right.*", "norm.*"), 156)],
)
def test_the_suffix_is_the_same_network(patterns, features):
    whole = ModuleClassifier("net", (1, 28, 28), net, patterns)
    model = SuffixClassifier.of(whole)
    assert model.layout == whole.layout and model.image_shape == (features, 1, 1) and model.num_classes == 10
    weights = whole.initialise(1, torch.Generator().manual_seed(0)) + torch.randn(3, whole.layout.size) / 10
    x = torch.randn(120, 1, 28, 28)
    cached = model.features(x)
    assert torch.allclose(model.forward(weights, cached), whole.forward(weights, x), atol=1e-5)
    own = torch.stack([x[:5], x[5:10], x[10:15]])  # each network's own images
    mine = torch.stack([cached[:5], cached[5:10], cached[10:15]])
    assert torch.allclose(model.forward(weights, mine), whole.forward(weights, own), atol=1e-5)
    assert not torch.allclose(model.forward(weights, cached.flip(1)), whole.forward(weights, x), atol=1e-2)
    model.module().load_state_dict(model.state_dict(weights[0]), strict=True)
    assert isinstance(model.module(), Net)


def test_the_suffix_trains_like_the_whole(task):
    whole = ModuleClassifier("net", (1, 28, 28), net, ("norm.*", "head.*"))
    model, orders = SuffixClassifier.of(whole), minibatch_orders(range(2), 300, Training(1, 50))
    start, seen = whole.initialise(2, torch.Generator()), model.task(task)
    a, b = (train_many(m, start, images, orders, 1e-2)[-1] for m, images in ((whole, task.train), (model, seen.train)))
    assert torch.allclose(a, b, atol=1e-4) and (a - start).abs().max() > 1e-2
    assert torch.equal(score(model, b, seen.test.x, seen.test.y).wrong, score(whole, b, task.test.x, task.test.y).wrong)


class Branching(torch.nn.Module):
    """What it does depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.head(x.flatten(1)) if x.sum() > 0 else self.head(-x.flatten(1))


class Sized(Branching):
    """Hands a number that is no row of features from the frozen part to the rest."""

    def forward(self, x):
        return self.head(x.flatten(1)).view(x.size(0), -1)


@pytest.mark.parametrize("kind, words", [(Branching, "its graph has no trace"), (Sized, "'size' is not a row for each image")])
def test_what_cannot_be_cut_is_said(kind, words):
    with pytest.raises(ValueError, match=f"own cannot be cut, {words}.*; use it whole"):
        SuffixClassifier.of(ModuleClassifier("own", (1, 2, 2), kind, ("head.*",)))


def test_a_frozen_part_of_another_network_is_refused(tmp_path):
    whole = ModuleClassifier("net", (1, 28, 28), net, ("norm.*", "head.*"))
    right = net().state_dict() | {"head.bias": torch.ones(10)}
    save_file(right, tmp_path / "0.safetensors")
    torch.save({name: tensor.bfloat16() for name, tensor in right.items() if name in whole.layout.names}, tmp_path / "1.pt")
    torch.save(right | {"norm.num_batches_tracked": torch.tensor(7)}, tmp_path / "2.pt")
    assert len(import_checkpoints(tmp_path, whole)) == 3
    save_file(Net().state_dict(), tmp_path / "3.safetensors")
    with pytest.raises(CheckpointError, match=r"3.safetensors has another 'stem.0.weight' than the model, and it is not among"):
        import_checkpoints(tmp_path, whole)
    torch.save(right | {"norm.running_mean": torch.ones(12)}, tmp_path / "3.pt")
    (tmp_path / "3.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"3.pt has another 'norm.running_mean' than the model"):
        import_checkpoints(tmp_path, whole)
    assert len(import_checkpoints(tmp_path, whole, skip=True)) == 3
    assert len(import_checkpoints(tmp_path, replace(whole, patterns=("*",), statistics=True), skip=True)) == 3


@pytest.mark.parametrize("part", [False, True], ids=["all weights", "a part"])
def test_a_folder_of_ones_own_goes_all_the_way(tmp_path, task, part):
    whole = ModuleClassifier("net", (1, 28, 28), net, ("left.*", "norm.*", "head.*")) if part else ALL
    last = write_runs(tmp_path / "runs", whole, task.train)
    imported = import_checkpoints(tmp_path / "runs", whole, task.name)
    assert len(imported) == 18 and imported.table["run"].nunique() == 9
    model = SuffixClassifier.of(whole) if part else whole
    seen = model.task(task) if part else task
    zoo = c07_own.with_accuracy(c07_own.last_of_each_run(replace(imported, model=model)), seen)
    assert torch.equal(zoo.weights, last) and zoo.table["test_accuracy"].mean() > 0.3
    made = c07_own.ready(zoo, seen, held_out=3)
    train, unseen = made.zoo.train, made.zoo.held_out
    assert len(train) == 6 and not set(train.table["run"]) & set(unseen.table["run"])
    pca = PCA.fit(train, 5)
    assert reconstruct(pca, train, {task.name: seen}).r2 > 0.999 > reconstruct(pca, unseen, {task.name: seen}).r2
    flow = FlowGenerator(pca, width=16, training=FlowTraining(20, 8)).fit(train, made.contexts, 0)
    references = {task.name: made.reference}
    found = audit(flow, made.zoo, {task.name: seen}, made.contexts, 6, 0, references, likelihood=False)
    copies = audit(Retrieval().fit(train, made.contexts, 0), made.zoo, {task.name: seen}, made.contexts, 6, 0, references)
    assert copies.verdict == "memorises" != found.verdict
    samples = found.tasks[task.name].samples
    files = export_checkpoints(
        replace(zoo.select([True] * 6 + [False] * 3), weights=samples.canonical, model=whole), tmp_path / "out"
    )
    for file, wrong in zip(files, samples.test.wrong, strict=True):
        network = Net()
        network.load_state_dict(load_file(file), strict=True)
        with torch.no_grad():
            assert torch.equal(network.eval()(task.test.x).argmax(1) != task.test.y, wrong)
    back = import_checkpoints(tmp_path / "out", whole, task.name)
    assert torch.equal(back.weights, samples.canonical)


def test_the_last_checkpoint_of_each_run_is_kept_and_too_few_runs_are_refused(task, tmp_path):
    for run, epochs in ((0, (1, 2, 10)), (1, (3,))):
        (tmp_path / f"run_{run}").mkdir()
        for epoch in epochs:
            torch.save(
                net(**{"head.bias": torch.full((10,), float(epoch))}).state_dict(),
                tmp_path / f"run_{run}" / f"epoch_{epoch}.pt",
            )
    last = c07_own.last_of_each_run(import_checkpoints(tmp_path, ALL, task.name))
    assert last.table[["run", "step"]].values.tolist() == [["run_0", 10], ["run_1", 3]]
    with pytest.raises(ValueError, match="cannot hold out 2 seeds a task"):
        c07_own.ready(last, task, 2)


def test_whole_networks_of_different_initialisations_are_aligned_when_asked(task):
    hidden = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 6), torch.nn.ReLU(), torch.nn.Linear(6, 10))
    model = ModuleClassifier("mlp", (1, 28, 28), hidden)
    weights = model.initialise(8, torch.Generator().manual_seed(0))
    table = pd.DataFrame({"task": "greek", "run": list("abcdefgh"), "seed": range(8), "step": 1, "file": list("abcdefgh")})
    order, tensors = torch.tensor([3, 0, 5, 1, 4, 2]), model.layout.unflatten(weights[:2])
    for name, axis in (("1.weight", 1), ("1.bias", 1), ("3.weight", 2)):
        tensors[name] = tensors[name].index_select(axis, order)
    for aligned in (True, False):
        made = c07_own.ready(Zoo(weights, table, model), task, 3, aligned=aligned)
        around = made.reference.around
        distance = (
            around.nearest(around.canonical(model.layout.flatten(tensors))).distance[:, 0] / made.reference.held_out_distance
        )
        assert ((distance < 1e-3) == aligned).all() and (made.zoo.aligner is not None) == aligned


def test_the_examples_folder_is_what_it_says(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWN_CACHE", str(tmp_path))
    settings = replace(smoke, images_validation=50, own_images_test=50, own_runs=8, own_held_out=4)
    example = c07_own.EXAMPLES["norms_head"]
    folder = c07_own.folder_of_runs(settings, 0, example)
    base = shared_resnet.base_checkpoint(settings, 0, example)
    assert len(list(folder.rglob("*.safetensors"))) == 12 and len(list(folder.rglob("*.pt"))) == 12
    made = c07_own.setup(settings, 0, example)
    assert made.zoo.train.layout.size == 7178 and len(made.zoo.train) == len(made.zoo.held_out) == 4
    assert {n: t.shape for n, t in load_file(base).items()} == {
        n: t.shape for n, t in shared_resnet.resnet().state_dict().items()
    }
    assert made.task.train.x.shape == (300, 1024, 1, 1) and shared_resnet.colour_task("greek", settings).train.x.shape[1:] == (
        3,
        32,
        32,
    )
    assert c07_own.folder_of_runs(settings, 1, example) != folder == c07_own.folder_of_runs(settings, 0, example)


def test_a_cached_folder_is_all_or_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWN_CACHE", str(tmp_path))

    def half(folder):
        (folder / "a").write_text("1")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        cached_folder("files", {"n": 1}, half)
    assert not list(tmp_path.iterdir())
    made = cached_folder("files", {"n": 1}, lambda folder: (folder / "a").write_text("1"))
    assert cached_folder("files", {"n": 1}, half) == made and (made / "a").read_text() == "1"
    assert pd.Series([path.name.startswith("files-") for path in tmp_path.iterdir()]).all()

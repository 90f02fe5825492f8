"""Every stage on a device that is not the processor: as it is written for a GPU, with the processor's numbers.

No GPU is needed: `elsewhere` pretends one. The last test runs the same stages on the real one, where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from elsewhere import Elsewhere, gpu
from torch import Tensor

from flownlib.baselines import all_baselines
from flownlib.chapters import shared
from flownlib.context import StandardContexts, nearest_task, set_mean_context
from flownlib.encoders import WeightSpace, reconstruct
from flownlib.evaluation import MEASURES, ReferenceSet, compare
from flownlib.extensions import adaptation, bodies, fewshot, heads, network_tokens
from flownlib.extensions.activations import ActivationMatched
from flownlib.extensions.audit import audit
from flownlib.extensions.backbone import PCAFeatures, train_backbone
from flownlib.extensions.caml import CAMLContext, random_labels
from flownlib.extensions.correction import Corrected, CorrectorTraining, FreshTraining
from flownlib.extensions.diffusion import LatentDiffusion
from flownlib.extensions.distilled_lora import DistilledLoRA
from flownlib.extensions.episodes import alphabet_episodes, draw_episodes
from flownlib.extensions.fresh_networks import FreshNetworks
from flownlib.extensions.frozen_prefix import SuffixClassifier
from flownlib.extensions.graph_widths import train_on_widths
from flownlib.extensions.head_gauge import HeadGauge
from flownlib.extensions.likelihood import log_likelihood
from flownlib.extensions.lora import LoRA, adapt
from flownlib.extensions.modules import ModuleClassifier
from flownlib.extensions.neuron_tokens import neuron_tokens
from flownlib.extensions.pca import PCA
from flownlib.extensions.regression import HyperNetwork, KernelDensity
from flownlib.extensions.reward import reward_fine_tune
from flownlib.flow import StraightPath, VelocityMLP
from flownlib.generators import FlowGenerator, FlowTraining, train_flow
from flownlib.harness import devices, profiles
from flownlib.harness.memo import Reads
from flownlib.networks import Classifier, cnn_embed, mlp
from flownlib.optimisation import seeded, seeded_module
from flownlib.plots import explorer, latent_map, zoo_browser
from flownlib.scoring import Split, Task, score
from flownlib.speed.loops import train_many
from flownlib.speed.plan import Training, minibatch_orders
from flownlib.speed.zoo_settings import ZooSettings
from flownlib.symmetry import Aligner, match
from flownlib.vae import VAESettings, train_vae
from flownlib.zoo import Zoo

# a few steps of training make samples that are all alike, which is not asked about here
pytestmark = pytest.mark.filterwarnings("ignore::flownlib.generators.CollapseWarning")
NAMES = ("one", "two")
SIDE, WAY, SHORT = 6, 3, FlowTraining(steps=4, batch_size=6, look_every=2)
MODEL = mlp((5, 4), (1, SIDE, SIDE), WAY)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def split_of(n: int, seed: int) -> Split:
    return Split(numbers(n, 1, SIDE, SIDE, seed=seed), torch.arange(n) % WAY)


def zoo_of(model: Classifier, place: str, seed: int = 0, networks: int = 9) -> Zoo:
    """As many networks for each of the tasks, with the table that a collected zoo has."""
    weights = model.initialise(len(NAMES) * networks, seeded(seed)).to(place)
    table = {"task": [name for name in NAMES for _ in range(networks)], "seed": [*range(networks)] * len(NAMES)}
    return Zoo(weights, pd.DataFrame(table | {"test_accuracy": 0.5}), model)


@dataclass(frozen=True)
class World:
    """A small problem whose tensors are all on one device."""

    place: str

    @property
    def tasks(self) -> dict[str, Task]:
        return {
            name: Task(name, WAY, *(split_of(18, 3 * i + k) for k in range(3))).to(self.place) for i, name in enumerate(NAMES)
        }

    @property
    def zoo(self) -> Zoo:
        return zoo_of(MODEL, self.place)

    @property
    def contexts(self) -> dict[str, Tensor]:
        return {name: numbers(4, 6, seed=10 + i).to(self.place) for i, name in enumerate(NAMES)}

    @property
    def pool(self) -> Tensor:
        """Images of twelve classes, as `cnn_embed` reads them."""
        return numbers(12, 12, 1, 28, 28, seed=20).to(self.place)

    @property
    def features(self) -> Tensor:
        """Features of the same."""
        return numbers(12, 12, 8, seed=21).to(self.place)


Found = dict[str, object]  # what a stage gives, by name: tensors, which have to be on its device, and plain numbers
Stage = Callable[[World], Found]
STAGES: dict[str, Stage] = {}


def stage(function: Stage) -> Stage:
    STAGES[function.__name__] = function
    return function


def sampled(generator, world: World, zoo: Zoo | None = None) -> Tensor:
    """Eight weight vectors of a generator, fitted here."""
    return generator.fit(zoo or world.zoo, world.contexts, 0).sample(8, world.contexts["two"][0], seeded(1))


@stage
def scoring(world: World) -> Found:
    test = world.tasks["one"].test
    scores = score(MODEL, world.zoo.weights, test.x, test.y)
    return {"accuracy": scores.accuracy, "loss": scores.loss, "wrong": scores.wrong}


@stage
def training_many(world: World) -> Found:
    train, found = world.tasks["one"].train, {}
    for model, x in ((MODEL, train.x), (cnn_embed(), F.pad(train.x, [11] * 4))):
        orders = minibatch_orders(range(6), len(train), Training(2, 6))
        weights = model.initialise(6, seeded(0)).to(world.place)
        rate = torch.linspace(0.01, 0.1, 6)
        found[model.name] = train_many(model, weights, Split(x, train.y), orders, rate, (0, 3, 6), 0.01, "torch")
        found[f"{model.name} shared"] = train_many(model, weights, Split(x, train.y), orders[:1], 0.01, backend="torch")
    return found


@stage
def symmetry(world: World) -> Found:
    zoo = world.zoo
    joint = Aligner.fit(zoo, reference="joint", rounds=2)
    found = {reference: Aligner.fit(zoo, rounds=2, reference=reference)(zoo).weights for reference in ("task", "joint")}
    return found | {"match": match(MODEL, zoo.weights, zoo.weights[0], seeded(0)), "joint": joint.joint}


@stage
def linear_encoders(world: World) -> Found:
    found = {}
    for encoder in (WeightSpace.fit(world.zoo), PCA.fit(world.zoo, 4), PCA.fit(world.zoo, 5, whiten=False)):
        kept = reconstruct(encoder, world.zoo, world.tasks)
        found[f"{type(encoder).__name__} {encoder.latent_dim}"] = encoder.decode(encoder.encode(world.zoo.weights))
        found[f"R² {encoder.latent_dim}"] = kept.r2
        found[f"accuracy {encoder.latent_dim}"] = kept.accuracy_after.tolist()
    return found


def vae_stage(architecture: str) -> Stage:
    def autoencoder(world: World) -> Found:
        settings = VAESettings(8, 8, 4, 6, jitter=0.1, architecture=architecture, token_size=16, node_dim=4, probe_images=5)
        vae, history = train_vae(world.zoo, world.tasks, settings, 0, progress=False)
        restored = type(vae).from_artifact(vae.as_artifact())
        latents = restored.encode(world.zoo.weights)
        return {"latents": latents, "weights": restored.decode(latents), "losses": [sum(terms.values()) for terms in history]}

    return autoencoder


for name in ("mlp", "linear", "tokens", "conv1d", "graph"):
    STAGES[f"vae_{name}"] = vae_stage(name)


@stage
def graph_of_two_widths(world: World) -> Found:
    zoos = [zoo_of(mlp((width, 4), (1, SIDE, SIDE), WAY), world.place) for width in (5, 6)]
    settings = VAESettings(8, 8, 3, 6, architecture="graph", node_dim=4, probe_images=5)
    vaes = train_on_widths(zoos, world.tasks, settings, 0)
    return {f"width {i}": vae.decode(vae.encode(zoo.weights)) for i, (vae, zoo) in enumerate(zip(vaes, zoos, strict=True))}


@stage
def contexts(world: World) -> Found:
    backbone, images = train_backbone(world.pool, 3, 0, dim=4), torch.cat([task.train.x for task in world.tasks.values()])
    pixels = PCAFeatures(4).fit(images)
    drawn = shared.support_contexts(pixels, world.tasks, 2, 3, 0)
    standard = StandardContexts.fit(drawn, NAMES)
    read = seeded_module(0, lambda: CAMLContext(4, WAY, 5)).to(world.place)
    sets = torch.cat([*shared.support_sets(pixels, world.tasks, 2, 3, 0).values()])
    support = world.tasks["one"].support(2, seeded(0))
    return {
        "backbone": backbone.features(world.pool),
        "means": set_mean_context(pixels.features(support.x), support.y, WAY),
        "drawn": standard.draw(torch.tensor([0, 1, 1]).to(world.place), seeded(0)),
        "repeated": standard.repeated(drawn["one"][0], 3),
        "nearest": NAMES.index(nearest_task({name: draws.mean(0) for name, draws in drawn.items()}, drawn["two"][0])),
        "caml": read(sets),
    }


@stage
def flow_training(world: World) -> Found:
    x_1 = numbers(20, 3).to(world.place)
    network = seeded_module(0, lambda: VelocityMLP(3, 0, 8, 2)).to(world.place)
    batches = lambda n, generator: (torch.randn(n, 3, generator=generator).to(x_1), x_1[:n], None)
    velocity, log = train_flow(network, batches, SHORT, seeded(0), StraightPath(0.1), progress=False)
    return {"losses": log.losses, "velocity": velocity(x_1, torch.linspace(0, 1, 20).to(world.place))}


FLOWS: dict[str, dict] = {
    "plain": {},
    "x_1": {"predicts": "x_1", "path": "variance_preserving", "guidance": 2.0},
    "noise": {"predicts": "noise", "method": "midpoint"},
    "optimal": {"coupling": "optimal", "method": "rk4"},
    "within": {"coupling": "optimal_within", "method": "dopri5"},
    "neurons": {"network": neuron_tokens, "width": 8},
    "caml": {"conditioner": lambda width: CAMLContext(2, WAY, width)},
}


@stage
def flows(world: World) -> Found:
    found, space = {}, WeightSpace.fit(world.zoo)
    for name, choice in FLOWS.items():
        flow = FlowGenerator(space, name, training=SHORT, **({"width": 8} | choice))
        if name == "caml":
            flow.conditioner = choice["conditioner"]
        found[name], found[f"{name} log"] = sampled(flow, world), flow.log.losses
    fresh = FreshNetworks(MODEL, space, world.place)
    found["fresh"] = sampled(FlowGenerator(space, width=8, training=SHORT, prior=fresh), world)
    flow = FlowGenerator(PCA.fit(world.zoo, 4), width=8, training=SHORT).fit(world.zoo, world.contexts, 0)
    c = world.contexts["one"][0]
    found["trajectory"] = flow.trajectory(flow.prior.sample(3, seeded(0)), c).x
    latents, many = flow.encoder.encode(world.zoo.weights), flow.contexts.repeated(c, len(world.zoo))
    found["nats"] = log_likelihood(flow.velocity, latents, flow.prior.log_density, many, 2, 3, seeded(0))
    return found


@stage
def baselines(world: World) -> Found:
    return {baseline.name: sampled(baseline, world) for baseline in all_baselines()}


@stage
def rivals(world: World) -> Found:
    space = PCA.fit(world.zoo, 4)
    learned = [LatentDiffusion(space, width=8, training=SHORT, steps=3), HyperNetwork(space, width=8, training=SHORT)]
    generators = [*learned, KernelDensity(space), FreshTraining()]
    return {generator.name: sampled(generator, world) for generator in generators}


@stage
def correctors(world: World) -> Found:
    gaussian = lambda: all_baselines()[5]
    corrected = Corrected(gaussian(), world.tasks, width=8, training=CorrectorTraining(3, networks=4, images=6))
    return {g.name: sampled(g, world) for g in (corrected, ActivationMatched(gaussian(), world.tasks, images=9))}


@stage
def evaluation(world: World) -> Found:
    train, held_out = world.zoo.split(3)
    aligner, space = Aligner.fit(train, rounds=1), WeightSpace.fit(train)
    zoo = shared.CanonicalZoo(aligner(train), aligner(held_out), aligner)
    references = {name: ReferenceSet.of(task, zoo.train, zoo.held_out, space, aligner) for name, task in world.tasks.items()}
    flow = FlowGenerator(space, width=8, training=SHORT).fit(zoo.train, world.contexts, 0)
    gaussian = all_baselines()[5].fit(zoo.train, world.contexts, 0)
    table = compare([flow, gaussian], references, world.contexts, zoo.held_out, 6, 0)
    report = audit(gaussian, zoo, world.tasks, world.contexts, 9, references=references)
    rows = [task.row() | task.intervals() for task in report.tasks.values()]
    return {"table": table[list(MEASURES)].to_numpy().tolist(), "spread": [row["spread"] for row in rows]}


@stage
def class_tokens(world: World) -> Found:
    model, pool = cnn_embed(), world.pool
    body = bodies.pretrain_body(model, pool, 2, 0)
    prototypes = bodies.prototypical_body(model, body, pool, 2, 0)
    zoo = bodies.train_task_zoo(model, prototypes.weights, pool, 4, 1, 0)
    classes = zoo.classes.to(world.place)  # where a stored zoo's are
    flow = network_tokens.network_flow(model, zoo.weights, body, pool[:, :2].flatten(0, 1), prototypes.scale, 3)
    network_tokens.fit_prior(flow, zoo.weights, classes, pool, 5, 0)
    losses = network_tokens.fit_flow_matching(flow, zoo.weights, classes, pool, 2, 0, batch_size=3)
    losses += network_tokens.fit_queries(flow, pool, 2, 0, tasks=2)
    episodes = draw_episodes(pool, 2, model.num_classes, 5, 2, seeded(0))
    tuned = [reward_fine_tune(flow, episodes.support_x[0], 2, 0, context, splits=2) for context in (4, None)]
    generated = [network.sample(episodes.support_x, seeded(1)) for network in (flow, *tuned)]
    curve = adaptation.adaptation_curve(model, generated[0], episodes, 1e-3)
    return {"body": prototypes.weights, "zoo": zoo.weights, "losses": losses, "networks": torch.stack(generated)} | {
        "curve": curve,
        "centroid": adaptation.centroid_networks(model, body, episodes, prototypes.scale),
        "logistic": adaptation.logistic_networks(model, body, episodes, 0.1),
        "retrieved": adaptation.retrieve_matched(model, zoo.weights, episodes),
    }


@stage
def generated_heads(world: World) -> Found:
    pool, classes = world.features, torch.rand(6, 12, generator=seeded(0)).argsort(1)[:, :WAY]
    labels = torch.arange(WAY).repeat_interleave(12).to(world.place)
    rows, bias = adaptation.logistic_head(pool[classes].flatten(1, 2), labels, WAY, 0.1, steps=3)
    gauge = HeadGauge.fit(rows, bias, pool)
    flow = seeded_module(0, lambda: heads.HeadFlow(gauge, 8, WAY, 8)).to(world.place)
    tokens, classes = gauge.to_tokens(rows, bias), classes.to(world.place)
    heads.fit_prior(flow, tokens, classes, pool, 0)
    losses = heads.fit_flow_matching(flow, tokens, classes, pool, 2, 0, 4) + heads.fit_queries(flow, pool, 2, 0, 3, 2)
    caml = seeded_module(0, lambda: fewshot.CAML(8, WAY, 8)).to(world.place)
    losses += fewshot.train_caml(caml, pool, 2, 0, 3)
    episodes = fewshot.fewer(draw_episodes(pool, 3, WAY, 4, 2, seeded(1)), 2)
    found = {"flow": flow.logits(episodes, seeded(2)), "caml": caml.logits(episodes, seeded(2), 2), "losses": losses}
    return (
        found
        | {"plda": fewshot.PLDA.fit(pool).logits(episodes), "centroid": fewshot.centroid(episodes)}
        | {
            "regression": fewshot.logistic_regression(episodes, 0.1),
            "labels": random_labels(2, WAY, seeded(0)).tolist(),
            "queries": alphabet_episodes([*world.tasks.values()], 2, 2, 2, 0).query_x,
        }
    )


@stage
def low_rank(world: World) -> Found:
    zoo, train = world.zoo, world.tasks["one"].train
    space = LoRA.fit(zoo, 2)
    start, orders = space.start(4, seeded(0)), minibatch_orders(range(4), len(train), Training(1, 6))
    distilled = DistilledLoRA.fit(zoo, world.tasks, 2, steps=3, images=18)
    return {
        "decoded": space.decode(space.encode(zoo.weights)),
        "adapted": space.decode(adapt(MODEL, space, start, train, orders, 0.01)[-1]),
        "distilled": distilled.decode(distilled.encode(zoo.weights)),
    }


@stage
def pictures(world: World) -> Found:
    """What is computed to be drawn comes back, for nothing draws a tensor that is on a GPU."""
    model, images = cnn_embed(), F.pad(world.tasks["one"].test.x, [11] * 4)
    split = Split(images, torch.arange(len(images)).to(world.place) % 10)
    task, weights = Task("one", 10, split, split, split), model.initialise(8, seeded(0)).to(world.place)
    table = pd.DataFrame({"task": "one", "seed": range(8)})
    space, c = WeightSpace.fit(Zoo(weights, table, model)), {"one": numbers(2, 6).to(world.place)}
    flow = FlowGenerator(space, width=8, training=SHORT).fit(Zoo(weights, table, model), c, 0)
    axes = latent_map.plane(space.encode(weights))[1]
    recorder = explorer.Recorder(flow, {"one": task}, {"one": c["one"][0]}, {"Gaussian": flow.prior.sample}, axes, model, 2)
    drawn = (
        latent_map.survey(space, model, weights, ["one"] * 8, {"one": task}, stops=3, images=12),
        recorder("one", "Gaussian", 1.0, "euler", 2),
        zoo_browser.browse(model, weights[:2], weights[2:4], split, "0123456789", stops=3),
    )
    values = [value for found in drawn for value in vars(found).values() if isinstance(value, Tensor)]
    assert not any(isinstance(value, Elsewhere) or value.is_cuda for value in values)
    return {f"{number} {tuple(value.shape)}": value.tolist() for number, value in enumerate(values)}


@stage
def other_peoples_modules(world: World) -> Found:
    layers = lambda: torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, WAY)
    )
    train, whole = world.tasks["one"].train, ModuleClassifier("own", (1, SIDE, SIDE), layers, ("4.*",))
    suffix = SuffixClassifier.of(whole)
    weights, features = suffix.initialise(4, seeded(0)).to(world.place), suffix.task(world.tasks["one"]).train
    orders = minibatch_orders(range(4), len(train), Training(1, 6))
    trained = train_many(suffix, weights, features, orders, 0.01)[-1]
    return {"trained": trained, "whole": whole.forward(trained, train.x), "suffix": suffix.forward(trained, features.x)}


def plain(found: object) -> list[float]:
    """All of its numbers, on the processor."""
    values = found.cpu() if isinstance(found, Tensor) else torch.as_tensor(found)
    return values.detach().flatten().double().tolist()


def check(name: str, place: str) -> None:
    """A stage's tensors are where its inputs were, with the processor's numbers up to rounding."""
    here, there = STAGES[name](World("cpu")), STAGES[name](World(place))
    assert here.keys() == there.keys()
    for what, found in there.items():
        assert not isinstance(found, Tensor) or found.device.type == place, f"{what} is back on the processor"
        assert plain(found) == pytest.approx(plain(here[what]), rel=1e-3, abs=1e-4), what


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_follows_the_device_of_its_inputs(name: str, monkeypatch) -> None:
    monkeypatch.setenv("FLOWN_BACKEND", "torch")
    with gpu():
        check(name, "cuda")


@pytest.mark.skipif(devices.automatic() == "cpu", reason="there is no GPU here")
def test_every_stage_runs_on_the_real_device() -> None:
    for name in STAGES:
        check(name, devices.automatic())


FORGETFUL: dict[str, Callable[[Tensor], object]] = {
    "makes a tensor on the processor": lambda x: x + torch.ones(len(x)),
    "stacks one from there": lambda x: torch.cat([x, torch.zeros(3)]),
    "draws noise there": lambda x: x + torch.randn(x.shape, generator=seeded(0)),
    "draws noise here, with a generator from there": lambda x: torch.randn(3, generator=seeded(0), device=x.device),
    "forgets a module": lambda x: torch.nn.Linear(4, 2)(x),
    "indexes there by numbers from here": lambda x: torch.arange(9)[x.argsort()],
    "hands it to numpy": lambda x: x.numpy(),
    "hands it to whoever asks for an array": lambda x: np.asarray(x),
}


@pytest.mark.parametrize("mistake", FORGETFUL)
def test_what_a_gpu_would_refuse_is_refused(mistake: str) -> None:
    with gpu():
        x = numbers(4).to("cuda")
        with pytest.raises((RuntimeError, TypeError)):
            FORGETFUL[mistake](x)
    FORGETFUL[mistake](numbers(4))  # and on the processor nobody notices


def test_a_stage_that_forgets_the_device_fails() -> None:
    STAGES["forgetful"] = lambda world: {"noise": world.features + torch.randn(8, generator=seeded(0))}
    STAGES["returning"] = lambda world: {"features": world.features.cpu()}
    try:
        with gpu(), pytest.raises(RuntimeError, match="same device"):
            check("forgetful", "cuda")
        with gpu(), pytest.raises(AssertionError, match="back on the processor"):
            check("returning", "cuda")
    finally:
        del STAGES["forgetful"], STAGES["returning"]


def test_what_is_drawn_or_counted_comes_from_the_processor() -> None:
    """`.numpy()` refuses a tensor that is on a GPU, so that in the rooms that show things it follows a `.cpu()`."""
    root = Path(__file__).resolve().parent.parent / "flownlib"
    rooms = [path for room in ("plots", "extensions") for path in (root / room).rglob("*.py")]
    assert not [path.name for path in rooms if re.search(r"(?<!cpu\(\))(?<!double\(\))\.numpy\(\)", path.read_text())]


def test_a_device_that_is_not_there_is_refused_before_anything_runs() -> None:
    missing = next(kind for kind in ("mps", "cuda") if not devices.is_there(kind))
    with pytest.raises(ValueError, match=f"^setting 'device' names {missing}, and torch finds none here; choose one of auto"):
        profiles.load("smoke", {"device": missing})
    with pytest.raises(ValueError, match="setting 'device' takes one of auto, cpu, cuda, mps, not 'gpu'"):
        profiles.load("smoke", {"device": "gpu"})
    assert devices.device_of(profiles.load("smoke")) == devices.automatic()
    with pytest.raises(ValueError, match=f"names {missing}"):
        ZooSettings(("latin",), 2, device=missing).checked()


def test_the_chapters_door_moves_everything_and_the_cache_is_shared(monkeypatch) -> None:
    monkeypatch.setenv("FLOWN_BACKEND", "torch")
    monkeypatch.setattr(devices, "is_there", lambda kind: kind != "mps")
    few = {"epochs": 3, "vae_steps": 3, "context_steps": 2}
    smoke = profiles.PROFILES["smoke"].changed(**few)

    def door(device: str) -> dict[str, Tensor]:
        log: dict[str, object] = {}
        settings = Reads(smoke.changed(device=device), log)
        zoo, vae, tasks = shared.canonical_zoo(settings, 0), shared.trained_vae(settings, 0), shared.zoo_tasks(settings)
        contexts = shared.support_contexts(shared.context_backbone(settings, 0), tasks, 2, 3, 0)
        found = {"weights": zoo.train.weights, "reference": zoo.aligner.references["latin"], "images": tasks["latin"].test.x}
        found |= {"latents": vae.encode(zoo.train.weights), "contexts": contexts["latin"]}
        assert "device" not in log and "vae_steps" in log
        return found

    with gpu():
        there = door("auto")
    here = door("cpu")  # from what the other has stored
    for name, tensor in there.items():
        assert isinstance(tensor, Elsewhere) and not isinstance(here[name], Elsewhere), name
        assert plain(tensor) == pytest.approx(plain(here[name]), rel=1e-3, abs=1e-4), name

"""What notebook 05 and its study need, built once and cached: a frozen backbone, heads to imitate, the trained methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from flownlib.chapters.records import Records
from flownlib.extensions import fewshot
from flownlib.extensions.adaptation import logistic_head
from flownlib.extensions.backbone import Backbone, train_backbone
from flownlib.extensions.episodes import FAR, Episodes, character_pools, draw_episodes
from flownlib.extensions.fewshot import (
    CAML,
    PLDA,
    Method,
    centroid,
    choose_weight_decay,
    fewer,
    logistic_regression,
    train_caml,
)
from flownlib.extensions.head_gauge import HeadGauge
from flownlib.extensions.heads import HeadFlow, fit_flow_matching, fit_prior, fit_queries
from flownlib.harness import results
from flownlib.harness.devices import device_of
from flownlib.harness.memo import memo, tensors
from flownlib.harness.profiles import Profile
from flownlib.optimisation import seeded, seeded_module
from flownlib.statistics import mean_interval
from flownlib.tasks import glyph_pool, load_task
from flownlib.tasks.glyphs import ALPHABETS, HELD_OUT
from flownlib.weights import Artifact

WAY, QUERIES, MANY = 5, 15, 40
SHOTS = (1, 5)
DOMAINS = ("in", "ood", "far")


def image_pools(settings: Profile) -> dict[str, Tensor]:
    """Images [classes, k, 1, 28, 28] by purpose: "train", "validation", and for the test "in", "ood" and "far".

    "in" holds new characters of the training scripts, "ood" the characters of the held-out alphabets, "far" real
    handwritten digits. Each is standardised by its own mean and deviation or, for "in" and "validation", by the training's.
    """
    pools = character_pools(settings.fewshot_classes, settings.fewshot_images, settings.fewshot_images)
    text = "".join(ALPHABETS[name][0] for name in HELD_OUT)
    raw = glyph_pool(text, settings.fewshot_images, seed=1).float()[:, :, None]
    unseen = (raw - raw.mean()) / raw.std()
    digits = load_task(FAR)
    x, y = (torch.cat([getattr(split, name) for split in (digits.train, digits.validation, digits.test)]) for name in "xy")
    far = torch.stack([x[y == label][:170] for label in range(10)])
    # every second held-back character of the training scripts is for choosing, the others are for reporting
    chosen, new, device = pools.validation[::2], pools.validation[1::2], device_of(settings)
    pools = {"train": pools.train, "validation": chosen, "in": new, "ood": unseen, "far": far}
    return {name: pool.to(device) for name, pool in pools.items()}


@memo(tensors)
def _backbone(settings: Profile, seed: int, pool: Tensor) -> dict[str, Tensor]:
    return train_backbone(pool[: settings.fewshot_backbone_classes], settings.fewshot_backbone_steps, seed).state_dict()


def frozen_backbone(settings: Profile, seed: int, pool: Tensor) -> Backbone:
    """The image encoder, trained on the first of the pool's classes only: most characters are new to it."""
    model = Backbone().to(pool.device)
    model.load_state_dict(_backbone(settings, seed, pool))
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Data:
    """Features [classes, k, d] to train on; episodes to choose by and, by domain, to report, with MANY support images a class.

    `features` and `images` are all pools by purpose, before anything is drawn from them.
    """

    pool: Tensor
    validation: Episodes
    test: dict[str, Episodes]
    features: dict[str, Tensor] = field(repr=False)
    images: dict[str, Tensor] = field(repr=False)


def learning_pool(encoder: Backbone, images: Tensor, familiar: int) -> Tensor:
    """Features [classes, k, d] from which every method learns: characters as new to the backbone as the test's.

    Classes that the backbone was trained on it separates too well, so the first `familiar` are left out, upright.
    A character turned by a quarter is another character: turned copies of all make up for the loss and more.
    """
    turned = [encoder.features(images.rot90(quarters, (-2, -1))) for quarters in (1, 2, 3)]
    return torch.cat([encoder.features(images[familiar:]), *turned])


def data(settings: Profile, seed: int) -> Data:
    """Images are the same for every seed; the backbone and the episodes are not."""
    images = image_pools(settings)
    encoder = frozen_backbone(settings, seed, images["train"])
    features = {name: encoder.features(pool) for name, pool in images.items()}

    def draw(name: str, number: int) -> Episodes:
        return draw_episodes(features[name], settings.fewshot_episodes, WAY, MANY, QUERIES, seeded(seed, 50 + number))

    test = {name: draw(name, number) for number, name in enumerate(DOMAINS)}
    learning = learning_pool(encoder, images["train"], settings.fewshot_backbone_classes)
    return Data(learning, draw("validation", 9), test, features, images)


def shown_episodes(data: Data, domain: str, count: int, shot: int, seed: int) -> tuple[Episodes, Episodes]:
    """The same episodes twice, with six queries a class: as images to look at, and as features for the methods."""
    pools = data.images[domain], data.features[domain]
    seen, known = (draw_episodes(pool, count, WAY, shot, 6, seeded(seed, 80)) for pool in pools)
    return seen, known


@dataclass(frozen=True)
class Heads:
    """Many-shot heads as tokens [t, n, d + 1], the pool's classes [t, n] behind them, and the gauge they are written in."""

    tokens: Tensor
    classes: Tensor
    gauge: HeadGauge


def _heads(stored: Artifact) -> Heads:
    tokens, classes, mean, scale = (stored.tensors[name] for name in ("tokens", "classes", "mean", "scale"))
    return Heads(tokens, classes, HeadGauge(mean, scale))


@memo(_heads)
def many_shot_heads(settings: Profile, seed: int, pool: Tensor, weight_decay: float) -> dict[str, Tensor]:
    """Logistic-regression heads for random 5-way tasks, each trained on all images of its classes: what the flow imitates."""
    labels = torch.arange(WAY, device=pool.device).repeat_interleave(pool.shape[1])
    classes = torch.rand(settings.fewshot_heads, len(pool), generator=seeded(seed, 60)).argsort(dim=1)[:, :WAY]
    parts = [logistic_head(pool[group].flatten(1, 2), labels, WAY, weight_decay) for group in classes.split(250)]
    rows, bias = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    gauge = HeadGauge.fit(rows, bias, pool[:, :5])
    return {"tokens": gauge.to_tokens(rows, bias), "classes": classes, "mean": gauge.mean, "scale": gauge.scale}


@dataclass(frozen=True)
class Trained:
    """Everything that was trained, and the losses of its training by name."""

    imitating: HeadFlow
    queried: HeadFlow
    queries_only: HeadFlow
    caml: CAML
    plda: PLDA
    weight_decay: float
    heads: Heads
    losses: dict[str, list[float]]


def new_flow(heads: Heads, pool: Tensor, seed: int) -> HeadFlow:
    """A head flow before training; its prior is fitted to the heads."""
    flow = seeded_module(seed, lambda: HeadFlow(heads.gauge, pool.shape[-1], WAY)).to(pool.device)
    fit_prior(flow, heads.tokens, heads.classes, pool, seed)
    return flow


@memo(tensors)
def _imitating(settings: Profile, seed: int, pool: Tensor, heads: Heads) -> dict[str, Tensor]:
    flow = new_flow(heads, pool, seed)
    losses = fit_flow_matching(flow, heads.tokens, heads.classes, pool, settings.fewshot_flow_steps, seed)
    return {"losses": torch.tensor(losses), **flow.state_dict()}


@memo(tensors)
def _queried(settings: Profile, seed: int, pool: Tensor, heads: Heads, imitate: bool) -> dict[str, Tensor]:
    flow, steps = new_flow(heads, pool, seed), settings.fewshot_query_steps
    if imitate:
        load_trained(flow, _imitating(settings, seed, pool, heads))
    else:  # the query loss gets the steps of the imitation as well: one of each takes about equally long
        steps += settings.fewshot_flow_steps
    return {"losses": torch.tensor(fit_queries(flow, pool, steps, seed)), **flow.state_dict()}


def new_caml(pool: Tensor, seed: int) -> CAML:
    """CAML before training."""
    return seeded_module(seed, lambda: CAML(pool.shape[-1], WAY)).to(pool.device)


@memo(tensors)
def _caml(settings: Profile, seed: int, pool: Tensor) -> dict[str, Tensor]:
    caml = new_caml(pool, seed)
    return {"losses": torch.tensor(train_caml(caml, pool, settings.fewshot_caml_steps, seed)), **caml.state_dict()}


def load_trained(model: nn.Module, stored: dict[str, Tensor]) -> list[float]:
    """Give a model what was stored of its training; returns the loss at every step."""
    model.load_state_dict({name: tensor for name, tensor in stored.items() if name != "losses"})
    return stored["losses"].tolist()


def trained(settings: Profile, seed: int, data: Data) -> Trained:
    """Train every method on the training characters; choose by validation episodes alone."""
    pool, losses = data.pool, {}
    decay = choose_weight_decay([fewer(data.validation, shot) for shot in SHOTS])
    heads = many_shot_heads(settings, seed, pool, decay)
    flows = {name: new_flow(heads, pool, seed) for name in ("imitating", "queried", "queries_only")}
    losses["imitation"] = load_trained(flows["imitating"], _imitating(settings, seed, pool, heads))
    losses["queried"] = load_trained(flows["queried"], _queried(settings, seed, pool, heads, True))
    losses["queries_only"] = load_trained(flows["queries_only"], _queried(settings, seed, pool, heads, False))
    caml = new_caml(pool, seed)
    losses["caml"] = load_trained(caml, _caml(settings, seed, pool))
    return Trained(**flows, caml=caml, plda=PLDA.fit(pool), weight_decay=decay, heads=heads, losses=losses)


def ensemble(flow: HeadFlow, episodes: Episodes, seed: int) -> Tensor:
    """Log of the mean probability over heads from ten samples: [m, q, n]."""
    samples = [flow.logits(episodes, seeded(seed, 70, member)).softmax(-1) for member in range(10)]
    return torch.stack(samples).mean(0).log()


def methods(trained: Trained, seed: int) -> dict[str, Method]:
    """Every method of the comparison by name."""
    return {
        "flown_sample": lambda e: trained.imitating.logits(e, seeded(seed, 70, 0)),
        "flown_mean": lambda e: trained.imitating.logits(e, seeded(seed, 71), noise=0),
        "flown_ensemble_10": lambda e: ensemble(trained.imitating, e, seed),
        "flown_query": lambda e: trained.queried.logits(e, seeded(seed, 71), noise=0),
        "cross_entropy_only": lambda e: trained.queries_only.logits(e, seeded(seed, 71), noise=0),
        "centroid": centroid,
        "logistic_regression": lambda e: logistic_regression(e, trained.weight_decay),
        "plda": trained.plda.logits,
        "caml": lambda e: trained.caml.logits(e, seeded(seed, 72)),
    }


def compare(trained: Trained, data: Data, seed: int) -> dict[tuple[str, str, int], Tensor]:
    """Accuracy of each episode [m] by (method, domain, shot); every method meets the same episodes.

    `many_shot_oracle` is logistic regression on MANY images a class of the same episodes: a ceiling, not a rival.
    """
    accuracies = {}
    for domain, many in data.test.items():
        oracle = fewshot.accuracy(logistic_regression(many, trained.weight_decay), many)
        for shot in SHOTS:
            few = fewer(many, shot)
            for name, method in methods(trained, seed).items():
                accuracies[name, domain, shot] = fewshot.accuracy(method(few), few)
            accuracies["many_shot_oracle", domain, shot] = oracle
    return accuracies


def raw_records(accuracies: dict[tuple[str, str, int], Tensor]) -> list[dict]:
    """Accuracies by method, domain and shot, and the generated head's paired gains, one value an episode."""
    records = Records(way=WAY)
    for (method, domain, shot), values in accuracies.items():
        records.add("test_accuracy", method, values.tolist(), domain=domain, shot=shot)
        for rival in ("centroid", "plda", "caml", "cross_entropy_only") if method == "flown_query" else ():
            gain = values - accuracies[rival, domain, shot]
            records.add("accuracy_gain", method, gain.tolist(), domain=domain, shot=shot, over=rival)
    return records


def write_live(accuracies: dict[tuple[str, str, int], Tensor], profile: str, seed: int) -> Path:
    """Write one run's `raw_records`, each with its interval over episodes; returns the file's path."""
    made = []
    for raw in raw_records(accuracies):
        values = raw.pop("values")
        made.append(results.record(**raw, interval=mean_interval(values), seeds=[seed]))
    return results.write("05_few_shot_evaluation", profile, made)

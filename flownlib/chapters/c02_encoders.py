"""The encoders' comparison: the kinds of zoo, the encoders, and one fit of each, cached with the time it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flownlib.chapters import shared
from flownlib.chapters.records import Records
from flownlib.chapters.shared import autoencoders
from flownlib.encoders import Encoder, Reconstruction, WeightSpace, reconstruct
from flownlib.extensions.distilled_lora import DistilledLoRA
from flownlib.extensions.graph_widths import at_width, train_on_widths
from flownlib.extensions.lora import LoRA
from flownlib.extensions.pca import PCA
from flownlib.harness import results
from flownlib.harness.memo import memo
from flownlib.harness.profiles import Profile
from flownlib.scoring import Task, score
from flownlib.speed.collect import collect
from flownlib.statistics import mean_interval
from flownlib.vae import VAE, train_vae
from flownlib.weights import Artifact, ArtifactError
from flownlib.zoo import Zoo

KINDS = {"weights": WeightSpace, "pca": PCA, "vae": VAE, "lora": LoRA, "lora_distilled": DistilledLoRA}
ZOOS = {
    "shared": "one initialisation, independent orders of minibatches",
    "independent": "everything independent, as training left it",
    "aligned": "the independent zoo, balanced and aligned",
    "one_run": "the last checkpoints of one run a task",
}

COMPARED = ("pca", "lora", "vae", "vae_tokens", "vae_conv1d", "vae_graph")  # on every kind of zoo
# linear maps and low-rank factors that are asked for behaviour; and a perceptron with as many latents as the graph encoder
REFINED = {"shared": ("linear", "lora_distilled"), "independent": ("vae_large",)}
# hidden units of perceptrons: one graph encoder is trained on the first two zoos together and tried on all three
WIDTHS = {"mlp_16": 16, "mlp_24": 24, "mlp_20_unseen": 20}


def split_zoo(settings: Profile, seed: int, kind: str) -> tuple[Zoo, Zoo]:
    """(training, held-out) networks of a kind of ZOOS; other seeds are held out, or of a single run its last checkpoints.

    The last checkpoints of a run are near copies of those before them, so that split flatters whoever memorises.
    """
    if kind == "aligned":
        canonical = shared.canonical_zoo(settings, seed)
        return canonical.train, canonical.held_out
    zoo = collect(shared.zoo_settings(settings, seed, kind))
    if kind != "one_run":
        return zoo.split(settings.held_out_per_task)
    runs = zoo.table.groupby("task")["step"]
    late = runs.rank(method="dense", ascending=False) <= min(settings.held_out_per_task, runs.size().min() // 2)
    return zoo.select(~late), zoo.select(late)


def fitters(settings: Profile, seed: int) -> dict[str, Callable[[Zoo, dict[str, Task]], Encoder]]:
    """How each encoder is fitted to a zoo's training networks."""
    linear = {
        "pca": lambda zoo, tasks: PCA.fit(zoo, min(settings.latent_dim, len(zoo) - 1)),
        "lora": lambda zoo, tasks: LoRA.fit(zoo, settings.lora_rank),
        "lora_distilled": lambda zoo, tasks: DistilledLoRA.fit(zoo, tasks, settings.lora_rank, settings.vae_steps // 3),
    }
    trained = {
        name: lambda zoo, tasks, vae=vae: train_vae(zoo, tasks, vae, seed)[0] for name, vae in autoencoders(settings).items()
    }
    return linear | trained


@dataclass(frozen=True)
class Fit:
    """An encoder and the processor seconds that fitting it took."""

    encoder: Encoder
    seconds: float

    @property
    def numbers(self) -> int:
        """How many numbers it consists of."""
        return sum(tensor.numel() for tensor in self.encoder.as_artifact().tensors.values() if tensor.is_floating_point())


def restored(artifact: Artifact) -> Encoder:
    """The encoder of whichever of KINDS an artefact holds; it decodes to the same bits.

    Raises:
        ArtifactError: if it holds none, or something in it is missing.
    """
    kind = artifact.meta.get("encoder")
    if kind not in list(KINDS):
        raise ArtifactError(f"this is not an encoder; it says it is {kind!r}.")
    try:
        return KINDS[kind].from_artifact(artifact)
    except ArtifactError:
        raise
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ArtifactError(f"this is no whole encoder: something in it is missing ({type(error).__name__}).") from None


def stored_fit(artifact: Artifact) -> Fit:
    """The fit that an artefact holds."""
    return Fit(restored(artifact), artifact.meta["seconds"])


def timed(fit_encoder: Callable[[], Encoder]) -> Artifact:
    """The encoder as an artefact, with the processor seconds that it took."""
    start = time.process_time()
    encoder = fit_encoder()
    seconds, artifact = time.process_time() - start, encoder.as_artifact()
    return replace(artifact, meta=artifact.meta | {"seconds": seconds})


@memo(stored_fit)
def fit(settings: Profile, seed: int, kind: str, name: str) -> Artifact:
    """One encoder, fitted to one kind of zoo."""
    train, _ = split_zoo(settings, seed, kind)
    tasks = shared.zoo_tasks(settings)
    return timed(lambda: fitters(settings, seed)[name](train, tasks))


def width_zoos(settings: Profile, seed: int) -> dict[str, tuple[Zoo, Zoo]]:
    """(training, held-out) perceptrons of every one of WIDTHS, as training left them."""
    return {
        name: collect(shared.zoo_settings(settings, seed, classifier=f"mlp_1x28x28_{width}_10")).split(
            settings.held_out_per_task
        )
        for name, width in WIDTHS.items()
    }


@memo(stored_fit)
def fit_widths(settings: Profile, seed: int, zoos: dict[str, tuple[Zoo, Zoo]]) -> Artifact:
    """The graph encoder of the comparison, fitted to the first two zoos together, for the first; see `at_width`."""
    seen = [train for train, _ in list(zoos.values())[:2]]
    vae = autoencoders(settings)["vae_graph"]
    return timed(lambda: train_on_widths(seen, shared.zoo_tasks(settings), vae, seed)[0])


@torch.no_grad()
def midpoints(encoder: Encoder, zoo: Zoo, tasks: Mapping[str, Task]) -> Tensor:
    """Test accuracy of what lies halfway, in latent space, between disjoint pairs of networks of one task [pairs]."""
    accuracies = []
    for name in zoo.tasks:
        latents = encoder.encode(zoo.task(name).weights)
        half = len(latents) // 2
        decoded = encoder.decode((latents[:half] + latents[half : 2 * half]) / 2)
        accuracies.append(score(zoo.model, decoded, tasks[name].test.x, tasks[name].test.y).accuracy)
    return torch.cat(accuracies)


def compare_on(kind: str, split: tuple[Zoo, Zoo], fits: Mapping[str, Fit], settings: Profile) -> list[dict]:
    """Raw records of a (training, held-out) zoo by encoder: accuracy of held-out networks and midpoints, R², size, seconds."""
    tasks, (train, held_out), records = shared.zoo_tasks(settings), split, Records(zoo=kind, networks="held_out")

    def add_midpoints(name: str, encoder: Encoder) -> None:
        records.add("test_accuracy_mean", name, midpoints(encoder, held_out, tasks).tolist(), networks="midpoints")

    records.add("test_accuracy_mean", "zoo_held_out", held_out.table["test_accuracy"].tolist())
    add_midpoints("weight_space", WeightSpace.fit(train))
    for name, fitted in fits.items():
        result = reconstruct(fitted.encoder, held_out, tasks, train.weights.mean(0))
        records.add("test_accuracy_mean", name, result.accuracy_after.tolist())
        records.add("accuracy_gain", name, (result.accuracy_after - result.accuracy_before).tolist())
        records.add("r2", name, [result.r2])
        add_midpoints(name, fitted.encoder)
        records.add("seconds_fit", name, [fitted.seconds])
        records.add("numbers", name, [float(fitted.numbers)])
        records.add("latent_dim", name, [float(fitted.encoder.latent_dim)])
    return records


def compare(kinds: Mapping[str, Iterable[str]], seed: int, settings: Profile) -> list[dict]:
    """Raw records of one seed: on each kind of zoo these encoders, fitted to it."""
    torch.set_num_threads(1)  # as many seconds as on one core
    records = []
    for kind, names in kinds.items():
        fits = {name: fit(settings, seed, kind, name) for name in names}
        records += compare_on(kind, split_zoo(settings, seed, kind), fits, settings)
    return records


def compare_widths(seed: int, settings: Profile) -> list[dict]:
    """Raw records of one seed: one graph encoder on perceptrons of three widths, of which it was trained on two."""
    torch.set_num_threads(1)
    zoos = width_zoos(settings, seed)
    graph = fit_widths(settings, seed, zoos)
    return [
        record
        for kind, split in zoos.items()
        for record in compare_on(
            kind, split, {"vae_graph": replace(graph, encoder=at_width(graph.encoder, split[0]))}, settings
        )
    ]


def write_run(held_out: Mapping[tuple[str, str], Reconstruction], settings: Profile, seed: int) -> None:
    """Write notebook 02's own run: held-out accuracies after the round trip, by (method, kind of zoo), and the originals'."""
    records = []
    for (method, kind), found in held_out.items():
        values = {"test_accuracy_mean": found.accuracy_after, "accuracy_gain": found.accuracy_after - found.accuracy_before}
        setting = {"zoo": kind, "networks": "held_out"}
        records += [results.record(q, method, setting, mean_interval(value), [seed]) for q, value in values.items()]
    original = mean_interval(held_out["vae", "aligned"].accuracy_before)
    setting = {"zoo": "aligned", "networks": "held_out"}
    records.append(results.record("test_accuracy_mean", "zoo_held_out", setting, original, [seed]))
    results.write("02_vae_training", settings.profile, records)

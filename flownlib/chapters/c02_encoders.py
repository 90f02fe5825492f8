"""The encoders' comparison: the kinds of zoo, the encoders, and one fit of each, cached with the time it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from flownlib import encoders, symmetry, vae
from flownlib.chapters import shared as recipes
from flownlib.chapters.shared import autoencoders
from flownlib.encoders import KINDS, PCA, Encoder
from flownlib.extensions import distilled_lora, graph_encoder, graph_widths, lora, weight_tokens
from flownlib.extensions.distilled_lora import DistilledLoRA
from flownlib.extensions.graph_widths import train_on_widths
from flownlib.extensions.lora import LoRA
from flownlib.harness.cache import cached
from flownlib.harness.settings import Profile
from flownlib.scoring import Task
from flownlib.speed.collect import collect
from flownlib.vae import train_vae
from flownlib.weights import Artifact
from flownlib.zoo import Zoo

CODE = (*symmetry.CODE, *encoders.CODE)
OWN = {
    "pca": (encoders,),
    "lora": (lora,),
    "lora_distilled": (lora, vae, distilled_lora),
    "linear": (vae, weight_tokens, encoders),
    "vae_graph": (vae, graph_encoder),
}
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
        canonical = recipes.canonical_zoo(settings, seed)
        return canonical.train, canonical.held_out
    zoo = collect(recipes.zoo_settings(settings, seed, kind))
    if kind != "one_run":
        return zoo.split(settings.held_out_per_task)
    late = zoo.table.groupby("task")["step"].rank(method="dense", ascending=False) <= settings.held_out_per_task
    return zoo.select(~late), zoo.select(late)


def distillation_steps(settings: Profile) -> int:
    """Steps with which each network's factors are tuned: a third of the VAE's, 400 in the tutorial."""
    return settings.vae_steps // 3


def fitters(settings: Profile, seed: int) -> dict[str, Callable[[Zoo, dict[str, Task]], Encoder]]:
    """How each encoder is fitted to a zoo's training networks."""
    linear = {
        "pca": lambda zoo, tasks: PCA.fit(zoo, min(settings.latent_dim, len(zoo) - 1)),
        "lora": lambda zoo, tasks: LoRA.fit(zoo, settings.lora_rank),
        "lora_distilled": lambda zoo, tasks: DistilledLoRA.fit(zoo, tasks, settings.lora_rank, distillation_steps(settings)),
    }
    trained = {
        name: lambda zoo, tasks, chosen=chosen: train_vae(zoo, tasks, chosen, seed)[0]
        for name, chosen in autoencoders(settings).items()
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


def fit(settings: Profile, seed: int, kind: str, name: str) -> Fit:
    """One encoder, fitted to one kind of zoo, from the cache if it is there."""
    train, _ = split_zoo(settings, seed, kind)
    tasks = recipes.zoo_tasks(settings)
    trained = autoencoders(settings)
    chosen = asdict(trained[name]) if name in trained else {"rank": settings.lora_rank, "steps": distillation_steps(settings)}
    key = {"zoo": train.digest(), "encoder": name, "settings": chosen, "dim": settings.latent_dim, "seed": seed}

    def build() -> Artifact:
        start = time.process_time()
        encoder = fitters(settings, seed)[name](train, tasks)
        seconds, made = time.process_time() - start, encoder.as_artifact()
        return replace(made, meta=made.meta | {"seconds": seconds})

    own = OWN.get(name, (vae, weight_tokens))
    return stored_fit(cached("encoder", key, build, code=(*symmetry.CODE, encoders, *own)))


def stored_fit(stored: Artifact) -> Fit:
    """The fit that an artefact holds."""
    return Fit(KINDS[stored.meta["encoder"]].from_artifact(stored), stored.meta["seconds"])


def width_zoos(settings: Profile, seed: int) -> dict[str, tuple[Zoo, Zoo]]:
    """(training, held-out) perceptrons of every one of WIDTHS, as training left them."""
    return {
        name: collect(recipes.zoo_settings(settings, seed, classifier=f"mlp_1x28x28_{width}_10")).split(
            settings.held_out_per_task
        )
        for name, width in WIDTHS.items()
    }


def fit_widths(settings: Profile, seed: int, zoos: dict[str, tuple[Zoo, Zoo]]) -> Fit:
    """The graph encoder of the comparison, fitted to the first two zoos together, for the first; see `at_width`."""
    seen = [train for train, _ in list(zoos.values())[:2]]
    chosen = autoencoders(settings)["vae_graph"]
    key = {"zoos": [train.digest() for train in seen], "settings": asdict(chosen), "seed": seed}

    def build() -> Artifact:
        start = time.process_time()
        made = train_on_widths(seen, recipes.zoo_tasks(settings), chosen, seed)[0].as_artifact()
        return replace(made, meta=made.meta | {"seconds": time.process_time() - start})

    code = (*symmetry.CODE, encoders, *OWN["vae_graph"], graph_widths)
    return stored_fit(cached("encoder-widths", key, build, code=code))

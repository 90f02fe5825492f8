"""A variational autoencoder of weights (Kingma & Welling 2014) that is also asked to preserve behaviour.

It is given a pair of networks: the encoder returns mean and log-variance of the latents, [n, 2k], the decoder turns
latents [n, k] into standardised weights [n, p]. Extensions add pairs of their own to `ARCHITECTURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flownlib.encoders import Standardiser
from flownlib.networks import Model, classifier
from flownlib.optimisation import minimise, seeded_module
from flownlib.scoring import Task
from flownlib.weights import Artifact, Float, Images, Latents, Layout, Weights, drawn
from flownlib.zoo import Zoo

Pair = tuple[nn.Module, nn.Module]


def perceptrons(p: int, latent_dim: int, width: int) -> Pair:
    """Encoder and decoder of two hidden layers; every weight sees every latent, so the size grows with p."""
    half = width // 2
    encoder = nn.Sequential(nn.Linear(p, width), nn.SiLU(), nn.Linear(width, half), nn.SiLU(), nn.Linear(half, 2 * latent_dim))
    decoder = nn.Sequential(nn.Linear(latent_dim, half), nn.SiLU(), nn.Linear(half, width), nn.SiLU(), nn.Linear(width, p))
    return encoder, decoder


@dataclass(frozen=True)
class VAESettings:
    """Sizes and loss weights; `probe_images` are the training images on which behaviours are compared at each step.

    `input_noise` is to be removed; `jitter` makes other networks, to be reconstructed as they are. Without a `kl_loss` the
    latents are the encoder's means plus `latent_noise`, as in p-diff's autoencoder. The architecture "graph" has `node_dim`
    latents for each unit in place of `latent_dim`, and `rounds` of messages.
    """

    latent_dim: int = 64
    width: int = 512
    steps: int = 1200
    batch_size: int = 48
    learning_rate: float = 1e-3
    input_noise: float = 1.0
    jitter: float = 0.0
    weight_loss: float = 0.1
    behaviour_loss: float = 1.0
    kl_loss: float = 1e-3
    latent_noise: float = 0.0
    architecture: str = "mlp"  # a name in ARCHITECTURES
    token_size: int = 64  # weights in a token; 0 makes every unit a token
    node_dim: int = 48
    rounds: int = 2
    probe_images: int = 24


@dataclass(frozen=True)
class Architecture:
    """A kind of pair, and what it needs beyond its own layers.

    Args:
        build: the two networks for a model and the settings.
        standardise: fits the standardiser of weights [n, p] in a layout.
        begin: sets a fresh VAE's weights from the zoo before training; None leaves torch's initialisation.
        latent_scale: mean and deviation of latents [n, k], by which they are standardised; None takes each latent's own.
    """

    build: Callable[[Model, VAESettings], Pair]
    standardise: Callable[[Tensor, Layout], Standardiser] = Standardiser.fit
    begin: Callable[[VAE, Zoo], None] | None = None
    latent_scale: Callable[[VAE, Tensor], tuple[Tensor, Tensor]] | None = None


class VAE(nn.Module):
    """Encoder and decoder are networks on standardised weights; latents are standardised posterior means.

    Args:
        model: whose weights are encoded.
        settings: sizes and loss weights.
        pair: encoder and decoder; by default those of the architecture that the settings name.
    """

    mean: Tensor
    scale: Tensor
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, model: Model, settings: VAESettings, pair: Pair | None = None) -> None:
        super().__init__()
        self.encoder, self.decoder = pair or architecture(settings.architecture).build(model, settings)
        p, k = model.layout.size, getattr(self.encoder, "latent_dim", settings.latent_dim)
        self.model, self.settings, self.latent_dim = model, settings, k
        for name, size in {"mean": p, "scale": p, "latent_mean": k, "latent_std": k}.items():
            self.register_buffer(name, torch.zeros(size) if "mean" in name else torch.ones(size))

    @property
    def layout(self) -> Layout:
        """The layout of the networks that it encodes."""
        return self.model.layout

    @property
    def standardiser(self) -> Standardiser:
        """Weights ↔ the numbers that the networks see."""
        return Standardiser(self.mean, self.scale)

    def posterior(self, standard: Weights) -> tuple[Latents, Latents]:
        """Mean and log-variance of q(z | w), each [n, k]."""
        mean, log_variance = self.encoder(standard).chunk(2, dim=-1)
        return mean, log_variance.clamp(-10, 4)

    def encode(self, weights: Weights) -> Latents:
        """Standardised latents [n, k]."""
        return (self.posterior(self.standardiser.forward(weights))[0] - self.latent_mean) / self.latent_std

    def decode(self, latents: Latents) -> Weights:
        """Weights [n, p]."""
        return self.standardiser.inverse(self.decoder(latents * self.latent_std + self.latent_mean))

    def as_artifact(self) -> Artifact:
        """Tensors and settings, to be stored."""
        meta = {"classifier": self.model.name, "layout": self.layout.as_json(), "settings": asdict(self.settings)}
        return Artifact(self.state_dict(), {"encoder": "vae"} | meta)

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> VAE:
        """The inverse of `as_artifact`.

        Raises:
            ValueError: if it was trained for another layout.
        """
        model = classifier(artifact.meta["classifier"])
        if Layout.from_json(artifact.meta["layout"]) != model.layout:
            raise ValueError(f"this VAE was trained for another layout of {model.name}; train it again.")
        vae = cls(model, VAESettings(**artifact.meta["settings"])).to(artifact.tensors["mean"].device)
        vae.load_state_dict(artifact.tensors)
        return vae.eval().requires_grad_(False)


def behaviour_distance(model: Model, weights: Weights, decoded: Weights, x: Images) -> Float[Tensor, ""]:
    """KL divergence in nats, a scalar, from networks' class probabilities to their reconstructions', averaged over images x."""
    with torch.no_grad():
        target = model.forward(weights, x).log_softmax(-1)
    logits = model.forward(decoded, x).log_softmax(-1)
    return F.kl_div(logits, target, log_target=True, reduction="sum") / (len(weights) * len(x))


def vae_loss(vae: VAE, weights: Weights, images: Images, generator: torch.Generator) -> dict[str, Tensor]:
    """The three terms for a batch of networks of one task: weights, behaviour, kl (scalars, already weighted)."""
    s, standard = vae.settings, vae.standardiser.forward(weights)
    if s.jitter:  # other networks, to be reconstructed as they are
        standard = standard + s.jitter * drawn(torch.randn, standard.shape, generator, standard)
        weights = vae.standardiser.inverse(standard)
    noise = drawn(torch.randn, standard.shape, generator, standard)
    mean, log_variance = vae.posterior(standard + s.input_noise * noise)
    # z = mu + sigma * eps
    deviation = (log_variance / 2).exp() if s.kl_loss else s.latent_noise
    z = mean + deviation * drawn(torch.randn, mean.shape, generator, mean)
    decoded = vae.decoder(z)
    # KL(q(z | w) || N(0, 1)) per weight
    kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1).mean() / standard.shape[1]
    terms = {"weights": s.weight_loss * F.mse_loss(decoded, standard), "kl": s.kl_loss * kl}
    if s.behaviour_loss:
        distance = behaviour_distance(vae.model, weights, vae.standardiser.inverse(decoded), images)
        terms["behaviour"] = s.behaviour_loss * distance
    return terms


def train_vae(
    zoo: Zoo, tasks: Mapping[str, Task], settings: VAESettings, seed: int, progress: bool = True
) -> tuple[VAE, list[dict[str, float]]]:
    """A VAE fitted to a zoo, in evaluation mode, and the loss terms at every step.

    Each step takes networks of one task and training images of that task.

    Args:
        zoo: in canonical form, or its VAE has to learn every order of hidden units.
        tasks: by name, at least those of the zoo.
        settings: sizes and loss weights.
        seed: of initialisation and batches.
        progress: show a bar.

    Raises:
        ValueError: for less than one step, networks that are not finite, or an unknown architecture.
    """
    generator = torch.Generator().manual_seed(seed)
    vae = seeded_module(seed, lambda: VAE(zoo.model, settings)).to(zoo.weights.device)
    kind = architecture(settings.architecture)
    standardiser = kind.standardise(zoo.weights, zoo.layout)
    vae.mean.copy_(standardiser.mean)
    vae.scale.copy_(standardiser.scale)
    if kind.begin:
        kind.begin(vae, zoo)
    history: list[dict[str, float]] = []
    rows = [(zoo.task(name).weights, tasks[name].train.x) for name in zoo.tasks]

    def loss() -> Tensor:
        weights, images = rows[len(history) % len(rows)]
        batch = weights[torch.randint(len(weights), (settings.batch_size,), generator=generator)]
        probes = images[torch.randint(len(images), (settings.probe_images,), generator=generator)]
        terms = vae_loss(vae, batch, probes, generator)
        history.append({name: float(term.detach()) for name, term in terms.items()})
        return sum(terms.values(), start=torch.zeros(()))

    minimise(loss, vae, settings.steps, settings.learning_rate, "VAE", weight_decay=1e-4, progress=progress)
    standardise_latents(vae.eval().requires_grad_(False), zoo)
    return vae, history


def standardise_latents(vae: VAE, zoo: Zoo) -> None:
    """Nothing; sets the scale of the latents: a wrong one is the usual reason why generated networks score at chance."""
    latents, _ = vae.posterior(vae.standardiser.forward(zoo.weights))
    scale = architecture(vae.settings.architecture).latent_scale
    mean, std = scale(vae, latents) if scale else (latents.mean(0), latents.std(0))
    vae.latent_mean.copy_(mean)
    vae.latent_std.copy_(std + 1e-3)


ARCHITECTURES = {"mlp": Architecture(lambda model, s: perceptrons(model.layout.size, s.latent_dim, s.width))}


def architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        ValueError: if none is registered under it.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"there is no architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]

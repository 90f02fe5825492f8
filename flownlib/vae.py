"""A variational autoencoder of weights (Kingma & Welling 2014) that is also asked to preserve behaviour.

It is given a pair of networks: the encoder returns mean and log-variance of the latents, [n, 2k], the decoder turns
latents [n, k] into standardised weights [n, p]. Extensions add pairs of their own to `ARCHITECTURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from flownlib.encoders import PCA, Standardiser
from flownlib.networks import Classifier, classifier
from flownlib.optimisation import warmup_cosine
from flownlib.scoring import Task
from flownlib.weights import Artifact, Layout
from flownlib.zoo import Zoo

Pair = tuple[nn.Module, nn.Module]


def linear(p: int, latent_dim: int) -> Pair:
    """One linear map each."""
    return nn.Linear(p, 2 * latent_dim), nn.Linear(latent_dim, p)


def perceptrons(p: int, latent_dim: int, width: int) -> Pair:
    """Two hidden layers each; every weight sees every latent, so the size grows with p."""
    encoder = nn.Sequential(
        nn.Linear(p, width), nn.SiLU(), nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 2 * latent_dim)
    )
    decoder = nn.Sequential(
        nn.Linear(latent_dim, width // 2), nn.SiLU(), nn.Linear(width // 2, width), nn.SiLU(), nn.Linear(width, p)
    )
    return encoder, decoder


@dataclass(frozen=True)
class VAESettings:
    """Sizes and loss weights; `probe_images` are the training images on which behaviours are compared at each step.

    `input_noise` is to be removed; `jitter` makes other networks, to be reconstructed as they are. Without a `kl_loss` the
    latents are the encoder's means plus `latent_noise`, as in p-diff's autoencoder. The architecture "graph" has `node_dim`
    latents for each unit in place of `latent_dim`, and `rounds` of messages; "linear" starts from principal components.
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
        build: the two networks for a classifier's layout and the settings.
        standardise: fits the standardiser of weights [n, p] in a layout.
        begin: sets a fresh VAE's weights from the zoo before training; None leaves torch's initialisation.
        latent_scale: mean and deviation of latents [n, k], by which they are standardised; None takes each latent's own.
    """

    build: Callable[[Classifier, VAESettings], Pair]
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

    def __init__(self, model: Classifier, settings: VAESettings, pair: Pair | None = None) -> None:
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

    def posterior(self, standard: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | w), each [n, k]."""
        mean, log_variance = self.encoder(standard).chunk(2, dim=-1)
        return mean, log_variance.clamp(-10, 4)

    def encode(self, weights: Tensor) -> Tensor:
        """Standardised latents [n, k]."""
        return (self.posterior(self.standardiser.forward(weights))[0] - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor) -> Tensor:
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
        vae = cls(model, VAESettings(**artifact.meta["settings"]))
        vae.load_state_dict(artifact.tensors)
        return vae.eval().requires_grad_(False)


def behaviour_distance(model: Classifier, weights: Tensor, decoded: Tensor, x: Tensor) -> Tensor:
    """KL divergence in nats from each network's class probabilities to its reconstruction's, averaged over images x."""
    with torch.no_grad():
        target = model.forward(weights, x).log_softmax(-1)
    logits = model.forward(decoded, x).log_softmax(-1)
    return F.kl_div(logits, target, log_target=True, reduction="sum") / (len(weights) * len(x))


def vae_loss(vae: VAE, weights: Tensor, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The three terms for a batch of networks of one task: weights, behaviour, kl (scalars, already weighted)."""
    s, standard = vae.settings, vae.standardiser.forward(weights)
    if s.jitter:  # other networks, to be reconstructed as they are
        standard = standard + s.jitter * torch.randn(standard.shape, generator=generator, dtype=standard.dtype)
        weights = vae.standardiser.inverse(standard)
    noise = torch.randn(standard.shape, generator=generator, dtype=standard.dtype)
    mean, log_variance = vae.posterior(standard + s.input_noise * noise)
    # z = mu + sigma * eps
    deviation = (log_variance / 2).exp() if s.kl_loss else s.latent_noise
    z = mean + deviation * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
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
    """Fit a VAE to a zoo; each step takes networks of one task and training images of that task.

    Returns:
        The VAE in evaluation mode and the loss terms at every step.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VAE(zoo.model, settings)
    kind = architecture(settings.architecture)
    standardiser = kind.standardise(zoo.weights, zoo.layout)
    vae.mean.copy_(standardiser.mean)
    vae.scale.copy_(standardiser.scale)
    if kind.begin:
        kind.begin(vae, zoo)
    optimizer = torch.optim.AdamW(vae.parameters(), settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warmup_cosine, steps=settings.steps))
    rows = {name: zoo.task(name).weights for name in zoo.tasks}
    history = []
    for step in tqdm(range(settings.steps), desc="VAE", disable=not progress):
        name = zoo.tasks[step % len(zoo.tasks)]
        weights, images = rows[name], tasks[name].train.x
        batch = weights[torch.randint(len(weights), (settings.batch_size,), generator=generator)]
        probes = images[torch.randint(len(images), (settings.probe_images,), generator=generator)]
        terms = vae_loss(vae, batch, probes, generator)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        history.append({name: float(term.detach()) for name, term in terms.items()})
    standardise_latents(vae.eval().requires_grad_(False), zoo)
    return vae, history


@torch.no_grad()
def start_from_components(vae: VAE, zoo: Zoo) -> None:
    """Make a linear VAE the zoo's principal component analysis, which is the best linear one for weights alone.

    Raises:
        ValueError: if the zoo has too few networks for its latents.
    """
    pca, k = PCA.fit(zoo, vae.latent_dim), vae.latent_dim
    for layer in (vae.encoder, vae.decoder):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    vae.encoder.weight[:k] = pca.components / pca.deviations[:, None]
    nn.init.constant_(vae.encoder.bias[k:], -5.0)  # log-variances: the coordinates are heard over little noise
    vae.decoder.weight.copy_((pca.deviations[:, None] * pca.components).T)


def standardise_latents(vae: VAE, zoo: Zoo) -> None:
    """Unscaled latents are the usual reason why a generator's networks score at chance."""
    latents, _ = vae.posterior(vae.standardiser.forward(zoo.weights))
    scale = architecture(vae.settings.architecture).latent_scale
    mean, std = scale(vae, latents) if scale else (latents.mean(0), latents.std(0))
    vae.latent_mean.copy_(mean)
    vae.latent_std.copy_(std + 1e-3)


ARCHITECTURES = {
    "linear": Architecture(lambda model, s: linear(model.layout.size, s.latent_dim), begin=start_from_components),
    "mlp": Architecture(lambda model, s: perceptrons(model.layout.size, s.latent_dim, s.width)),
}


def architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        ValueError: if none is registered under it.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"there is no architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]

"""A VAE of one linear map each way, which starts as the zoo's principal component analysis and then learns behaviour."""

from __future__ import annotations

import torch
from torch import nn

from flownlib.extensions.pca import PCA
from flownlib.vae import ARCHITECTURES, VAE, Architecture
from flownlib.zoo import Zoo


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


ARCHITECTURES["linear"] = Architecture(
    lambda model, s: (nn.Linear(model.layout.size, 2 * s.latent_dim), nn.Linear(s.latent_dim, model.layout.size)),
    begin=start_from_components,
)

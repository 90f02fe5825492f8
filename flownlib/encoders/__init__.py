"""Weight encoders: weights ↔ latents."""

from flownlib.encoders.base import Encoder, Reconstruction, Standardiser, WeightSpace, reconstruct
from flownlib.encoders.linear import PCA
from flownlib.encoders.vae import VAE, VAESettings, train_vae
from flownlib.encoders.widths import train_on_widths

__all__ = [
    "PCA",
    "VAE",
    "Encoder",
    "Reconstruction",
    "Standardiser",
    "VAESettings",
    "WeightSpace",
    "reconstruct",
    "train_on_widths",
    "train_vae",
]

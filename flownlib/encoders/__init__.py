"""Weight encoders: weights ↔ latents."""

from flownlib.encoders.base import Encoder, Reconstruction, Standardiser, WeightSpace, reconstruct
from flownlib.encoders.linear import PCA
from flownlib.encoders.lora import LoRA, adapt
from flownlib.encoders.vae import VAE, VAESettings, train_vae

__all__ = [
    "PCA",
    "VAE",
    "Encoder",
    "LoRA",
    "Reconstruction",
    "Standardiser",
    "VAESettings",
    "WeightSpace",
    "adapt",
    "reconstruct",
    "train_vae",
]

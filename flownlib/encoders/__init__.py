"""Weight encoders: weights ↔ latents."""

from flownlib.encoders.base import Encoder, Reconstruction, Standardiser, WeightSpace, reconstruct
from flownlib.encoders.linear import PCA
from flownlib.encoders.vae import VAE, VAESettings, train_vae

__all__ = ["PCA", "VAE", "Encoder", "Reconstruction", "Standardiser", "VAESettings", "WeightSpace", "reconstruct", "train_vae"]

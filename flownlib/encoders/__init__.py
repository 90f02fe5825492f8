"""Weight encoders: weights ↔ latents."""

from __future__ import annotations

from pathlib import Path

from flownlib.artifacts import ArtifactError, load_artifact, save_artifact
from flownlib.encoders import base, distilled, graph, linear, lora, networks, vae, widths
from flownlib.encoders.base import Encoder, Reconstruction, Standardiser, WeightSpace, check_layout, reconstruct
from flownlib.encoders.distilled import DistilledLoRA
from flownlib.encoders.linear import PCA
from flownlib.encoders.lora import LoRA, adapt
from flownlib.encoders.vae import VAE, VAESettings, train_vae
from flownlib.encoders.widths import train_on_widths

CODE = (base, linear, networks, graph, vae, widths, lora, distilled)  # what a cached result of this package depends on
KINDS = {"weights": WeightSpace, "pca": PCA, "vae": VAE, "lora": LoRA, "lora_distilled": DistilledLoRA}

__all__ = [
    "CODE",
    "KINDS",
    "PCA",
    "VAE",
    "DistilledLoRA",
    "Encoder",
    "LoRA",
    "Reconstruction",
    "Standardiser",
    "VAESettings",
    "WeightSpace",
    "adapt",
    "check_layout",
    "load",
    "reconstruct",
    "save",
    "train_on_widths",
    "train_vae",
]


def save(encoder: Encoder, path: Path | str) -> None:
    """Write a folder with safetensors and JSON, all or nothing."""
    save_artifact(path, encoder.as_artifact())


def load(path: Path | str) -> Encoder:
    """Read what `save` wrote; it decodes to the same bits.

    Raises:
        ArtifactError: if the folder is missing, damaged or holds no encoder.
    """
    artifact = load_artifact(path)
    if artifact.meta.get("encoder") not in KINDS:
        raise ArtifactError(f"{path} is not an encoder; it says it is {artifact.meta.get('encoder')!r}.")
    return KINDS[artifact.meta["encoder"]].from_artifact(artifact)

"""The settings that `python -m flownlib study tuning` chose for the comparison of notebook 03; a test holds them to its results."""

from __future__ import annotations

from typing import Any

TUNED: dict[str, dict[str, dict[str, Any]]] = {
    "shared": {
        "latent_flow": {"share": 0.5, "predicts": "x_1"},
        "latent_ddpm": {"share": 1.0, "learning_rate": 0.003},
        "p_diff": {"share": 1.0, "learning_rate": 0.001},
        "pca_flow": {"share": 1.0, "width": 512},
        "deep_weight_flow": {"share": 1.0, "scale": 0.01},
        "weight_flow": {"share": 1.0, "width": 512},
        "neuron_flow": {"share": 0.5, "learning_rate": 0.001},
        "kernel_density": {"bandwidth": 0.1},
        "hypernetwork": {"share": 0.5, "learning_rate": 0.001},
    },
    "independent": {
        "latent_flow": {"share": 0.5, "predicts": "x_1"},
        "latent_ddpm": {"share": 1.0, "learning_rate": 0.003},
        "p_diff": {"share": 1.0, "learning_rate": 0.003},
        "pca_flow": {"share": 1.0, "width": 512},
        "deep_weight_flow": {"share": 1.0, "scale": 0.01},
        "weight_flow": {"share": 1.0, "width": 512},
        "neuron_flow": {"share": 0.5, "learning_rate": 0.001},
        "kernel_density": {"bandwidth": 2.0},
        "hypernetwork": {"share": 0.5, "learning_rate": 0.003},
    },
}


def tuned(kind: str, method: str) -> dict[str, Any]:
    """The choice among `recipes_generation.GRID` with the best validation accuracy on that kind of zoo."""
    return TUNED[kind][method]

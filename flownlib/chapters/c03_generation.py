"""The comparison of notebook 03: what is generated from, every method with what it may choose from, and what was chosen."""

from __future__ import annotations

from flownlib.chapters import shared as recipes
from flownlib.chapters.shared import Choice, Setup, vae_of
from flownlib.encoders import WeightSpace
from flownlib.flow import GaussianPrior
from flownlib.generators import FlowGenerator, FreshNetworks

# Notebook 03's small experiments: each differs from the first in one choice. "space" is that of WeightSpace, else the VAE's.
CHOICES: dict[str, Choice] = {
    "plain": {},
    "variance_preserving": {"path": "variance_preserving"},
    "predict_x_1": {"predicts": "x_1"},
    "predict_noise": {"predicts": "noise"},
    "optimal": {"coupling": "optimal"},
    "optimal_within": {"coupling": "optimal_within"},
    "narrow_prior": {"scale": 0.1},
    "wide_prior": {"scale": 3.0},
    "fresh_networks": {"fresh": True},
    "weights": {"space": True},
    "weights_predict_x_1": {"space": True, "predicts": "x_1"},
    "weights_predict_noise": {"space": True, "predicts": "noise"},
}


def chosen_flow(made: Setup, name: str, progress: bool = False) -> FlowGenerator:
    """The flow of that name in CHOICES, not yet fitted."""
    choice = dict(CHOICES[name])
    encoder = WeightSpace.fit(made.zoo.train) if choice.pop("space", False) else vae_of(made)
    scale, fresh = choice.pop("scale", 1.0), choice.pop("fresh", False)
    prior = FreshNetworks(made.zoo.train.model, encoder) if fresh else GaussianPrior(encoder.latent_dim, scale)
    settings = made.settings
    training = recipes.flow_training(settings)
    return FlowGenerator(encoder, name, width=settings.flow_width, training=training, prior=prior, progress=progress, **choice)

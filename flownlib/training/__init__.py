"""Training many small networks at once."""

from flownlib.training.loops import train_many, train_one
from flownlib.training.plan import Training, initial_weights, minibatch_orders, seeded

__all__ = ["Training", "initial_weights", "minibatch_orders", "seeded", "train_many", "train_one"]

"""Which training networks is a network nearest to, whatever the order and the scale of its hidden units?"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from flownlib.encoders import WeightSpace
from flownlib.symmetry import Aligner, match
from flownlib.zoo import Zoo


def distances(x: Tensor, rows: Tensor) -> Tensor:
    """Euclidean distances [n, m] between x [n, p] and rows [m, p]; exact, so that a copy is at 0."""
    return torch.cdist(x, rows, compute_mode="donot_use_mm_for_euclid_dist")


@dataclass(frozen=True)
class Neighbours:
    """The k nearest training networks of n networks, nearest first: distances [n, k], and rows of the training zoo [n, k]."""

    distance: Tensor
    row: Tensor


@dataclass(frozen=True)
class Neighbourhood:
    """The training networks of one task, in canonical form, and the space in which distances to them are measured.

    aligner: what gave them that form; without one, weights are compared as they are.
    """

    train: Zoo
    space: WeightSpace
    aligner: Aligner | None = None

    def canonical(self, weights: Tensor) -> Tensor:
        """The same networks [n, p], balanced and matched to the task's reference as the zoo was."""
        if self.aligner is None:
            return weights
        table = pd.DataFrame({"task": [self.train.tasks[0]] * len(weights)})
        return self.aligner(Zoo(weights, table, self.train.model), restarts=3).weights

    def matched(self, weights: Tensor, row: int) -> Tensor:
        """Networks [n, p] with their hidden units in the order that suits one training network best."""
        if self.aligner is None:
            return weights
        return match(self.train.model, weights, self.train.weights[row], torch.Generator(), restarts=1)

    def nearest(self, weights: Tensor, k: int = 3) -> Neighbours:
        """The k nearest training networks of networks in canonical form [n, p], in standardised weights.

        Matching to a common reference can end in another order than the training network's own, and a copy would then
        look new; so each network is matched once more to the k that seem nearest, and the smaller distance counts.
        """
        rows = self.space.encode(self.train.weights)
        distance, row = distances(self.space.encode(weights), rows).topk(min(k, len(rows)), largest=False)
        for candidate in row.unique().tolist():
            n, place = (row == candidate).nonzero(as_tuple=True)
            again = (self.space.encode(self.matched(weights[n], candidate)) - rows[candidate]).norm(dim=1)
            distance[n, place] = torch.minimum(distance[n, place], again)
        order = distance.argsort(1)
        return Neighbours(distance.gather(1, order), row.gather(1, order))

"""Couplings: which point of noise is sent to which point of data within a batch."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

COUPLINGS = ("independent", "optimal", "optimal_within")


def optimal_coupling(x_0: Tensor, x_1: Tensor, groups: Tensor | None = None) -> Tensor:
    """Which row of x_0 goes to each row of x_1 so that the summed squared distance is least (minibatch OT, Tong et al. 2024).

    Args:
        groups: int [n]; if given, pairs are only exchanged within a group (e.g. a task), which leaves the prior
            independent of the context. Coupling across contexts does not, and harms a conditional flow.

    Returns:
        int64 [n], to be used as x_0[index].
    """
    cost = torch.cdist(x_1.flatten(1), x_0.flatten(1)).square()
    if groups is not None:
        cost = cost + (groups[:, None] != groups[None]) * (cost.max() + 1) * len(cost)
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    index = torch.empty(len(x_1), dtype=torch.int64)
    index[torch.as_tensor(rows)] = torch.as_tensor(columns)
    return index.to(x_1.device)


def couple(coupling: str, x_0: Tensor, x_1: Tensor, groups: Tensor) -> Tensor:
    """x_0 in the order in which the named coupling pairs it with x_1; `groups` int [n] are the tasks of x_1.

    Raises:
        ValueError: for a coupling that is not among COUPLINGS.
    """
    if coupling not in COUPLINGS:
        raise ValueError(f"there is no coupling {coupling!r}; choose one of {', '.join(COUPLINGS)}")
    if coupling == "independent":
        return x_0
    return x_0[optimal_coupling(x_0, x_1, groups if coupling == "optimal_within" else None)]

"""Probability paths: how a point of noise x_0 becomes a point of data x_1, and what a network may predict along the way.

Every path here mixes its ends, x_t = alpha(t) x_1 + beta(t) x_0 (+ sigma eps), so that end points, noise and velocity are
one another's linear functions at a given x_t. Shapes: x [n, ...], t [n] in [0, 1].
Sources: Lipman et al. 2023, "Flow matching for generative modeling"; Albergo & Vanden-Eijnden 2023, "Building normalizing
flows with stochastic interpolants"; Tong et al. 2024, "Improving and generalizing flow-based generative models".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from flownlib.checks import check_context, check_count, check_real
from flownlib.encoders import Encoder
from flownlib.flow import PATHS, FlowLog, FlowTraining, GaussianPrior, Prior, VelocityMLP, VelocityNetwork, train_flow
from flownlib.solvers import Trajectory, guided, integrate, log_likelihood
from flownlib.zoo import Zoo

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


@dataclass(frozen=True)
class FreshNetworks:
    """Latents of freshly initialised networks (Kaiming-uniform, as torch does it): where training itself starts.

    Args:
        model: the zoo's classifier, which has `initialise(n, generator)`. encoder: the flow's.
    """

    model: object
    encoder: Encoder

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points [n, k]."""
        return self.encoder.encode(self.model.initialise(n, generator))


Contexts = Mapping[str, Tensor]  # task name → contexts y [draws, c], one for each support set drawn from the task


class Generator(Protocol):
    """Learns from a zoo whose tasks are described by contexts; samples weights for a context it is given."""

    name: str

    def fit(self, zoo: Zoo, contexts: Contexts, seed: int) -> Self:
        """Learn from a zoo in canonical form; returns itself."""

    def sample(self, n: int, y: Tensor, generator: torch.Generator) -> Tensor:
        """n weight vectors [n, p] for one context y [c]."""


def task_numbers(zoo: Zoo) -> Tensor:
    """Each network's task as its place in `zoo.tasks`, int64 [n]."""
    place = {task: i for i, task in enumerate(zoo.tasks)}
    return torch.tensor([place[task] for task in zoo.table["task"]])


def variant(generator: Generator, **changes: Any) -> Generator:
    """The same fitted generator with other fields, e.g. another number of solver steps; the given one is not changed."""
    other = copy(generator)
    for name, value in changes.items():
        if not hasattr(generator, name):
            raise ValueError(f"{generator.name} has no field {name!r} to change")
        setattr(other, name, value)
    return other


@dataclass(frozen=True)
class StandardContexts:
    """Contexts as a network sees them: draws [tasks, draws, c], each number standardised over all of them."""

    draws: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, contexts: Contexts, tasks: Sequence[str]) -> StandardContexts:
        """Standardise the contexts of the tasks, in their order.

        Raises:
            ValueError: as `draws_of`, or if there are less than two contexts in all.
        """
        draws = torch.stack(draws_of(contexts, tasks))
        if draws.shape[0] * draws.shape[1] < 2:
            raise ValueError("contexts can be standardised only if there are two of them or more; draw another support set")
        mean, std = draws.mean(dim=(0, 1)), draws.std(dim=(0, 1)).clamp(min=1e-3)
        return cls((draws - mean) / std, mean, std)

    @property
    def dim(self) -> int:
        """c."""
        return self.draws.shape[-1]

    def standardise(self, y: Tensor) -> Tensor:
        """Any one context [c] in the same units.

        Raises:
            ValueError: for a context of another size than those of `fit`, which would be broadcast, or not finite.
        """
        check_context(y, self.dim)
        return (y - self.mean) / self.std

    def repeated(self, y: Tensor, n: int) -> Tensor:
        """One context [c], standardised, for n networks: [n, c]. Refuses less than one, and what `standardise` refuses."""
        check_count("the number of networks", n)
        return self.standardise(y).expand(n, -1)

    def draw(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        """A random context [n, c] of each of the tasks int64 [n]."""
        return self.draws[tasks, torch.randint(self.draws.shape[1], tasks.shape, generator=generator)]


def draws_of(contexts: Contexts, tasks: Sequence[str]) -> list[Tensor]:
    """Each task's contexts [draws, c], in the order of the tasks.

    Raises:
        ValueError: if a task has none, or they are not finite, or differ in size.
    """
    missing = [task for task in tasks if task not in contexts]
    if missing:
        raise ValueError(f"a generator needs contexts of every task, and there are none of {', '.join(missing)}")
    for task in tasks:
        check_real(f"the contexts of {task!r}", contexts[task], contexts[tasks[0]].shape[-1:])
    return [contexts[task] for task in tasks]


def mean_contexts(contexts: Contexts, tasks: Sequence[str]) -> Contexts:
    """The mean over each task's support sets: y [c] by task, by which an unseen context is recognised."""
    return {task: draws.mean(0) for task, draws in zip(tasks, draws_of(contexts, tasks), strict=True)}


def others(contexts: Contexts) -> Contexts:
    """Each task with the contexts of the next one, the last with those of the first: the wrong ones, as a control."""
    names = list(contexts)
    return {name: contexts[following] for name, following in zip(names, [*names[1:], names[0]], strict=True)}


def nearest_task(centres: Contexts, y: Tensor) -> str:
    """The training task whose mean context [c] is nearest to y [c]; another size would be broadcast, and is refused."""
    check_context(y, *next(iter(centres.values())).shape)
    return min(centres, key=lambda name: float((centres[name] - y).norm()))


def velocity_perceptron(generator: FlowGenerator, zoo: Zoo) -> VelocityMLP:
    """The default velocity network: a residual perceptron on the encoder's latents."""
    return VelocityMLP(
        generator.encoder.latent_dim,
        generator.contexts.dim,
        generator.width,
        predicts=generator.predicts,
        path=PATHS[generator.path](),
        context=deepcopy(generator.conditioner),
    )


@dataclass
class FlowGenerator:
    """Samples x_0 from a prior, carries it along v(x, t; y) to x_1, decodes x_1 to weights (FLoWN's recipe).

    With `WeightSpace` as the encoder the same code flows through the weights themselves.

    Args:
        predicts: one of `flow.PREDICTIONS`. path: one of `flow.PATHS`. coupling: one of `flow.COUPLINGS`. prior: a standard
            Gaussian by default. network: makes the velocity network from this generator and the zoo, a perceptron by default.
        conditioner: a module that reads contexts y [n, c] into [n, width], in place of a perceptron; trained with the flow.
    """

    encoder: Encoder
    name: str = "latent_flow"
    predicts: str = "velocity"
    width: int = 256
    training: FlowTraining = FlowTraining()
    method: str = "euler"
    steps: int = 4
    guidance: float = 1.0
    path: str = "straight"
    coupling: str = "independent"
    prior: Prior | None = None
    network: Callable[[FlowGenerator, Zoo], VelocityNetwork] = velocity_perceptron
    conditioner: nn.Module | None = None
    progress: bool = False
    log: FlowLog = field(default_factory=FlowLog, repr=False)

    def fit(self, zoo: Zoo, contexts: Contexts, seed: int) -> Self:
        """Train the velocity network on the zoo's latents; each network is shown with a random context of its task."""
        latents, task_of = self.encoder.encode(zoo.weights), task_numbers(zoo)
        self.contexts = StandardContexts.fit(contexts, zoo.tasks)
        self.prior = self.prior or GaussianPrior(latents.shape[1])

        def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            rows = torch.randint(len(latents), (n,), generator=generator)
            x_1, tasks = latents[rows], task_of[rows]
            x_0 = couple(self.coupling, self.prior.sample(n, generator), x_1, tasks)
            return x_0, x_1, self.contexts.draw(tasks, generator)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.network(self, zoo)
        generator = torch.Generator().manual_seed(seed)
        self.velocity, self.log = train_flow(
            network,
            draw,
            self.training,
            generator,
            progress=self.progress,
            dispersion=lambda velocity: self.dispersion(velocity, latents, task_of),
        )
        return self

    @torch.no_grad()
    def dispersion(self, velocity: VelocityNetwork, latents: Tensor, task_of: Tensor, n: int = 32) -> float:
        """How far samples lie from their task's mean sample, over the same of the zoo's latents; mean over tasks."""
        ratios = []
        for task, y in enumerate(self.contexts.draws[:, 0]):
            x_0 = self.prior.sample(n, torch.Generator().manual_seed(task))
            x_1 = integrate(velocity, x_0, y.expand(n, -1), self.method, self.steps).x_1
            ratios.append(x_1.std(0).norm() / latents[task_of == task].std(0).norm())
        return float(torch.stack(ratios).mean())

    @torch.no_grad()
    def trajectory(
        self, x_0: Tensor, y: Tensor, steps: int | None = None, method: str | None = None, guidance: float | None = None
    ) -> Trajectory:
        """The latents' way from x_0 [n, k] under one context y [c]; what is not given is the generator's own."""
        context = self.contexts.repeated(y, len(x_0))
        field = guided(self.velocity, self.guidance if guidance is None else guidance)
        return integrate(field, x_0, context, method or self.method, self.steps if steps is None else steps)

    def sample(self, n: int, y: Tensor, generator: torch.Generator) -> Tensor:
        """n weight vectors [n, p]."""
        check_count("the number of networks", n)
        with torch.no_grad():
            return self.encoder.decode(self.trajectory(self.prior.sample(n, generator), y).x_1)

    def log_likelihood(self, weights: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Log-density in nats of the networks' latents [n] under one context y [c]; of latents, not of weights.

        Raises:
            ValueError: if the prior has no density.
        """
        if not hasattr(self.prior, "log_density"):
            raise ValueError(f"likelihoods need a prior with a density, and {type(self.prior).__name__} has none")
        context = self.contexts.repeated(y, len(weights))
        latents = self.encoder.encode(weights)
        return log_likelihood(self.velocity, latents, self.prior.log_density, context, generator=generator)

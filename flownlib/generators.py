"""One protocol for everything that samples weights, and FLoWN's generator: a conditional flow in an encoder's latents.

Source: Saragih et al. 2025, "Flow to learn: flow matching on neural network parameters".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from flownlib.context import Contexts, StandardContexts
from flownlib.encoders import Encoder
from flownlib.flow import (
    PATHS,
    GaussianPrior,
    Prior,
    StraightPath,
    Trajectory,
    VelocityMLP,
    VelocityNetwork,
    flow_matching_loss,
    guided,
    integrate,
)
from flownlib.optimisation import minimise, moving_average, seeded_module
from flownlib.weights import Int, Latents, Weights, check_count, drawn
from flownlib.zoo import Zoo

_COUPLINGS = ("independent", "optimal", "optimal_within")
Batches = Callable[[int, torch.Generator], tuple[Tensor, Tensor, Tensor | None]]  # batch size → x_0, x_1, c


class Generator(Protocol):
    """Learns from a zoo whose tasks are described by contexts; samples weights for a condition it is given."""

    name: str

    def fit(self, zoo: Zoo, contexts: Contexts, seed: int) -> Self:
        """Itself, having learned from a zoo in canonical form."""

    def sample(self, n: int, c: Tensor, generator: torch.Generator) -> Weights:
        """n weight vectors [n, p] for one condition c [c]."""


def task_numbers(zoo: Zoo) -> Int[Tensor, " n"]:
    """Each network's task as its place in `zoo.tasks`, int64 [n]."""
    place = {task: i for i, task in enumerate(zoo.tasks)}
    return torch.tensor([place[task] for task in zoo.table["task"]], device=zoo.weights.device)


def optimal_coupling(x_0: Tensor, x_1: Tensor, groups: Tensor | None = None) -> Int[Tensor, " n"]:
    """Which row of x_0 goes to each row of x_1 so that the summed squared distance is least, int64 [n], as x_0[index].

    Source: minibatch optimal transport, Tong et al. 2024.

    Args:
        x_0: [n, ...].
        x_1: [n, ...].
        groups: int [n]; if given, pairs are only exchanged within a group (e.g. a task), which leaves the prior
            independent of the condition. Coupling across conditions does not, and harms a conditional flow.
    """
    cost = torch.cdist(x_1.flatten(1), x_0.flatten(1)).square()
    if groups is not None:
        cost = cost + (groups[:, None] != groups[None]) * (cost.max() + 1) * len(cost)
    _, columns = linear_sum_assignment(cost.cpu().numpy())  # of as many rows, in their order
    return torch.as_tensor(columns, device=x_1.device)


def couple(coupling: str, x_0: Tensor, x_1: Tensor, groups: Tensor) -> Tensor:
    """x_0 [n, ...] in the order in which the named coupling pairs it with x_1; `groups` int [n] are the tasks of x_1.

    Raises:
        ValueError: for a coupling that is not known.
    """
    if coupling not in _COUPLINGS:
        raise ValueError(f"there is no coupling {coupling!r}; choose one of {', '.join(_COUPLINGS)}")
    if coupling == "independent":
        return x_0
    return x_0[optimal_coupling(x_0, x_1, groups if coupling == "optimal_within" else None)]


@dataclass(frozen=True)
class FlowTraining:
    """How a velocity network is trained with AdamW."""

    steps: int = 800
    batch_size: int = 128
    learning_rate: float = 1e-3  # the highest
    weight_decay: float = 1e-4
    ema: float = 0.998  # decay of the averaged parameters, in [0, 1)
    context_dropout: float = 0.15  # share of conditions hidden, for guidance, in [0, 1]
    look_every: int = 200  # steps between two measurements of the samples' dispersion

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "look_every"):
            check_count(f"{name} of a flow's training", getattr(self, name))


class CollapseWarning(UserWarning):
    """A flow's samples lie much closer together than the data they were trained on."""


@dataclass
class FlowLog:
    """What was seen during training: the loss at every step, and (step, dispersion of samples over that of the data)."""

    losses: list[float] = field(default_factory=list)
    dispersions: list[tuple[int, float]] = field(default_factory=list)


def train_flow(
    model: VelocityNetwork,
    batches: Batches,
    training: FlowTraining,
    generator: torch.Generator,
    path: StraightPath | None = None,
    progress: bool = True,
    dispersion: Callable[[nn.Module], float] | None = None,
) -> tuple[nn.Module, FlowLog]:
    """The moving average of the network trained on the conditional flow-matching loss, and what was seen on the way.

    Warns of a collapse: a falling loss can hide that all samples become one.

    Args:
        model: a velocity network, trained in place.
        batches: (batch size, generator) → x_0, x_1, c of one batch.
        training: steps, rates and shares.
        generator: of batches, times and dropped conditions.
        path: the model's own if None.
        progress: show a bar.
        dispersion: of samples of a velocity network, over the data's; it must not use `generator`, so that looking changes
            nothing.
    """
    path = path or model.path
    average, log = moving_average(model, training.ema), FlowLog()

    def loss() -> Tensor:
        x_0, x_1, c = batches(training.batch_size, generator)
        uniform = drawn(torch.rand, (2, len(x_1)), generator, x_1)
        condition_mask = None if c is None else uniform[1] >= training.context_dropout
        return flow_matching_loss(model, path.sample(x_0, x_1, uniform[0], generator), c, condition_mask)

    def look(step: int) -> None:
        average.update_parameters(model)
        if dispersion and step % training.look_every == 0:
            log.dispersions.append((step, dispersion(average.module)))

    steps, rate, decay = training.steps, training.learning_rate, training.weight_decay
    log.losses = minimise(loss, model, steps, rate, "flow", decay, after_step=look, progress=progress)
    if log.dispersions and log.dispersions[-1][1] < 0.5:
        collapse = f"the samples' dispersion is {log.dispersions[-1][1]:.2f} of the data's"
        advice = "train for fewer steps, or on more networks, if you want them to differ"
        warnings.warn(f"{collapse}; {advice}", CollapseWarning, stacklevel=2)
    return average.module.eval(), log


def _velocity_perceptron(generator: FlowGenerator, zoo: Zoo) -> VelocityMLP:
    """The default velocity network: a residual perceptron on the encoder's latents."""
    sizes = generator.encoder.latent_dim, generator.contexts.dim, generator.width
    conditioner = generator.conditioner and generator.conditioner(generator.width)
    return VelocityMLP(*sizes, predicts=generator.predicts, path=PATHS[generator.path](), context=conditioner)


@dataclass
class FlowGenerator:
    """Samples x_0 from a prior, carries it along v(x, t, c) to x_1, decodes x_1 to weights (FLoWN's recipe).

    With `WeightSpace` as the encoder the same code flows through the weights themselves.
    """

    encoder: Encoder  # fitted to the zoo's layout
    name: str = "latent_flow"
    predicts: str = "velocity"  # one of `flow.PREDICTIONS`
    width: int = 256  # of the velocity network
    training: FlowTraining = FlowTraining()
    method: str = "euler"  # one of `flow.SOLVERS`
    steps: int = 4  # of the solver, at least 1
    guidance: float = 1.0  # weight of classifier-free guidance, 1 for none
    path: str = "straight"  # one of `flow.PATHS`
    coupling: str = "independent"  # independent, optimal or optimal_within
    prior: Prior | None = None  # a standard Gaussian by default
    network: Callable[[FlowGenerator, Zoo], VelocityNetwork] = _velocity_perceptron
    conditioner: Callable[[int], nn.Module] | None = None  # width → reads conditions c [n, c] as [n, width]; trained with it
    progress: bool = False
    log: FlowLog = field(default_factory=FlowLog, repr=False)

    def fit(self, zoo: Zoo, contexts: Contexts, seed: int) -> Self:
        """Itself, its velocity network trained on the zoo's latents, each shown with a random context of its task."""
        latents, task_of = self.encoder.encode(zoo.weights), task_numbers(zoo)
        self.contexts = StandardContexts.fit(contexts, zoo.tasks)
        self.prior = prior = self.prior or GaussianPrior(latents.shape[1])

        def batches(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            rows = torch.randint(len(latents), (n,), generator=generator)
            x_1, tasks = latents[rows], task_of[rows]
            x_0 = couple(self.coupling, prior.sample(n, generator).to(x_1), x_1, tasks)
            return x_0, x_1, self.contexts.draw(tasks, generator)

        dispersion = lambda velocity: self.dispersion(velocity, latents, task_of)
        network = seeded_module(seed, lambda: self.network(self, zoo)).to(latents.device)
        generator = torch.Generator().manual_seed(seed)
        self.velocity, self.log = train_flow(
            network, batches, self.training, generator, progress=self.progress, dispersion=dispersion
        )
        return self

    @torch.no_grad()
    def dispersion(self, velocity: nn.Module, latents: Tensor, task_of: Tensor, n: int = 32) -> float:
        """How far n samples lie from their task's mean sample, over the same of the zoo's latents [n, k]; mean over tasks."""
        assert self.prior
        ratios = []
        for task, c in enumerate(self.contexts.draws[:, 0]):
            x_0 = self.prior.sample(n, torch.Generator().manual_seed(task)).to(latents)
            x_1 = integrate(velocity, x_0, c.expand(n, -1), self.method, self.steps).x_1
            ratios.append(x_1.std(0).norm() / latents[task_of == task].std(0).norm())
        return float(torch.stack(ratios).mean())

    @torch.no_grad()
    def trajectory(
        self, x_0: Latents, c: Tensor, steps: int | None = None, method: str | None = None, guidance: float | None = None
    ) -> Trajectory:
        """The latents' trajectories from x_0 [n, k] under one condition c [c]; what is not given is the generator's own."""
        conditions = self.contexts.repeated(c, len(x_0))
        velocity = guided(self.velocity, self.guidance if guidance is None else guidance)
        return integrate(velocity, x_0.to(c), conditions, method or self.method, self.steps if steps is None else steps)

    def sample(self, n: int, c: Tensor, generator: torch.Generator) -> Weights:
        """n weight vectors [n, p] for one condition c [c]."""
        check_count("the number of networks", n)
        assert self.prior
        with torch.no_grad():
            return self.encoder.decode(self.trajectory(self.prior.sample(n, generator), c).x_1)

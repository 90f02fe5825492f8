"""The study of the choices a flow offers: path, prediction, coupling, prior, space, context; accuracy by solver steps."""

from __future__ import annotations

from flownlib.chapters.shared_methods import Setup, variant
from flownlib.context import Contexts
from flownlib.evaluation import evaluate
from flownlib.flow import Trajectory
from flownlib.generators import FlowGenerator
from flownlib.optimisation import seeded

STEPS = (1, 2, 4, 16)
SAMPLES = 24  # networks a task


def straightness(trajectory: Trajectory) -> float:
    """Distance from first to last point over the length of the way, mean over trajectories: 1 is a straight line."""
    length = trajectory.x.diff(dim=0).norm(dim=-1).sum(0)
    return float(((trajectory.x[-1] - trajectory.x[0]).norm(dim=-1) / length).mean())


def flow_records(flow: FlowGenerator, name: str, made: Setup, contexts: Contexts, steps: int = 4) -> list[dict]:
    """Raw records, one value a task: what samples after so many solver steps are worth, and how straight their ways are."""
    chosen, rows = variant(flow, steps=steps), []
    for number, (task, reference) in enumerate(made.references.items()):
        x_0 = flow.prior.sample(SAMPLES, seeded(made.seed, number))
        trajectory = chosen.trajectory(x_0, contexts[task][0])
        measures = evaluate(flow.encoder.decode(trajectory.x_1), reference).measures()
        rows.append({q: measures[q] for q in ("test_accuracy_mean", "spread")} | {"straightness": straightness(trajectory)})
    return [
        {"quantity": quantity, "method": name, "setting": {"steps": steps}, "values": [row[quantity] for row in rows]}
        for quantity in rows[0]
    ]

"""The study of the choices a flow offers: path, prediction, coupling, prior, space, context; accuracy by solver steps."""

from __future__ import annotations

import torch

from flownlib.chapters import shared as recipes
from flownlib.chapters.c03_generation import CHOICES, chosen_flow
from flownlib.chapters.shared_methods import Setup, caml_flow, setup, variant, wrong_contexts
from flownlib.context import Contexts
from flownlib.evaluation import evaluate
from flownlib.flow import Trajectory
from flownlib.generators import FlowGenerator
from flownlib.harness.profiles import Profile
from flownlib.optimisation import seeded

STEPS = (1, 2, 4, 16)
SAMPLES = 24  # networks a task


def straightness(trajectory: Trajectory) -> float:
    """Distance from first to last point over the length of the way, mean over trajectories: 1 is a straight line."""
    length = trajectory.x.diff(dim=0).norm(dim=-1).sum(0)
    return float(((trajectory.x[-1] - trajectory.x[0]).norm(dim=-1) / length).mean())


def asked(flow: FlowGenerator, made: Setup, contexts: Contexts, steps: int) -> list[dict[str, float]]:
    """What samples of each task are worth when the flow takes so many steps, and how straight their ways are."""
    chosen, rows = variant(flow, steps=steps), []
    for number, (name, reference) in enumerate(made.references.items()):
        x_0 = flow.prior.sample(SAMPLES, seeded(made.seed, number))
        trajectory = chosen.trajectory(x_0, contexts[name][0])
        measures = evaluate(flow.encoder.decode(trajectory.x_1), reference).measures()
        rows.append({q: measures[q] for q in ("test_accuracy_mean", "spread")} | {"straightness": straightness(trajectory)})
    return rows


def run_seed(seed: int, settings: Profile) -> list[dict]:
    """Raw records of one seed on the zoo of independent seeds, by choice and solver steps; contexts at four steps only."""
    torch.set_num_threads(1)
    made, records = setup(settings, seed, "independent"), []

    def add(flow: FlowGenerator, name: str, contexts: Contexts, steps: int) -> None:
        rows = asked(flow, made, contexts, steps)
        for quantity in rows[0]:
            values = [row[quantity] for row in rows]
            records.append({"quantity": quantity, "method": name, "setting": {"steps": steps}, "values": values})

    for name in CHOICES:
        flow = chosen_flow(made, name).fit(made.zoo.train, made.contexts, seed)
        for steps in STEPS:
            add(flow, name, made.fresh, steps)
        if name == "plain":
            for weight in (0.0, 2.0):
                add(variant(flow, guidance=weight), f"guidance_{weight:g}", made.fresh, 4)
            add(flow, "wrong_context", wrong_contexts(made.fresh), 4)
    pixels, shot = recipes.image_features(made.tasks), settings.support_per_class
    contexts = recipes.support_contexts(pixels, made.tasks, shot, 32, seed)
    fresh = recipes.support_contexts(pixels, made.tasks, shot, 1, 1_000 + seed)
    add(chosen_flow(made, "plain").fit(made.zoo.train, contexts, seed), "pixel_context", fresh, 4)
    add(caml_flow(made, {}).fit(made.zoo.train, made.support, seed), "caml_context", made.fresh_support, 4)
    return records

"""The comparison of notebook 03: what is generated from, every method with what it may choose from, and what was chosen."""

from __future__ import annotations

import time

import pandas as pd

from flownlib.baselines import all_nulls
from flownlib.chapters import shared as recipes
from flownlib.chapters.shared_methods import GRID, Choice, Setup, caml_flow, fitted, make, tuned, vae_of
from flownlib.encoders import WeightSpace
from flownlib.evaluation import MEASURES, compare, judge
from flownlib.flow import GaussianPrior
from flownlib.generators import FlowGenerator, FreshNetworks, Generator, others, variant
from flownlib.optimisation import seeded
from flownlib.scoring import score

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


FEW = 16  # samples a task to choose settings by


def validation_accuracy(generator: Generator, made: Setup) -> list[float]:
    """Mean accuracy of a few samples on each task's validation images."""
    found = []
    for number, (name, task) in enumerate(made.tasks.items()):
        weights = generator.sample(FEW, made.contexts[name][0], seeded(made.seed, number))
        found.append(float(score(made.zoo.train.model, weights, task.validation.x, task.validation.y).accuracy.mean()))
    return found


def contenders(made: Setup) -> tuple[list[Generator], dict[str, float]]:
    """Every method with its chosen settings, its variants and every null, fitted; and the seconds that each fit took."""
    timed = {method: fitted(make(method, made, tuned(made.kind, method)), made) for method in GRID}
    timed |= {null.name: fitted(null, made) for null in all_nulls()}
    methods, seconds = {m: g for m, (g, _) in timed.items()}, {m: s for m, (_, s) in timed.items()}
    flow_, diffusion_ = methods["latent_flow"], methods["latent_ddpm"]
    variants = [
        variant(flow_, name="latent_flow_1_step", steps=1),
        variant(flow_, name="latent_flow_unconditional", guidance=0.0),
        variant(diffusion_, name="latent_ddim", steps=50, eta=0.0),
    ]
    return [*methods.values(), *variants], seconds


def speed(generator: Generator, made: Setup, n: int = 256) -> float:
    """Networks generated in a second of the processor, decoding included."""
    y = next(iter(made.fresh.values()))[0]
    start = time.process_time()
    generator.sample(n, y, seeded(made.seed))
    return n / (time.process_time() - start)


def run_kind(made: Setup) -> list[dict]:
    """Raw records of one seed and one kind of zoo."""
    n, references, held_out = made.settings.samples_per_task, made.references, made.zoo.held_out
    generators, seconds = contenders(made)
    table = compare(generators, references, made.fresh, held_out, n, made.seed)
    # the same sets of images, read by a transformer
    caml = caml_flow(made, tuned(made.kind, "latent_flow")).fit(made.zoo.train, made.support, made.seed)
    more = [compare([caml], references, made.fresh_support, held_out, n, made.seed)]
    # each task's samples are asked for with the context of the next one
    wrong = variant(generators[0], name="latent_flow_wrong_context")
    more.append(compare([wrong], references, others(made.fresh), held_out, n, made.seed))
    table = pd.concat([table, *(other[other["method"] != "zoo_held_out"] for other in more)])
    best = {name: judge(made.zoo.train.task(name).weights, reference).measures() for name, reference in references.items()}
    records = records_of(table, {name: row["test_accuracy_best_by_validation"] for name, row in best.items()}, made)
    setting = {"zoo": made.kind, "networks": n}
    add = lambda quantity, method, value: records.append(
        {"quantity": quantity, "method": method, "setting": setting, "values": [float(value)]}
    )
    for generator in generators:
        add("networks_per_second", generator.name, speed(generator, made))
        if hasattr(generator, "steps"):
            add("solver_steps", generator.name, generator.steps)
        if generator.name in seconds:
            add("seconds_fit", generator.name, seconds[generator.name])
    return records


def records_of(table: pd.DataFrame, best: dict[str, float], made: Setup) -> list[dict]:
    """Raw records of a comparison's table: `MEASURES`, and two paired differences in accuracy.

    `accuracy_gain` is over the mean of held-out networks of the same task; `best_gain` over the training network that is
    best by validation.
    """
    held_out = table[table["method"] == "zoo_held_out"].set_index("task")["test_accuracy_mean"]
    setting, records = {"zoo": made.kind, "networks": made.settings.samples_per_task}, []
    for method, rows in table.groupby("method", sort=False):
        values = {measure: rows[measure].tolist() for measure in MEASURES}
        values["accuracy_gain"] = (rows["test_accuracy_mean"].to_numpy() - held_out[rows["task"]].to_numpy()).tolist()
        chosen = rows["test_accuracy_best_by_validation"].to_numpy()
        values["best_gain"] = (chosen - rows["task"].map(best).to_numpy()).tolist()
        records += [{"quantity": q, "method": method, "setting": setting, "values": v} for q, v in values.items()]
    return records

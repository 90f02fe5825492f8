"""The comparison of notebook 03: what is generated from, every method with what it may choose from, and what was chosen."""

from __future__ import annotations

import time

import pandas as pd

from flownlib.baselines import all_baselines
from flownlib.chapters import shared
from flownlib.chapters.records import Records
from flownlib.chapters.shared_methods import (
    GRID,
    Choice,
    Setup,
    caml_flow,
    fitted,
    make,
    tuned,
    vae_of,
    variant,
    wrong_contexts,
)
from flownlib.encoders import WeightSpace
from flownlib.evaluation import MEASURES, compare, evaluate
from flownlib.extensions.fresh_networks import FreshNetworks
from flownlib.flow import GaussianPrior
from flownlib.generators import FlowGenerator, Generator
from flownlib.harness import results
from flownlib.harness.profiles import Profile
from flownlib.optimisation import seeded
from flownlib.scoring import score
from flownlib.statistics import mean_interval

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


def chosen_flow(experiment: Setup, name: str, progress: bool = False) -> FlowGenerator:
    """The flow of that name in CHOICES, not yet fitted."""
    choice = dict(CHOICES[name])
    encoder = WeightSpace.fit(experiment.zoo.train) if choice.pop("space", False) else vae_of(experiment)
    scale, fresh = choice.pop("scale", 1.0), choice.pop("fresh", False)
    settings, train = experiment.settings, experiment.zoo.train
    gaussian = GaussianPrior(encoder.latent_dim, scale)
    prior = FreshNetworks(train.model, encoder, train.weights.device) if fresh else gaussian
    training = shared.flow_training(settings)
    return FlowGenerator(encoder, name, width=settings.flow_width, training=training, prior=prior, progress=progress, **choice)


FEW = 16  # samples a task to choose settings by


def validation_accuracy(generator: Generator, experiment: Setup) -> list[float]:
    """Mean accuracy of a few samples on each task's validation images."""
    accuracies = []
    for number, (name, task) in enumerate(experiment.tasks.items()):
        weights = generator.sample(FEW, experiment.contexts[name][0], seeded(experiment.seed, number))
        accuracies.append(
            float(score(experiment.zoo.train.model, weights, task.validation.x, task.validation.y).accuracy.mean())
        )
    return accuracies


def contenders(experiment: Setup) -> tuple[list[Generator], dict[str, float]]:
    """Every method with its chosen settings, its variants and every null, fitted; and the seconds that each fit took."""
    timed = {method: fitted(make(method, experiment, tuned(experiment.kind, method)), experiment) for method in GRID}
    timed |= {null.name: fitted(null, experiment) for null in all_baselines()}
    methods = {name: generator for name, (generator, _) in timed.items()}
    variants = [
        variant(methods["latent_flow"], name="latent_flow_1_step", steps=1),
        variant(methods["latent_flow"], name="latent_flow_unconditional", guidance=0.0),
        variant(methods["latent_ddpm"], name="latent_ddim", steps=50, eta=0.0),
    ]
    return [*methods.values(), *variants], {name: seconds for name, (_, seconds) in timed.items()}


def speed(generator: Generator, experiment: Setup) -> float:
    """Networks generated in a second of the processor, decoding included."""
    n, y = 256, next(iter(experiment.fresh.values()))[0]
    start = time.process_time()
    generator.sample(n, y, seeded(experiment.seed))
    return n / (time.process_time() - start)


def run_kind(experiment: Setup) -> list[dict]:
    """Raw records of one seed and one kind of zoo."""
    n, references, held_out = experiment.settings.samples_per_task, experiment.references, experiment.zoo.held_out
    generators, seconds = contenders(experiment)
    table = compare(generators, references, experiment.fresh, held_out, n, experiment.seed)
    # the same sets of images, read by a transformer
    caml = caml_flow(experiment, tuned(experiment.kind, "latent_flow")).fit(
        experiment.zoo.train, experiment.support, experiment.seed
    )
    more = [compare([caml], references, experiment.fresh_support, held_out, n, experiment.seed)]
    # each task's samples are asked for with the context of the next one
    wrong = variant(generators[0], name="latent_flow_wrong_context")
    more.append(compare([wrong], references, wrong_contexts(experiment.fresh), held_out, n, experiment.seed))
    table = pd.concat([table, *(other[other["method"] != "zoo_held_out"] for other in more)])
    best = {
        name: evaluate(experiment.zoo.train.task(name).weights, reference).measures() for name, reference in references.items()
    }
    records = records_of(table, {name: row["test_accuracy_best_by_validation"] for name, row in best.items()}, experiment)
    for generator in generators:
        records.add("networks_per_second", generator.name, [speed(generator, experiment)])
        if hasattr(generator, "steps"):
            records.add("solver_steps", generator.name, [float(generator.steps)])
        if generator.name in seconds:
            records.add("seconds_fit", generator.name, [seconds[generator.name]])
    return records


def records_of(table: pd.DataFrame, best: dict[str, float], experiment: Setup) -> Records:
    """Raw records of a comparison's table: `MEASURES`, and two paired differences in accuracy.

    `accuracy_gain` is over the mean of held-out networks of the same task; `best_gain` over the training network that is
    best by validation.
    """
    held_out = table[table["method"] == "zoo_held_out"].set_index("task")["test_accuracy_mean"]
    table = table.assign(
        accuracy_gain=table["test_accuracy_mean"] - table["task"].map(held_out),
        best_gain=table["test_accuracy_best_by_validation"] - table["task"].map(best),
    )
    records = Records(zoo=experiment.kind, networks=experiment.settings.samples_per_task)
    for method, rows in table.groupby("method", sort=False):
        for quantity in (*MEASURES, "accuracy_gain", "best_gain"):
            records.add(quantity, method, rows[quantity].tolist())
    return records


def write_run(table: pd.DataFrame, settings: Profile, seed: int) -> None:
    """Write notebook 03's own comparison; its p-values, one a task, stay out: their mean is no p-value."""
    setting = {"zoo": "independent", "networks": settings.samples_per_task}
    records = [
        results.record(measure, method, setting, mean_interval(rows[measure]), [seed])
        for method, rows in table.groupby("method", sort=False)
        for measure in MEASURES
        if not measure.startswith("two_sample")
    ]
    results.write("03_flow_matching", settings.profile, records)

"""The audit on a small zoo: copies are caught in any disguise, unseen networks of the zoo's own kind pass."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy import stats

from flownlib.baselines import Gaussian, Noise, Retrieval, Soup
from flownlib.chapters import shared as recipes
from flownlib.encoders import WeightSpace
from flownlib.evaluation import MEASURES, Neighbourhood, ReferenceSet, evaluate
from flownlib.extensions.audit import VERDICTS, Likelihoods, audit, table_of
from flownlib.plots import audit as figures_audit
from flownlib.plots.audit import frontier_of
from flownlib.plots.style import name_of
from flownlib.speed.collect import collect
from flownlib.speed.plan import Training
from flownlib.statistics import energy_test
from flownlib.symmetry import Aligner, permute, rescale


@pytest.fixture(scope="module")
def parts(smoke):
    """36 networks for each of the smoke profile's tasks, aligned: to train with, to hold out, and still others."""
    training = Training(9, smoke.batch_size, smoke.learning_rate)  # longer than the profile's: errors of their own
    zoo = collect(recipes.zoo_settings(smoke, 0, networks=36, training=training), progress=False)
    train, rest = zoo.split(24)
    held_out, fresh = rest.split(12)
    aligner = Aligner.fit(train, 0)
    return recipes.CanonicalZoo(aligner(train), aligner(held_out), aligner), aligner(fresh)


@pytest.fixture(scope="module")
def zoo(parts):
    return parts[0]


@pytest.fixture(scope="module")
def contexts(tasks):
    return recipes.support_contexts(recipes.image_features(tasks), tasks, 2, 4, 0)


def disguised(model, weights, generator):
    """The same networks, as functions, with their hidden units in another order and on another scale."""
    tensors, known = model.layout.unflatten(weights), model.symmetries
    for group, rescaling in zip(known.groups, known.rescalings, strict=True):
        size = (len(weights), group.units)
        tensors = permute(tensors, group, torch.rand(size, generator=generator).argsort(1))
        tensors = rescale(tensors, rescaling, (torch.randn(size, generator=generator) / 2).exp())
    return model.layout.flatten(tensors)


class Given:
    """Hands out given networks of the task whose context it recognises."""

    name = "given"

    def __init__(self, networks, contexts):
        self.networks, self.contexts = networks, contexts

    def fit(self, zoo, contexts, seed):
        return self

    def sample(self, n, y, generator):
        task = next(name for name, draws in self.contexts.items() if torch.equal(draws[0], y))
        return self.networks(task)[:n]


def test_energy_distance_is_the_double_loop():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (5, 7))
    mean = lambda a, b: sum((p - q).norm().item() for p in a for q in b) / (len(a) * len(b))
    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    distance, _ = energy_test(x, y, 9, generator)
    assert distance == pytest.approx(expected, rel=1e-12)
    assert energy_test(y, x, 9, generator)[0] == pytest.approx(expected, rel=1e-12)
    assert energy_test(x, x, 99, generator) == (pytest.approx(0, abs=1e-12), 1.0)
    with pytest.raises(ValueError, match="one length on both sides"):
        energy_test(x, y[:, :2], 9, generator)


def test_p_values_are_uniform_under_the_null_and_small_under_a_shift():
    generator = torch.Generator().manual_seed(1)
    draw = lambda n, shift=0.0: torch.randn(n, 4, generator=generator) + shift
    null = [energy_test(draw(12), draw(8), 99, generator)[1] for _ in range(300)]
    assert stats.kstest(np.array(null) - 0.005, "uniform").pvalue > 0.05  # the steps of 1 / 100, centred
    shifted = [energy_test(draw(12), draw(8, 1.5), 99, generator)[1] for _ in range(50)]
    assert np.mean(np.array(shifted) <= 0.05) > 0.9 and min(shifted) == pytest.approx(0.01)


def test_a_copy_of_the_training_set_is_not_rejected_by_the_two_sample_test():
    generator = torch.Generator().manual_seed(2)
    p = [energy_test(*torch.randn(80, 6, generator=generator).split([64, 16]), 99, generator)[1] for _ in range(100)]
    assert np.mean(np.array(p) <= 0.05) < 0.12


def test_a_disguised_copy_is_at_distance_zero(zoo):
    name, generator = zoo.train.tasks[0], torch.Generator().manual_seed(3)
    train = zoo.train.task(name)
    copies = disguised(train.model, train.weights, generator)
    around = Neighbourhood(train, WeightSpace.fit(zoo.train), zoo.aligner)
    found = around.nearest(around.canonical(copies))
    unseen = around.nearest(zoo.held_out.task(name).weights).distance[:, 0]
    assert found.distance[:, 0].max() < 1e-3 * unseen.min()
    assert torch.equal(found.row[:, 0], torch.arange(len(train)))
    assert (found.distance.diff(dim=1) >= 0).all()
    blind = Neighbourhood(train, around.space)
    assert blind.nearest(blind.canonical(copies)).distance[:, 0].min() > 0.5 * unseen.min()


def test_matching_to_a_training_network_brings_networks_closer_to_it(zoo):
    train = zoo.train.task(zoo.train.tasks[0])
    around, target = Neighbourhood(train, WeightSpace.fit(zoo.train), zoo.aligner), train.weights[3]
    matched = around.matched(train.weights, 3)
    assert torch.equal(matched[3], target)
    assert (matched @ target >= train.weights @ target).all() and (matched @ target).mean() > (train.weights @ target).mean()


def test_samples_that_are_no_networks_are_refused(zoo, tasks):
    task = next(iter(tasks.values()))
    reference = ReferenceSet.of(task, zoo.train, zoo.held_out, WeightSpace.fit(zoo.train), zoo.aligner)
    weights = zoo.held_out.task(task.name).weights
    for wrong in (weights[:, 1:], weights[0], weights * float("nan")):
        with pytest.raises(ValueError, match="shape .2464,.|samples for .* hold numbers that are not finite"):
            evaluate(wrong, reference)


@pytest.mark.parametrize(
    ("generator", "verdict"), [(Retrieval(), 0), (Noise(0.1), 1), (Noise(0.3), 1), (Soup(), 2), (Gaussian(diagonal=True), 4)]
)
def test_every_null_gets_its_verdict(generator, verdict, zoo, tasks, contexts):
    found = audit(generator.fit(zoo.train, contexts, 0), zoo, tasks, contexts, 32, 0)
    assert {task.verdict for task in found.tasks.values()} == {found.verdict} == {VERDICTS[verdict]}


def test_disguised_copies_are_caught(zoo, tasks, contexts):
    generator = torch.Generator().manual_seed(5)
    copies = lambda task: disguised(zoo.train.model, zoo.train.task(task).weights, generator)
    assert audit(Given(copies, contexts), zoo, tasks, contexts, 12, 0).verdict == "memorises"


def test_unseen_networks_of_the_same_kind_pass_and_those_of_another_task_do_not(parts, tasks, contexts):
    zoo, fresh = parts
    found = audit(Given(lambda task: fresh.task(task).weights, contexts), zoo, tasks, contexts, 12, 0)
    assert found.verdict == "indistinguishable here"
    other = dict(zip(tasks, reversed(tasks), strict=True))
    swapped = Given(lambda task: fresh.task(other[task]).weights, contexts)
    assert audit(swapped, zoo, tasks, contexts, 12, 0).verdict == "not the zoo's distribution"


def test_the_summary_has_a_row_for_each_task_and_the_gravest_verdict_counts(parts, tasks, contexts):
    zoo, fresh = parts
    first, second = tasks
    mixed = Given(lambda task: (zoo.train if task == second else fresh).task(task).weights, contexts)
    found = audit(mixed, zoo, tasks, contexts, 12, 0)
    table = found.summary()
    assert list(table.index) == list(tasks) and found.verdict == table.loc[second, "verdict"] == "memorises"
    assert table.loc[first, "verdict"] == "indistinguishable here" and "training likelier" not in table
    assert found.tasks[first].held_out.nearest.mean() == pytest.approx(1)
    assert found.tasks[first].training_overlap.max() < 1
    with pytest.raises(ValueError, match="one is missing"):
        audit(mixed, zoo, tasks, {first: contexts[first]}, 12, 0)


def test_likelihoods_are_asked_of_those_who_have_them(zoo, tasks, contexts):
    class Remembering(Given):
        def log_likelihood(self, weights, y, generator):
            return -torch.cdist(weights, zoo.train.weights).min(1).values

    remembering = Remembering(lambda task: zoo.held_out.task(task).weights, contexts)
    found = audit(remembering, zoo, tasks, contexts, 12, 0)
    assert (found.summary()["training likelier"] == 1).all()
    found = audit(remembering, zoo, tasks, contexts, 12, 0, likelihood=False)
    assert [task.likelihoods for task in found.tasks.values()] == [None, None]
    assert Likelihoods(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])).advantage == 0.375


def test_the_frontier_holds_what_nothing_exceeds_in_both():
    points = np.array([[0.0, 0.9], [0.3, 0.5], [0.2, 0.7], [0.5, 0.7], [1.0, 0.1], [0.9, 0.05]])
    assert frontier_of(points).tolist() == [[0.0, 0.9], [0.5, 0.7], [1.0, 0.1]]


def test_every_figure_is_drawn_from_audits_alone(zoo, tasks, contexts):
    nulls = [generator.fit(zoo.train, contexts, 0) for generator in (Retrieval(), Noise(0.3), Soup(), Gaussian())]
    audits = [audit(null, zoo, tasks, contexts, 8, 0) for null in nulls]
    table, name = table_of(audits), next(iter(tasks))
    assert list(table["method"].unique()) == ["zoo_held_out", "retrieval", "noise_0.3", "soup", "gaussian"]
    assert set(MEASURES) <= set(table.columns) and len(table) == 5 * len(tasks)
    (ax,) = figures_audit.nearest_histograms(audits, name).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["retrieval", "noise 0.3", "soup", "Gaussian"]
    assert len(figures_audit.overlap_against_accuracy(audits, name).axes) == 6
    nulls = {null.name for null in nulls}
    (ax,) = figures_audit.accuracy_and_novelty(audits, nulls).axes
    assert {text.get_text().partition(",")[0] for text in ax.texts} == set(table["method"].map(name_of))
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    heat = figures_audit.weights_beside_neighbours(audits[0].tasks[name], zoo.train.layout)
    copy = heat.axes[0].images[0].get_array() - heat.axes[len(heat.axes) // 7].images[0].get_array()
    assert np.abs(copy).max() < 1e-3  # a copy's row is its nearest training network's
    likelihoods = {name: Likelihoods(torch.randn(10), torch.randn(5)) for name in ("latin", "greek")}
    (ax,) = figures_audit.likelihood_histograms(likelihoods).axes
    assert [label.get_text()[:7] for label in ax.get_yticklabels()] == ["latin: ", "greek: "]
    plt.close("all")

"""The plane of two weights: its function, its eight-fold symmetry, its training, its nulls and its pictures."""

from __future__ import annotations

import math

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flownlib.chapters import c00_pictures as pictures
from flownlib.chapters import c00_plane as plane


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(figure: Figure) -> bytes:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return bytes(canvas.buffer_rgba())


@pytest.fixture(scope="module")
def zoo() -> plane.PlaneZoo:
    return plane.collect(40, seeded())


def test_predict_is_the_sum_of_two_cosines() -> None:
    weights, x = torch.tensor([[1.0, 2.0], [0.5, 3.0]], dtype=torch.float64), torch.tensor([0.3, 1.1], dtype=torch.float64)
    expected = [[math.cos(a * u) + math.cos(b * u) for u in x.tolist()] for a, b in weights.tolist()]
    torch.testing.assert_close(plane.predict(weights, x), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_predict_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"shape \[n, 2\]"):
        plane.predict(torch.zeros(4, 3), torch.zeros(5))


def test_the_eight_copies_are_distinct_and_compute_one_function() -> None:
    weights = torch.randn(20, 2, generator=seeded(), dtype=torch.float64)
    copies = plane.copies(weights)
    assert len({tuple(row) for row in copies[:, 0].tolist()}) == 8
    outputs = plane.predict(copies.reshape(-1, 2), plane.test_inputs().double()).reshape(8, 20, -1)
    torch.testing.assert_close(outputs, outputs[:1].expand_as(outputs), rtol=0, atol=1e-12)


def test_folding_sends_every_copy_to_the_wedge_and_keeps_the_function() -> None:
    weights = torch.randn(20, 2, generator=seeded())
    folded = plane.fold(weights)
    assert (folded[:, 0] >= folded[:, 1]).all() and (folded >= 0).all()
    assert torch.equal(plane.fold(plane.copies(weights).reshape(-1, 2)).reshape(8, 20, 2), folded.expand(8, -1, -1))
    assert torch.equal(plane.fold(folded), folded)
    torch.testing.assert_close(plane.test_loss(folded, plane.CHORDS[0]), plane.test_loss(weights, plane.CHORDS[0]))


def test_loss_surface_is_zero_at_the_chord_and_symmetric() -> None:
    chord = plane.Chord("on the grid", 3.0, 1.0)
    axis, loss = plane.loss_surface(chord, resolution=25)
    assert loss[int((axis - 1).abs().argmin()), int((axis - 3).abs().argmin())] < 1e-8
    for image in (loss.T, loss.flip(0), loss.flip(1)):
        torch.testing.assert_close(image, loss, rtol=0, atol=1e-5)


def test_training_all_at_once_equals_training_one_by_one() -> None:
    truth = plane.chord_weights(torch.tensor([0, 1, 2, 1])).double()
    x, y = (part.double() for part in plane.observe(truth.float(), 16, seeded()))
    start = torch.randn(4, 2, generator=seeded(1), dtype=torch.float64)
    together = plane.train(start, x, y, steps=50)
    alone = torch.cat([plane.train(start[i : i + 1], x[i : i + 1], y[i : i + 1], steps=50) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    assert not torch.equal(together, start)


def test_a_zoo_is_good_reproducible_and_split_without_overlap(zoo: plane.PlaneZoo) -> None:
    again = plane.collect(40, seeded())
    assert torch.equal(zoo.weights, again.weights) and zoo.tried == 120
    for task, chord in enumerate(plane.CHORDS):
        assert plane.test_loss(zoo.of(task), chord).mean() < 0.1
    training, held_out = zoo.split()
    assert len(training.task) + len(held_out.task) == len(zoo.task)
    assert plane.nearest(held_out.weights, training.weights).min() > 0


def test_a_zoo_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 10 networks"):
        plane.collect(3, seeded())


def test_context_ignores_the_order_and_knows_the_chord() -> None:
    x, y = plane.observe(plane.chord_weights(torch.tensor([0, 2])), 200, seeded())
    order = torch.randperm(200, generator=seeded(1))
    torch.testing.assert_close(plane.context(x, y), plane.context(x[:, order], y[:, order]))
    assert (plane.context(x, y)[0] - plane.context(x, y)[1]).norm() > 0.5


def test_batches_pair_prior_network_and_context(zoo: plane.PlaneZoo) -> None:
    draw = plane.Batches(zoo)
    x_0, x_1, y = draw(1000, seeded())
    assert x_0.shape == x_1.shape == (1000, 2) and y.shape == (1000, plane.FREQUENCIES)
    assert abs(float(x_0.std()) - plane.PRIOR) < 0.05
    assert plane.nearest(x_1 * draw.scale, zoo.weights).max() < 1e-5


def test_the_mean_of_two_is_bad_on_the_plane_and_good_when_folded(zoo: plane.PlaneZoo) -> None:
    mean, parents = plane.barrier(zoo.of(1), plane.CHORDS[1])
    folded_mean, folded_parents = plane.barrier(zoo.folded().of(1), plane.CHORDS[1])
    assert mean > 10 * parents
    assert folded_mean < folded_parents == pytest.approx(parents, rel=1e-3)


def test_measures_at_their_known_values(zoo: plane.PlaneZoo) -> None:
    training, held_out = (part.of(0) for part in zoo.split())
    assert plane.spread(held_out, held_out) == pytest.approx(1)
    assert plane.nearest_training_distance(held_out, training, held_out) == pytest.approx(1)
    assert plane.nearest_training_distance(training, training, held_out) == 0
    assert plane.spread(training[:1].expand(5, 2), held_out) == pytest.approx(0, abs=1e-6)
    assert set(plane.score(held_out, training, held_out, plane.CHORDS[0])) == {
        "test_loss_mean",
        "spread",
        "nearest_training_distance",
    }


def test_nulls_have_the_moments_they_promise(zoo: plane.PlaneZoo) -> None:
    members = zoo.folded().of(2)
    drawn = plane.gaussian(members, 20000, seeded())
    torch.testing.assert_close(drawn.mean(dim=0), members.mean(dim=0), rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.T.cov(), members.T.cov(), rtol=0.1, atol=0.005)
    assert plane.spread(plane.average(members, 20000, seeded()), members) == pytest.approx(1 / math.sqrt(10), rel=0.1)
    assert plane.nearest(plane.noisy(members, 50, seeded(), scale=0.0), members).max() == 0


def test_retrieval_and_training_on_the_support_find_the_chord(zoo: plane.PlaneZoo) -> None:
    x, y = plane.observe(plane.chord_weights(torch.tensor([2, 0])), 200, seeded())
    assert torch.equal(plane.retrieve(zoo, x[0], y[0]), zoo.of(2))
    assert torch.equal(plane.retrieve(zoo, x[1], y[1]), zoo.of(0))
    trained = plane.train_on_support(x, y, seeded())
    assert trained.shape == (2, 2)
    assert plane.test_loss(trained[:1], plane.CHORDS[2]) < 0.05 and plane.test_loss(trained[1:], plane.CHORDS[0]) < 0.05


def test_every_picture_is_drawn_and_repeats_itself(zoo: plane.PlaneZoo) -> None:
    lands = [pictures.land(chord, 21) for chord in plane.CHORDS]
    path = torch.randn(5, 30, 2, generator=seeded())
    x, y = plane.observe(plane.chord_weights(torch.arange(3)), 10, seeded())
    figures = [
        pictures.chords_and_data(list(zip(x, y, strict=True))),
        pictures.planes(lands),
        pictures.planes(lands, [zoo.of(task) for task in range(3)]),
        pictures.bridge(lands[0], path[0, :2], torch.rand(11)),
        pictures.straight_paths(path[0], path[-1], torch.rand(30), path[2], [2.0, 1.5, 1.2, 1.1]),
        pictures.streams(lands, [path] * 3),
        pictures.moments(lands, [path] * 3),
        pictures.moment(lands[0], path, 0),
        pictures.folding(zoo),
    ]
    assert all(len(set(pixels(figure))) > 50 for figure in figures)
    first, second, other = (pixels(pictures.moment(lands[0], path, now)) for now in (3, 3, 1))
    assert first == second != other

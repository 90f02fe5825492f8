"""The plane of two weights: its function, its eight-fold symmetry, its training and its pictures."""

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
    outputs = plane.predict(copies.reshape(-1, 2), plane.test_moments().double()).reshape(8, 20, -1)
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
    assert torch.cdist(held_out.weights, training.weights).min() > 0


def test_a_zoo_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 10 networks"):
        plane.collect(3, seeded())


def test_context_ignores_the_order_and_knows_the_chord() -> None:
    x, y = plane.observe(plane.chord_weights(torch.tensor([0, 2])), 200, seeded())
    order = torch.randperm(200, generator=seeded(1))
    torch.testing.assert_close(plane.context(x, y), plane.context(x[:, order], y[:, order]))
    assert (plane.context(x, y)[0] - plane.context(x, y)[1]).norm() > 0.5


def test_batches_pair_noise_network_and_context(zoo: plane.PlaneZoo) -> None:
    x_0, x_1, c = plane.Batches(zoo)(1000, seeded())
    assert x_0.shape == x_1.shape == (1000, 2) and c.shape == (1000, plane.FREQUENCIES)
    assert abs(float(x_0.std()) - plane.PRIOR) < 0.1
    assert {tuple(row) for row in x_1.tolist()} <= {tuple(row) for row in zoo.weights.tolist()}


def test_the_mean_of_two_is_bad_on_the_plane_and_good_when_folded(zoo: plane.PlaneZoo) -> None:
    loss = {}
    for name, members in {"whole": zoo.of(1), "folded": zoo.folded().of(1)}.items():
        half = len(members) // 2
        mean = (members[:half] + members[half : 2 * half]) / 2
        loss[name] = [float(plane.test_loss(w, plane.CHORDS[1]).mean()) for w in (mean, members)]
    assert loss["whole"][0] > 10 * loss["whole"][1]
    assert loss["folded"][0] < loss["folded"][1] == pytest.approx(loss["whole"][1], rel=1e-3)


def test_every_picture_is_drawn_and_repeats_itself(zoo: plane.PlaneZoo) -> None:
    lands = [pictures.land(chord, 21) for chord in plane.CHORDS]
    path = torch.randn(5, 30, 2, generator=seeded())
    recordings = zip(*plane.observe(plane.chord_weights(torch.arange(3)), 10, seeded()), strict=True)
    figures = [
        pictures.chords_and_data(list(recordings)),
        pictures.planes(lands),
        pictures.planes(lands, [zoo.of(task) for task in range(3)]),
        pictures.bridge(lands[0], path[0, :2], torch.rand(11)),
        pictures.straight_paths(path[0], path[-1], path[2], torch.arange(30) % 3, [2.0, 1.5, 1.2, 1.1]),
        pictures.field(lands[0], path[0], {0.0: path[1], 0.5: path[2]}),
        pictures.moments(lands, [path] * 3),
        pictures.moment(lands[0], path, 0),
        pictures.folding(zoo),
    ]
    assert all(len(set(pixels(figure))) > 50 for figure in figures)
    first, second, other = (pixels(pictures.moment(lands[0], path, now)) for now in (3, 3, 1))
    assert first == second != other

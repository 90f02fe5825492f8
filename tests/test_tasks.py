"""Tasks: deterministic, split without overlap, real formats read from disk."""

import gzip
import struct

import numpy as np
import pytest
import torch

from flownlib.tasks import DIGITS, glyphs, load_task
from flownlib.tasks.base import SplitSizes
from flownlib.tasks.glyphs import ALPHABETS, HELD_OUT, IN_DISTRIBUTION
from flownlib.tasks.vision import vision_images

SIZES = SplitSizes(100, 50, 60)


def test_there_are_eight_alphabets_and_four_held_out():
    assert len(IN_DISTRIBUTION) >= 8 and len(HELD_OUT) >= 4
    assert all(len(set(text)) == 10 for text, _ in ALPHABETS.values())
    assert not set("".join(ALPHABETS[n][0] for n in IN_DISTRIBUTION)) & set("".join(ALPHABETS[n][0] for n in HELD_OUT))


@pytest.mark.parametrize("name", ["latin", "old_italic", DIGITS])
def test_tasks_are_deterministic_standardised_and_disjoint(name, tmp_path, monkeypatch):
    task = load_task(name, SIZES)
    monkeypatch.setenv("FLOWN_CACHE", str(tmp_path))  # a second drawing, not a second reading
    again = load_task(name, SIZES)
    assert torch.equal(task.test.x, again.test.x) and torch.equal(task.train.y, again.train.y)
    assert task.train.x.mean().abs() < 1e-4 and (task.train.x.std() - 1).abs() < 1e-4
    rows = [image.numpy().tobytes() for split in (task.train, task.validation, task.test) for image in split.x]
    assert len(set(rows)) == len(rows)
    assert task.train.y.unique().tolist() == list(range(10))


def test_another_seed_draws_other_images():
    assert not torch.equal(load_task("latin", SIZES).train.x, load_task("latin", SIZES, seed=1).train.x)


def test_every_glyph_has_ink_and_differs_from_its_neighbours():
    for text, _ in ALPHABETS.values():
        means = torch.stack([glyphs.drawings(c).mean(0).flatten() for c in text])
        assert (means.sum(1) > 20).all()
        assert torch.pdist(means).min() > 1.5  # a missing glyph would be the same empty box for all


def test_support_sets_are_balanced_and_sorted():
    support = load_task("latin", SIZES).support(3, torch.Generator().manual_seed(0))
    assert support.y.tolist() == [label for label in range(10) for _ in range(3)]
    with pytest.raises(ValueError, match="training images, not 90"):
        load_task("latin", SIZES).support(90, torch.Generator())


def test_lookalikes_are_dropped():
    capital_alpha = "\N{GREEK CAPITAL LETTER ALPHA}"
    assert glyphs.without_lookalikes("ABC", capital_alpha) == "BC"


def test_unknown_and_missing_tasks_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWN_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="there is no task 'klingon'"):
        load_task("klingon")
    with pytest.raises(ValueError, match="mnist was not found under .* download=True"):
        load_task("mnist")


def test_mnist_is_read_in_its_real_format(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng, parts = np.random.default_rng(0), {"train": 7, "t10k": 4}
    written = []
    for part, n in parts.items():
        x, y = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)
        written.append(x)
        for kind, header, data in (("images-idx3", (2051, n, 28, 28), x), ("labels-idx1", (2049, n), y)):
            content = struct.pack(f">{len(header)}i", *header) + data.tobytes()
            (folder / f"{part}-{kind}-ubyte").write_bytes(content)
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    x, y = vision_images("mnist", tmp_path)
    assert x.shape == (11, 1, 28, 28) and y.shape == (11,)
    assert torch.equal(x[:, 0], torch.as_tensor(np.concatenate(written)))

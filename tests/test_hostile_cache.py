"""The door that writes folders: nothing foreign is lost, whatever is damaged is noticed, whatever is killed leaves no trace."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pass
pass
from flownlib.harness import cache, folders
from flownlib.harness.cache import address, cached, cached_folder, load_artifact, save_artifact
from flownlib.harness.folders import claim, partial_folder, write_file, write_folder
from flownlib.speed.__main__ import main as train
from flownlib.weights import Artifact, ArtifactError

ROOT = Path(__file__).resolve().parent.parent
MADE = Artifact({"weights": torch.arange(12.0).view(3, 4), "steps": torch.arange(3)}, {"seed": 1, "table": {"a": [0.5, 1e-9]}})
FILES = ("manifest.json", "meta.json", "tensors.safetensors")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=8), part, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*FILES, "notes.txt", ".hidden", "sub/deep.txt", "made", ".partial-flownlib-mine", "äö ü.bin"])


def same(one: Artifact, other: Artifact) -> bool:
    """Whether two artefacts are equal to the bit."""
    return (
        one.meta == other.meta
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    )


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, and every folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, str, object]:
    """(file, kind of damage, how)."""
    how = {
        "flip": st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
        "truncate": st.floats(0, 1, exclude_max=True),
        "json": JSON,
        "bytes": st.binary(max_size=40),
        "field": st.tuples(st.integers(0, 9), JSON),
        "missing": st.none(),
        "folder": st.none(),
    }
    kind = draw(st.sampled_from(sorted(how)))
    return draw(st.sampled_from(FILES)), kind, draw(how[kind])


def damage(path: Path, kind: str, how: object) -> None:
    """Do to a file what a bad disk, a hand or another program may do."""
    content = path.read_bytes()
    if kind == "flip":
        place = int(how[0] * len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ how[1]]) + content[place + 1 :])
    elif kind == "truncate":
        path.write_bytes(content[: int(how * len(content))])
    elif kind == "json":
        path.write_text(json.dumps(how))
    elif kind == "bytes":
        path.write_bytes(how)
    elif kind == "field" and path.suffix == ".json":
        record = json.loads(content)
        record[sorted(record)[how[0] % len(record)]] = how[1]
        path.write_text(json.dumps(record))
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(damages())
def test_a_damaged_artefact_is_read_exactly_or_refused_and_the_cache_rebuilds_it(chosen) -> None:
    name, kind, how = chosen
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = root / address("stage", {"n": 1}, __name__)
        assert same(cached("stage", {"n": 1}, lambda: MADE, root=root), MADE)
        damage(path / name, kind, how)
        before = contents(path)
        try:
            assert same(load_artifact(path), MADE)
        except ArtifactError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        assert same(cached("stage", {"n": 1}, lambda: MADE, root=root), MADE)
        assert same(load_artifact(path), MADE)
        kept = [contents(other) for other in root.iterdir() if other != path]
        assert kept in ([], [before]), "what lay there is whole, or was right"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.dictionaries(NAMES, st.binary(max_size=9) | JSON.map(lambda value: json.dumps(value).encode()), max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_whatever_lies_in_the_target_nothing_foreign_is_lost(files, ours, by_cache) -> None:
    """A folder that somebody filled, perhaps on top of one of ours: replaced only while it is just as we wrote it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = root / address("stage", {}, __name__)
        if ours:
            save_artifact(path, Artifact({"old": torch.zeros(1)}))
        whole = contents(path)
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        before = contents(path)
        if by_cache:
            assert same(cached("stage", {}, lambda: MADE, root=root), MADE)
            kept = [contents(other) for other in root.iterdir() if other != path]
            assert kept == [before] * bool(before)
        elif before and before != whole:
            with pytest.raises(ArtifactError, match=r"holds what was not written here .* stays as it is: name a new folder\."):
                save_artifact(path, MADE)
            assert contents(path) == before and list(root.iterdir()) == [path]
        else:
            save_artifact(path, MADE)
            assert same(load_artifact(path), MADE) and list(root.iterdir()) == [path]


@pytest.mark.parametrize("stranger", ["file", "link", "dangling", "other"])
def test_the_cache_moves_aside_what_stands_in_an_artefacts_place(tmp_path, stranger, caplog) -> None:
    path, other = tmp_path / "cache" / address("stage", {"n": 1}, __name__), tmp_path / "elsewhere"
    path.parent.mkdir()
    save_artifact(other, Artifact({"other": torch.ones(1)}))
    if stranger == "file":
        path.write_text("a file")
    elif stranger == "other":  # a folder of ours, but of another artefact
        cached("stage", {"n": 2}, lambda: Artifact({"other": torch.ones(1)}), root=path.parent)
        os.rename(path.parent / address("stage", {"n": 2}, __name__), path)
    else:
        path.symlink_to(other if stranger == "link" else tmp_path / "nowhere")
    assert same(cached("stage", {"n": 1}, lambda: MADE, root=path.parent), MADE)
    assert "is being rebuilt" in caplog.text and path.is_dir() and not path.is_symlink()
    (kept,) = [found for found in path.parent.iterdir() if found != path]
    assert kept.name in caplog.text and load_artifact(other).tensors["other"].item() == 1


def test_a_cached_folder_is_checked_too(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLOWN_CACHE", str(tmp_path))

    def write(folder: Path) -> None:
        (folder / "run").mkdir()
        (folder / "run" / "a").write_text("1")

    made = cached_folder("files", {}, write)
    for change in (lambda: (made / "run" / "a").write_text("2"), lambda: (made / "run" / "added").write_text("mine")):
        change()
        assert cached_folder("files", {}, write) == made
        assert contents(made / "run") == {"a": b"1"}
    assert len(list(tmp_path.glob("aside-*/run/*"))) == 3


@pytest.mark.parametrize("output", ["", ".", "/", "..", "inside", "file", "link", "full", "full/file/x", "missing/../."])
def test_training_refuses_its_output_before_it_trains(tmp_path, monkeypatch, capsys, output) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "inside" / "here").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "zoo.json").write_text('{"tasks": ["latin"], "networks": 2}')
    monkeypatch.chdir(tmp_path / "inside" / "here" if output == "inside" else tmp_path)
    before = contents(tmp_path)
    output = str(tmp_path / output) if output == "inside" else output
    assert train(["--zoo-settings", str(tmp_path / "zoo.json"), "--output", output]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.out == ""
    assert contents(tmp_path) == before


def test_an_earlier_folder_is_exchanged_and_a_file_added_meanwhile_survives(tmp_path) -> None:
    path = tmp_path / "zoo"
    save_artifact(path, Artifact({"old": torch.zeros(1)}))
    inode = path.stat().st_ino
    save_artifact(path, Artifact({"old": torch.zeros(1)}))
    assert path.stat().st_ino == inode, "the same again changes nothing"
    with pytest.raises(ArtifactError, match=r"notes\.txt"):
        write_folder(path, lambda made: (path / "notes.txt").write_text("added while the new one was being written"))
    assert (path / "notes.txt").is_file() and load_artifact(path).tensors["old"].item() == 0
    (path / "notes.txt").unlink()
    (path / "meta.json").rename(tmp_path / "moved.json")
    (path / "meta.json").symlink_to("../moved.json")
    with pytest.raises(ArtifactError, match=r"meta\.json"):
        save_artifact(path, MADE)
    os.replace(tmp_path / "moved.json", path / "meta.json")
    save_artifact(path, MADE)
    assert same(load_artifact(path), MADE) and list(tmp_path.iterdir()) == [path]


def test_without_an_exchange_in_one_step_the_result_is_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(folders.ctypes, "CDLL", lambda _: object())
    save_artifact(tmp_path / "zoo", Artifact({"old": torch.zeros(1)}))
    save_artifact(tmp_path / "zoo", MADE)
    assert same(load_artifact(tmp_path / "zoo"), MADE) and list(tmp_path.iterdir()) == [tmp_path / "zoo"]


def test_what_a_killed_writer_left_is_cleared_and_what_a_living_one_writes_is_not(tmp_path) -> None:
    killed, theirs = tmp_path / f".partial-flownlib-{'0' * 16}", tmp_path / ".partial-download"
    for folder in (killed, theirs):
        folder.mkdir()
        (folder / "file").write_text("half")
    with partial_folder(tmp_path) as living:
        assert not killed.exists() and theirs.exists()
        cached("stage", {}, lambda: MADE, root=tmp_path)
        assert living.is_dir(), "its lock is held"
    assert not living.exists()


def test_files_have_the_rights_that_the_umask_grants(tmp_path) -> None:
    before = os.umask(0o002)
    try:
        cached("stage", {}, lambda: MADE, root=tmp_path / "cache")
        write_file(tmp_path / "cache" / "figure.png", b"1")
    finally:
        os.umask(before)
    for path in (tmp_path / "cache").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o775 if path.is_dir() else 0o664), path


def test_a_file_keeps_its_rights_and_a_link_stays_a_link(tmp_path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "real").read_text() == "new" and (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640


def test_a_claimed_folder_is_new_empty_or_marked(tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("1")
    (tmp_path / "file").write_text("1")
    for name, words in (("mine", r"thesis\.txt"), ("file", "is a file"), ("file/below", "cannot be written")):
        with pytest.raises(ArtifactError, match=words):
            claim(tmp_path / name)
    assert contents(tmp_path) == {"mine": None, "mine/thesis.txt": b"1", "file": b"1"}
    claim(tmp_path / "new" / "below")
    (tmp_path / "new" / "below" / "added.txt").write_text("1")
    claim(tmp_path / "new" / "below")
    claim(tmp_path / "mine", default=True)
    assert (tmp_path / "mine" / "thesis.txt").is_file()


@pytest.mark.parametrize("code", [28, 13, 30])
def test_trouble_with_the_disk_is_one_sentence_and_comes_before_the_work(tmp_path, monkeypatch, code) -> None:
    held = cached("stage", {"n": 1}, lambda: MADE, root=tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert same(cached("stage", {"n": 1}, refuse, root=tmp_path), held), "what is there is still read"
    with pytest.raises(ArtifactError) as error:
        cached("stage", {"n": 2}, lambda: pytest.fail("it was built in vain"), root=tmp_path)
    text = str(error.value)
    assert str(tmp_path) in text and os.strerror(code) in text and "FLOWN_CACHE" in text and "\n" not in text


def test_a_full_disk_while_tensors_are_written_is_one_sentence(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise cache.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(cache, "save_file", full)
    with pytest.raises(ArtifactError, match="No space left") as error:
        cached("stage", {}, lambda: MADE, root=tmp_path / "cache")
    assert f"{tmp_path / 'cache'} cannot be written" in str(error.value) and not list((tmp_path / "cache").iterdir())


KILLS = """
import itertools, os, random, signal, sys, time, torch
from pathlib import Path
from flownlib.harness.cache import cached, load_artifact, save_artifact
from flownlib.weights import Artifact
root, draw, moments = Path(sys.argv[1]), random.Random(0), []

def numbered(n):
    return Artifact({"a": torch.full((50_000,), float(n))}, {"n": n})

def write_for_ever():
    for n in itertools.count(draw.randrange(100)):
        cached("stage", {"n": n}, lambda: numbered(n), root=root / "cache")
        save_artifact(root / "zoo", numbered(n))

save_artifact(root / "zoo", numbered(0))
for i in range(20):
    child = os.fork()  # starting Python twenty times would take a minute
    if child == 0:
        write_for_ever()
    time.sleep(draw.uniform(0.01, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    moments.append(len(list(root.rglob(".partial-*"))))
    zoo = load_artifact(root / "zoo")
    assert (zoo.tensors["a"] == zoo.meta["n"]).all(), "half old, half new"
    save_artifact(root / "zoo", numbered(i))
    for folder in [*(root / "cache").glob("stage-*")]:
        found = load_artifact(folder)
        assert (found.tensors["a"] == found.meta["n"]).all()
    cached("stage", {"n": -1}, lambda: numbered(-1), root=root / "cache")
    assert sorted(path.name for path in root.iterdir()) == ["cache", "zoo"], "a trace of the killed one"
    assert all(path.name.startswith("stage-") for path in (root / "cache").iterdir())
print(sum(map(bool, moments)))
"""


def test_killed_at_any_moment_a_write_leaves_the_old_or_the_new(tmp_path) -> None:
    """Kill -9 twenty times inside writes, into a cache and into a folder that is replaced again and again."""
    (tmp_path / "kills.py").write_text(KILLS)  # what is cached has to be defined in a file
    (tmp_path / "store").mkdir()
    done = subprocess.run(
        [sys.executable, tmp_path / "kills.py", tmp_path / "store"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10, "most kills hit a write"


TOGETHER = """
import os, sys, time, torch
from pathlib import Path
from flownlib.harness.cache import cached
from flownlib.weights import Artifact
root = Path(sys.argv[1])
for child in range(2):
    if os.fork() == 0:
        built = []
        for n in range(100):
            def build():
                built.append(n)
                return Artifact({"a": torch.full((20_000,), float(n))}, {"made": time.time()})
            assert (cached("stage", {"n": n}, build, root=root).tensors["a"] == n).all()
        times = sum(cached("stage", {"n": n}, build, root=root).meta["made"] for n in range(100))
        os.write(1, f"{len(built)} {times}\\n".encode())  # in one piece, beside the other's
        os._exit(0)
assert all(os.wait()[1] == 0 for _ in range(2))
"""


def test_two_processes_that_build_the_same_end_with_one(tmp_path) -> None:
    (tmp_path / "together.py").write_text(TOGETHER)  # what is cached has to be defined in a file
    (tmp_path / "store").mkdir()
    done = subprocess.run(
        [sys.executable, tmp_path / "together.py", tmp_path / "store"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (one, times), (other, same_times) = (line.split() for line in done.stdout.splitlines())
    assert int(one) + int(other) >= 100 and times == same_times
    assert len(list((tmp_path / "store").iterdir())) == 100

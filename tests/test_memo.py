"""A cache that cannot lie: what changes a result changes its key, what does not leaves it, and nothing half-written stays."""

from __future__ import annotations

import ast
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from flownlib.chapters import shared
from flownlib.extensions import weight_tokens  # registers the architecture that is trained below
from flownlib.harness import closure, memo
from flownlib.harness.memo import Reads, digest, key_of, tensors
from flownlib.harness.profiles import PROFILES, Profile
from flownlib.vae import VAESettings

ROOT = Path(__file__).resolve().parent.parent
SMOKE = PROFILES["smoke"]
COMPUTED: list[str] = []  # by the cached functions below


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FLOWN_CACHE", str(tmp_path))
    COMPUTED.clear()
    return tmp_path


# which code is in a key

ARTEFACTS = {
    "glyph images": "tasks",
    "zoo": "speed.collect",
    "VAE": "chapters.shared",
    "encoders": "chapters.c02_encoders",
    "low-rank base": "chapters.c02_low_rank",
    "initialisations": "chapters.c04_initialisations",
    "few-shot heads": "chapters.c05_few_shot",
    "fine-tuned ResNet": "chapters.shared_resnet",
}
# a helper in which a constant is changed, and what is made without it
HELPERS = {
    "tasks.glyphs": set(),
    "speed.loops": {"glyph images", "fine-tuned ResNet"},
    "speed.lanes": set(),  # it registers itself with scoring, which all of them import
    "symmetry": {"glyph images", "zoo", "low-rank base", "few-shot heads"},  # the ResNet's module can be asked for its own
    "vae": {"glyph images", "zoo", "low-rank base", "few-shot heads", "fine-tuned ResNet"},
    "context": {"glyph images", "zoo", "low-rank base", "few-shot heads", "fine-tuned ResNet"},
    "flow": {"glyph images", "zoo", "fine-tuned ResNet"},
    "extensions.graph_encoder": {"glyph images", "zoo", "low-rank base", "few-shot heads", "fine-tuned ResNet"},
    "extensions.lora": set(ARTEFACTS) - {"encoders", "low-rank base"},
    "extensions.heads": set(ARTEFACTS) - {"few-shot heads"},
    "extensions.reward": set(ARTEFACTS) - {"initialisations"},
    "harness.folders": set(ARTEFACTS),  # how something is stored changes nothing of it
    "plots.style": set(ARTEFACTS),
}


def keys() -> dict[str, str]:
    """The key that a function of each artefact's module has."""
    closure.fingerprint.cache_clear()
    closure._writers.cache_clear()
    found = {}
    for name, module in ARTEFACTS.items():
        function = SimpleNamespace(__name__="make", __qualname__="make", __module__=f"flownlib.{module}")
        found[name] = key_of(function, {"settings": SMOKE, "seed": 0})
    return found


@pytest.fixture
def edited(monkeypatch):
    """`edited(module, source)`: the keys if this were the module's source when the process began."""
    parse = closure._parsed.__wrapped__
    parsed = {name: closure._parsed(name) for name in closure.PATHS}
    before = keys()

    def after(module: str, source: bytes | str, sources: dict[str, bytes] = closure.SOURCES) -> dict[str, str]:
        with monkeypatch.context() as patch:
            patch.setitem(sources, module, source)
            patch.setattr(closure, "_parsed", lambda name: parse(name) if name == module else parsed[name])
            return keys()

    yield after
    assert keys() == before


def with_a_constant_changed(source: str) -> str:
    """The source with its first number changed."""
    numbers = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and type(n.value) in (int, float)]
    first = min(numbers, key=lambda node: (node.lineno, node.col_offset))
    lines = source.encode().splitlines(keepends=True)
    line = lines[first.lineno - 1]
    lines[first.lineno - 1] = line[: first.col_offset] + b"9" + line[first.col_offset :]
    return b"".join(lines).decode()


def test_a_constant_of_a_helper_changes_the_key_of_what_depends_on_it_and_of_nothing_else(edited) -> None:
    before = keys()
    for helper, without in HELPERS.items():
        source = with_a_constant_changed(closure.SOURCES[f"flownlib.{helper}"].decode())
        after = edited(f"flownlib.{helper}", source)
        rebuilt = [name for name in ARTEFACTS if after[name] != before[name]]
        print(f"{helper:<26} rebuilt: {', '.join(rebuilt) or 'nothing'}")
        assert set(ARTEFACTS) - set(rebuilt) == without, helper


def test_a_compiled_kernel_is_code_and_comments_docstrings_and_layout_are_not(edited) -> None:
    before = keys()
    tree = ast.parse(closure.SOURCES["flownlib.vae"])
    documented = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and ast.get_docstring(node))
    documented.body[0].value.value = "Something else."
    assert edited("flownlib.vae", "# a remark\n\n" + ast.unparse(tree)) == before
    kernel = edited("flownlib.speed.lanes", closure.OTHERS["flownlib.speed.lanes"] + b"// a line", closure.OTHERS)
    assert all(kernel[name] != before[name] for name in ARTEFACTS)


def loaded(folder: Path, **sources: str) -> ModuleType:
    """The closure module of a package of these modules."""
    for name, source in {"harness/closure": Path(closure.__file__).read_text(), **sources}.items():
        path = folder / "tiny" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    spec = importlib.util.spec_from_file_location("tiny.harness.closure", folder / "tiny" / "harness" / "closure.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)  # where its dataclass looks for it
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def test_the_closure_follows_every_way_to_depend_on_a_module(tmp_path) -> None:
    code = loaded(
        tmp_path,
        a="from . import b\ndef f():\n    import tiny.folder.c\n"
        "if TYPE_CHECKING:\n    import tiny.types\nelse:\n    import tiny.other",
        b="from tiny.harness import d\nREGISTRY = {}\n",
        types="",
        other="",
        face="",
        **{"folder/__init__": "import tiny.face", "folder/c": "from .e import x", "folder/e": "x = 1"},
        **{"harness/d": "import tiny.types"},
        by_index="from tiny.b import REGISTRY as known\nknown['x'] = 1",
        by_call="import tiny.b\ntiny.b.REGISTRY.update(x=1)",
        by_decorator="from tiny import b\n@b.register('x')\nclass A: ...",
        reader="from tiny.b import REGISTRY\nx = REGISTRY['x']\ndef f():\n    REGISTRY['x'] = 1",
    )
    names = {name.removeprefix("tiny.") for name in code.closure("tiny.a")}
    assert names == {"a", "b", "other", "face", "folder", "folder.c", "folder.e", "by_index", "by_call", "by_decorator"}
    (tmp_path / "tiny" / "b.py").write_text("REGISTRY = {'edited': 1}")
    before = code.fingerprint("tiny.a")
    assert before != loaded(tmp_path).fingerprint("tiny.a"), "the next process sees the edit, this one runs what it loaded"
    with pytest.raises(ValueError, match="not in a notebook"):
        code.closure("nowhere")


def test_all_code_that_runs_while_something_is_made_is_in_its_key(tasks, canonical) -> None:
    """Followed by the interpreter: no function outside the closure is ever called, registered ones included."""
    ran: set[str] = set()
    files = {str(path): name for name, path in closure.modules().items()}
    chosen = VAESettings(8, width=4, steps=3, architecture="conv1d")
    sys.setprofile(lambda frame, event, _: ran.add(frame.f_code.co_filename) if event == "call" else None)
    try:
        shared.aligned.__wrapped__(canonical.train, canonical.held_out, 0)
        shared.trained_vae.__wrapped__(SMOKE, 0, False, chosen=chosen)
    finally:
        sys.setprofile(None)
    ran = {files[file] for file in ran if file in files and "/harness/" not in file}
    assert weight_tokens.__name__ in ran and ran <= set(closure.closure(shared.__name__)), ran


# which arguments and settings are in it


def cached_here(function):
    """`memo.memo`, as if the function were in a module of the library."""
    function.__module__ = "flownlib.weights"
    return memo.memo(tensors)(function)


@cached_here
def inner(settings: Profile, seed: int, progress: bool = True) -> dict[str, Tensor]:
    """Depends on the epochs."""
    COMPUTED.append("inner")
    return {"x": torch.tensor([settings.epochs + seed])}


@cached_here
def outer(settings: Profile, seed: int) -> dict[str, Tensor]:
    """Depends on the width and, through another, on the epochs; what it replaces it does not depend on."""
    COMPUTED.append("outer")
    return {"y": inner(settings, seed)["x"] + inner(settings.changed(epochs=7), seed)["x"] + settings.vae_width}


@cached_here
def by_method(settings: Profile) -> dict[str, Tensor]:
    """Depends on everything."""
    COMPUTED.append("by_method")
    return {"n": torch.tensor(len(settings.as_dict()))}


@cached_here
def by_branch(settings: Profile) -> dict[str, Tensor]:
    """Depends on the width where the encoder is the VAE."""
    COMPUTED.append("by_branch")
    return {"n": torch.tensor(settings.vae_width if settings.encoder == "vae" else 0)}


@cached_here
def around(settings: Profile) -> dict[str, Tensor]:
    """Depends on what `by_branch` does."""
    COMPUTED.append("around")
    return by_branch(settings)


def computed(function, *arguments, **named) -> list[str]:
    """What is computed anew for a call."""
    COMPUTED.clear()
    function(*arguments, **named)
    return sorted(COMPUTED)


def test_only_settings_that_are_read_count_here_and_in_cached_functions_called_from_here(empty_cache) -> None:
    assert computed(outer, SMOKE, 0) == ["inner", "inner", "outer"]
    assert computed(outer, SMOKE, 0) == computed(outer, SMOKE, seed=0) == []
    assert computed(outer, replace(SMOKE, flow_steps=999), 0) == [], "nothing reads it"
    assert computed(outer, replace(SMOKE, epochs=7), 0) == ["outer"], "read by the inner function alone, which knows 7"
    assert computed(outer, replace(SMOKE, vae_width=99), 0) == ["outer"]
    assert computed(outer, SMOKE, 1) == ["inner", "inner", "outer"]
    assert outer(SMOKE, 0)["y"].item() == SMOKE.epochs + 7 + SMOKE.vae_width, "each has kept its own"
    shutil.rmtree(empty_cache)
    inner(SMOKE, 0)
    assert computed(outer, SMOKE, 0) == ["inner", "outer"], "what is read from the cache"
    assert computed(outer, replace(SMOKE, epochs=5), 0) == ["inner", "outer"], "counts as read as well"


def test_a_method_of_the_settings_reads_them_and_a_branch_not_taken_reads_nothing(empty_cache) -> None:
    assert computed(by_method, SMOKE) == computed(by_method, replace(SMOKE, flow_steps=999)) == ["by_method"]
    pca = replace(SMOKE, encoder="pca")
    assert computed(around, SMOKE) == computed(around, pca) == ["around", "by_branch"]
    (empty_cache / "moved").mkdir()
    for folder in empty_cache.glob("around-*"):
        folder.rename(empty_cache / "moved" / folder.name)
    assert computed(around, pca) == ["around"]
    assert computed(around, replace(pca, vae_width=99)) == [], "only a candidate that was passed over had read it"
    assert computed(around, replace(SMOKE, vae_width=99)) == ["around", "by_branch"]


def test_progress_is_ignored_and_what_cannot_be_in_a_key_is_refused(empty_cache) -> None:
    assert computed(inner, SMOKE, 0, progress=True) == ["inner"] and computed(inner, SMOKE, 0, progress=False) == []
    hidden = 3
    with pytest.raises(ValueError, match="uses variables of the function around it"):
        memo.memo(tensors)(lambda settings: {"x": torch.tensor(hidden)})
    with pytest.raises(TypeError, match="cannot be part of a cache key"):
        inner(SMOKE, torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="another process"):
        pickle.dumps(Reads(SMOKE, {}))


@dataclass(frozen=True)
class Pair:
    """An argument with parts."""

    a: float
    b: Tensor


def test_equal_arguments_have_equal_digests_and_different_ones_different(tmp_path) -> None:
    x = torch.arange(6.0)
    assert digest(Pair(1.0, x.view(2, 3).T.contiguous().T)) == digest(Pair(1.0, x.view(2, 3)))
    values = [
        x,
        x.view(2, 3),
        x.double(),
        x.int(),
        x + 1e-6,
        Pair(1.0, x),
        Pair(2.0, x),
        {"a": x},
        [x],
        1,
        1.0,
        True,
        "1",
        None,
    ]
    values += [{1: x}, {"1": x}, [], {}]
    seen = [memo._hash(digest(value)) for value in values]
    assert len(set(seen)) == len(seen)


# what lies on the disk


def test_a_damaged_artefact_is_rebuilt_and_the_damaged_one_is_kept(empty_cache) -> None:
    whole = inner(SMOKE, 0)["x"]
    (folder,) = empty_cache.glob("inner-*")
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert computed(inner, SMOKE, 0) == ["inner"] and torch.equal(inner(SMOKE, 0)["x"], whole), file.name
    assert computed(inner, SMOKE, 0) == [] and len(list(empty_cache.glob("aside-*"))) == 3


def test_the_first_call_gives_what_every_later_one_gives(empty_cache, monkeypatch) -> None:
    monkeypatch.setattr(memo, "fingerprint", lambda module: "code")
    kept = memo.memo(lambda stored: (stored.tensors, stored.meta))(_odd)
    first, later = kept(), kept()
    assert first[1] == later[1] == {"pair": [1, 2], "by": {"1": 2}}
    assert first[0]["x"].is_contiguous() and torch.equal(first[0]["x"], later[0]["x"])


def _odd() -> memo.Artifact:
    return memo.Artifact({"x": torch.arange(6.0).view(2, 3).T}, {"pair": (1, 2), "by": {1: 2}})


BUILDING = """
import os, signal, sys, time, torch
from pathlib import Path
from flownlib.harness import cache, folders, memo
from flownlib.harness.profiles import PROFILES

def build(settings, seed):
    built.append(seed)
    return {"weights": torch.full((30_000,), float(settings.epochs + seed))}

build.__module__, built, root = "flownlib.weights", [], Path(os.environ["FLOWN_CACHE"])
kept, smoke = memo.memo(memo.tensors)(build), PROFILES["smoke"]
places = {cache.__file__, folders.__file__}
"""
KILLED = """
def build_until(last):  # the number of steps in the cache's code, if the last is not reached
    steps = 0
    def count(frame, event, _):
        nonlocal steps
        steps += frame.f_code.co_filename in places
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)
    try:
        kept(smoke, 0)
    finally:
        sys.setprofile(None)
    return steps

steps = build_until(-1)
(whole,) = root.glob("build-*")
whole.rename(root.parent / "whole")
left = 0
for i in range(10):
    child = os.fork()  # starting Python ten times would take half a minute
    if child == 0:
        build_until((i + 1) * steps // 11)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    left += bool(list(root.glob(".partial-*")))
    assert all(path.name.startswith((".partial-flownlib-", "build-")) for path in root.iterdir())
    assert (kept(smoke, 0)["weights"] == smoke.epochs).all()
    (again,) = root.iterdir()
    for file in (root.parent / "whole").iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()
    again.rename(root.parent / f"whole-{i}")
print(left)
"""
TOGETHER = """
start = time.time() + 0.3
for child in range(2):
    if os.fork() == 0:
        time.sleep(max(0, start - time.time()))
        for seed in range(30):
            assert (kept(smoke, seed)["weights"] == smoke.epochs + seed).all()
        os.write(1, f"{len(built)}\\n".encode())
        os._exit(0)
assert all(os.wait()[1] == 0 for _ in range(2))
"""


def in_a_process(script: str, cache: Path) -> list[int]:
    """The numbers that a script prints."""
    environment = {**os.environ, "FLOWN_CACHE": str(cache), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", BUILDING + script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_ten_kills_during_a_cached_build_leave_nothing_half_written_and_the_same_result(tmp_path) -> None:
    (left,) = in_a_process(KILLED, tmp_path / "cache")
    assert left >= 5, "most kills hit a write"


def test_two_processes_that_build_the_same_at_once_end_with_one(tmp_path) -> None:
    one, other = in_a_process(TOGETHER, tmp_path / "cache")
    assert 30 <= one + other <= 60 and len(list((tmp_path / "cache").iterdir())) == 30

"""Wrong settings at every door: one sentence, before anything runs, whatever is given."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from papermill.exceptions import PapermillExecutionError

from flownlib.benchmarks import __main__ as benchmarks
from flownlib.chapters import start
from flownlib.harness import cli as command_line
from flownlib.harness import memory, notebooks, profiles, runs, studies
from flownlib.harness.settings import ENVIRONMENT, Rule, rules
from flownlib.speed import __main__ as training
from flownlib.speed import backends
from flownlib.speed.plan import Training
from flownlib.speed.zoo_settings import ZooSettings
from flownlib.tasks.base import SplitSizes
from flownlib.tasks.glyphs import IN_DISTRIBUTION

PROFILE = rules(profiles.Profile)
PARAMETERS = 'profile: str = "smoke"\nseed: int = 0\noverrides: dict = {}\nfolder: str = ""'
ZOO = {"tasks": ["latin"], "networks": 2, "sizes": {"train": 100, "validation": 50, "test": 50}, "training": {"epochs": 1}}
GOOD_ZOO = json.loads(json.dumps(asdict(ZooSettings(**(ZOO | {"sizes": SplitSizes(100, 50, 50), "training": Training(1)})))))
WORDS = st.text(st.characters(categories=("L", "S")), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


class ReachedError(Exception):
    """Work would have begun."""


def tries(count: int) -> Callable:
    """So many examples, the same every time."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


@pytest.fixture(autouse=True, scope="module")
def nothing_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever gets as far as the work says so."""

    def reached(*_: Any, **__: Any) -> None:
        raise ReachedError

    with pytest.MonkeyPatch.context() as patch:
        for name in ("FLOWN_PROFILE", "FLOWN_RESULTS", "FLOWN_BACKEND", "FLOWN_GROUP", "RANK", "WORLD_SIZE"):
            patch.delenv(name, raising=False)
        patch.setattr(runs, "run_all", reached)
        patch.setattr(studies, "run", reached)
        patch.setattr(training, "draw_images", reached)
        patch.setattr(benchmarks, "COMMANDS", {name: (reached, 3) for name in benchmarks.COMMANDS})
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook that begins as all do."""
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    code = "from flownlib.chapters import start\nsettings = start.begin(globals())\nprint(settings.epochs, repr(seed), folder)"
    cells.append(nbformat.v4.new_code_cell(code))
    made = nbformat.v4.new_notebook(cells=cells)
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    target = tmp_path_factory.mktemp("notebooks") / "10_fine.ipynb"
    nbformat.write(made, target)
    return target


def wrong(rule: Rule) -> st.SearchStrategy:
    """Values that a rule refuses, by construction."""
    other = st.none() | st.lists(st.integers(), max_size=2) | st.dictionaries(WORDS, WORDS, max_size=1)
    if rule.kind is str:
        return other | st.integers() | st.floats() | (WORDS.filter(lambda x: x not in rule.choices) if rule.choices else other)
    outside = st.just(math.nan) | st.just(math.inf) | st.booleans() | WORDS
    if rule.kind is int:
        return other | outside | st.floats() | st.integers(max_value=rule.least - 1) | st.integers(min_value=rule.most + 1)
    least, most = float(rule.least), float(rule.most)
    return other | outside | st.floats(max_value=least, exclude_max=True) | st.floats(min_value=most, exclude_min=True)


def wrong_setting(known: dict[str, Rule]) -> st.SearchStrategy:
    """(name, value) that is refused."""
    return st.sampled_from(sorted(known)).flatmap(lambda name: st.tuples(st.just(name), wrong(known[name])))


def sentence(error: BaseException) -> None:
    """The message is one sentence."""
    assert str(error) and "\n" not in str(error) and len(str(error)) < 700


def refused(main: Callable[[list[str]], int], *arguments: str) -> str:
    """What a command says as it refuses, with exit status 2 and one line."""
    errors, output = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
        assert main(list(arguments)) == 2
    assert errors.getvalue().count("\n") == 1 and not output.getvalue(), errors.getvalue()
    return errors.getvalue()


def text_of(value: Any) -> str:
    """A value as a person would type it."""
    return value if isinstance(value, str) else json.dumps(value)


# the profile's settings


@tries(150)
@given(wrong_setting(PROFILE), st.sampled_from(list(profiles.PROFILES)))
def test_overrides(found: tuple[str, Any], profile: str) -> None:
    with pytest.raises(ValueError, match=f"setting {found[0]!r} takes") as caught:
        profiles.load(profile, dict([found]))
    sentence(caught.value)


@tries(40)
@given(JSON.filter(lambda x: x is not None and x != {}), st.booleans())
def test_anything_for_profile_and_overrides(value: Any, as_profile: bool) -> None:
    with pytest.raises(ValueError, match="takes|there is no|overrides") as caught:
        profiles.load(value, {}) if as_profile else profiles.load("smoke", value)
    sentence(caught.value)


@pytest.mark.parametrize(("smaller", "larger", "times", "left"), profiles.RELATIONS)
def test_settings_that_do_not_go_together(smaller: str, larger: str, times: int, left: int) -> None:
    others = {"images_train": 2000} if larger == "lora_images" else {"lora_images": 5000}  # so that this relation decides
    high = getattr(profiles.load("smoke", others), larger)
    most = (high - left) // times
    assert getattr(profiles.load("smoke", others | {smaller: most}), smaller) == most
    with pytest.raises(
        ValueError, match=f"setting {smaller!r} may be at most {most} where {larger!r} is {high}, not {most + 1}"
    ):
        profiles.load("smoke", others | {smaller: most + 1})


@pytest.mark.parametrize(
    "overrides",
    [
        {"batch_size": 250, "images_train": 2000, "lora_images": 200},  # the study of LoRA has fewer images
        {"batch_size": 70},  # in a varied zoo a network may see 60 of 300
        {"images_train": 100, "support_per_class": 9, "batch_size": 20},  # the rarest class has 6
        {"images_train": 70, "batch_size": 10, "support_per_class": 5},
        {"frontier_held_out": 11},  # it takes the place of held_out_per_task
        {"networks_per_task": 16, "held_out_per_task": 13},  # notebook 02 looks at four of those that are left
        {"held_out_per_task": 11},  # notebook 06 halves them, and an audit needs six
        {"samples_per_task": 5},
        {"own_held_out": 2},  # no two-sample test of six against two can reject
        {"own_runs": 7, "own_held_out": 4},  # notebook 07 shows the three nearest
        {"ood_test_images": 91},  # there are 90 real digits of some class
        {"ood_draws": 1},  # an interval needs two
        {"zoo_tasks": 1},  # of tasks too
        {"flow_steps": 3},  # some flows take a quarter
        {"plane_networks": 20},  # a half of the zoo may have none of some task
        {"lora_images": 20, "batch_size": 10},  # a class of an alphabet may have none
    ],
)
def test_what_once_failed_after_work_had_begun(overrides: dict) -> None:
    with pytest.raises(ValueError, match="^setting '[a-z_]+' (takes|may be at most)") as caught:
        profiles.load("smoke", overrides)
    sentence(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        {"networks_per_task": 10_000_000, "zoo_tasks": 8},
        {"images_train": 1_000_000, "images_test": 1_000_000},
        {"vae_width": 1_000_000},
        {"flow_batch": 10_000_000, "flow_width": 100_000},
        {"own_runs": 1_000_000},
        {"ood_draws": 100_000},
        {"fewshot_episodes": 1_000_000, "fewshot_images": 400},
    ],
)
def test_sizes_beyond_memory_name_both_numbers(monkeypatch: pytest.MonkeyPatch, overrides: dict) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 8 * 2**30}))
    with pytest.raises(ValueError, match=r"would take [0-9.,]+ GiB of memory, and this machine has 8\.0") as caught:
        profiles.load("tutorial", overrides)
    sentence(caught.value)
    assert all(profiles.load(name) for name in profiles.PROFILES), "what is shipped fits 8 GiB"


def test_every_value_of_every_profile_passes_at_every_door(path: Path) -> None:
    for profile, made in profiles.PROFILES.items():
        values = {name: value for name, value in made.as_dict().items() if name != "profile"}
        assert profiles.load(profile, values) == made
        texts = [part for name, value in values.items() for part in ("-p", f"{name}={text_of(value)}")]
        with pytest.raises(ReachedError):
            command_line.main(["run", str(path), "--profile", profile, *texts])
        namespace = {"In": [PARAMETERS], "profile": profile, "seed": 3, "overrides": values, "folder": ""}
        assert start.begin(namespace).as_dict() == made.as_dict()


def test_the_table_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["settings"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for kind in (profiles.Profile, ZooSettings, Training, SplitSizes) for name in rules(kind))
    assert all(
        rule.meaning and f"{rule.allowed}: {rule.meaning}" in said for rule in [*PROFILE.values(), *ENVIRONMENT.values()]
    )


def test_the_lists_of_names_are_the_same_everywhere() -> None:
    assert ENVIRONMENT["FLOWN_PROFILE"].choices == tuple(profiles.PROFILES)
    assert ENVIRONMENT["FLOWN_BACKEND"].choices == backends.BACKENDS
    assert PROFILE.keys() | {"profile"} == profiles.PROFILES["smoke"].as_dict().keys(), "every setting has a rule"


# -p of this command line


@tries(100)
@given(wrong_setting(PROFILE | {"seed": Rule(int, least=0, most=10**9)}))
def test_p_texts(path: Path, found: tuple[str, Any]) -> None:
    name, value = found
    if PROFILE.get(name, Rule(int)).kind is str and not PROFILE[name].choices:
        value = "no such model"  # every text is a text
    assert name in refused(command_line.main, "run", str(path), "--output", "out", "-p", f"{name}={text_of(value)}")
    assert not Path("out").exists()


@tries(30)
@given(st.text(max_size=30).filter(lambda text: text.partition("=")[0] not in {*PROFILE, "seed", "overrides", "folder"}))
def test_p_with_any_text(path: Path, text: str) -> None:
    refused(command_line.main, "run", str(path), f"-p{text}" if text else "-p=")


def test_p_twice_and_a_folder_relative_to_here(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "once for each name" in refused(command_line.main, "run", str(path), "-p", "seed=1", "-p", "seed=2")
    assert "'folder' takes a folder that exists, not 'my_runs'" in refused(
        command_line.main, "run", str(path), "-p", "folder=my_runs"
    )
    Path("my_runs").mkdir()
    reached: list[notebooks.Job] = []
    monkeypatch.setattr(runs, "run_all", lambda jobs, *_: reached.extend(jobs) or [runs.Outcome(path, 0, 0)])
    with contextlib.redirect_stdout(io.StringIO()):
        assert command_line.main(["run", str(path), "-p", "folder=my_runs", "--output", "out"]) == 0
    assert [job.parameters["folder"] for job in reached] == [str(Path("my_runs").resolve())]


# the parameters cell, and papermill's own -p


@tries(80)
@given(wrong_setting(PROFILE | {"seed": Rule(int, least=0, most=10**9)}), st.booleans())
def test_what_a_notebook_begins_with(found: tuple[str, Any], injected: bool) -> None:
    name, value = found
    namespace = {"profile": "smoke", "seed": 0, "overrides": {}, "folder": "", "In": ["", PARAMETERS]}
    if injected or name == "seed":
        if isinstance(value, str) and name in PROFILE and PROFILE[name].kind is str and not PROFILE[name].choices:
            value = 3
        namespace |= {name: value, "In": ["", PARAMETERS, f"# Parameters\n{name} = {value!r}\n"]}
    else:
        namespace["overrides"] = {name: value}
    with pytest.raises(ValueError, match=name) as caught:
        start.begin(namespace)
    sentence(caught.value)


def test_what_a_notebook_may_begin_with() -> None:
    injected = '# Parameters\nseed = "3"\nepochs = "3"\noverrides = "{}"\n'
    namespace = {"profile": "smoke", "seed": "3", "overrides": '{"vae_steps": 7}', "folder": "", "epochs": "3"}
    settings = start.begin(namespace | {"In": ["", PARAMETERS, injected]})
    assert (settings.epochs, settings.vae_steps) == (3, 7)
    edited = {"profile": "smoke", "seed": 5, "overrides": {}, "In": ["", "seed = 5", "%matplotlib inline"]}
    assert start.begin(edited).profile == "smoke", "a person may have rewritten the cell"
    with pytest.raises(ValueError, match="run the parameters cell first: there is no profile yet"):
        start.begin({"In": ["from flownlib.chapters import start"]})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": "one"}, "ValueError: parameter 'seed' takes a whole number from 0 to 1,000,000,000, not 'one'"),
        ({"epoch": 3}, "ValueError: this notebook has no parameter 'epoch'; it takes profile, seed, overrides, folder; "),
        ({"seed": "3", "epochs": "3", "folder": "runs"}, None),
    ],
)
def test_papermill_itself(path: Path, tmp_path: Path, given: dict, said: str | None) -> None:
    (tmp_path / "runs").mkdir()
    copy, options = tmp_path / "copy.ipynb", {"kernel_name": "python3", "progress_bar": False, "cwd": tmp_path}
    if said:
        with pytest.raises(PapermillExecutionError) as caught:
            papermill.execute_notebook(path, copy, given, **options)
        assert f"{caught.value.ename}: {caught.value.evalue}".startswith(said)
    else:
        papermill.execute_notebook(path, copy, given, **options)
        (output,) = nbformat.read(copy, 4).cells[-1].outputs
        assert output.text == f"3 3 {tmp_path / 'runs'}\n"


# zoo.json


ZOO_FIELDS = {
    **{(name,): rule for name, rule in rules(ZooSettings).items()},
    **{("sizes", name): rule for name, rule in rules(SplitSizes).items()},
    **{("training", name): rule for name, rule in rules(Training).items()},
}
BAD_TASKS = st.sampled_from([[], "latin", None, 3, {}, {"latin": 1}, ["latin", "latin"], ["elvish"], [["latin"]], [None], [1]])


@tries(120)
@given(st.sampled_from(list(ZOO_FIELDS)).flatmap(lambda place: st.tuples(st.just(place), wrong(ZOO_FIELDS[place]))))
def test_a_wrong_value_in_zoo_json(found: tuple[tuple[str, ...], Any]) -> None:
    (*outer, name), value = found
    changed = {outer[0]: GOOD_ZOO[outer[0]] | {name: value}} if outer else {name: value}
    Path("zoo.json").write_text(json.dumps(GOOD_ZOO | changed))
    assert f"setting {name!r} takes" in refused(training.main, "--zoo-settings", "zoo.json")


@tries(60)
@given(BAD_TASKS | JSON.filter(lambda x: not isinstance(x, list) or x not in [["latin"]]), st.sampled_from(sorted(GOOD_ZOO)))
def test_anything_in_a_field_of_zoo_json(value: Any, name: str) -> None:
    if name == "seed" and type(value) is int and 0 <= value <= 10**9:
        value = -1
    if name == "networks" and type(value) is int and 1 <= value <= 10**7:
        value = 0
    if name in ("sizes", "training") and value == {}:
        value = []
    Path("zoo.json").write_text(json.dumps(GOOD_ZOO | {name: value}))
    refused(training.main, "--zoo-settings", "zoo.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "cannot read zoo settings"),
        (b"\xff\xfe{", "cannot read zoo settings"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "cannot read zoo settings"),
        (b'{"tasks": ["latin"], "networks": 2, "networks": 3}', "given twice"),
        (b"null", "holds no settings"),
        (b'{"tasks": ["latin"]}', "networks"),
        (b'{"tasks": ["latin"], "networks": 2, "training": {"batch_size": 2001}}', "at most 2000"),
        (b'{"tasks": ["digits_handwritten"], "networks": 2, "training": {"batch_size": 601}}', "at most 600"),
        (b'{"tasks": ["latin"], "networks": 2, "kind": "varied", "training": {"batch_size": 401}}', "at most 400"),
        (b'{"tasks": ["latin"], "networks": 601, "kind": "one_run"}', "600 steps has no 601"),
        (b'{"tasks": ["latin"], "networks": 10000000, "kind": "trajectories"}', "GiB of memory"),
        (b'{"tasks": ["latin"], "networks": 2, "sizes": {"train": 10000000}}', "GiB of memory"),
        (b'{"tasks": ["latin"], "networks": 2, "classifier": "mlp_1x28x28_9999999_9999999_10"}', "GiB of memory"),
        (b'{"tasks": ["latin"], "networks": 2, "classifier": "mlp_1x28x28_0_10"}', "no classifier"),
    ],
)
def test_files_that_are_no_settings(text: bytes, words: str) -> None:
    Path("zoo.json").write_bytes(text)
    assert words in refused(training.main, "--zoo-settings", "zoo.json")
    assert refused(training.main, "--zoo-settings", "none.json") and refused(training.main, "--zoo-settings", ".")


def test_a_good_zoo_json_gets_to_work() -> None:
    for content in (ZOO, GOOD_ZOO, ZOO | {"training": {"epochs": 1, "learning_rate": 1}}, ZOO | {"tasks": IN_DISTRIBUTION}):
        Path("zoo.json").write_text(json.dumps(content))
        with pytest.raises(ReachedError):
            training.main(["--zoo-settings", "zoo.json"])


@tries(60)
@given(
    st.sampled_from([ZooSettings, Training, SplitSizes]).flatmap(
        lambda kind: st.tuples(st.just(kind), wrong_setting(rules(kind)))
    )
)
def test_settings_made_in_python(found: tuple[type, tuple[str, Any]]) -> None:
    kind, (name, value) = found
    needed = {"tasks": ("latin",), "networks": 2} if kind is ZooSettings else {}
    with pytest.raises(ValueError, match=f"setting {name!r} takes") as caught:
        kind(**(needed | {name: value}))
    sentence(caught.value)


# environment variables and options


def wrong_texts(rule: Rule) -> st.SearchStrategy:
    """Texts that stand for no value of the rule; not the empty one."""
    if rule.choices:
        return WORDS.filter(lambda text: text and text not in rule.choices)
    numbers = st.integers(max_value=rule.least - 1) | st.integers(min_value=rule.most + 1) | st.floats() | st.booleans()
    return WORDS.filter(bool) | numbers.map(str)


@tries(60)
@given(st.sampled_from(sorted(ENVIRONMENT)).flatmap(lambda name: st.tuples(st.just(name), wrong_texts(ENVIRONMENT[name]))))
def test_environment_variables(path: Path, found: tuple[str, str]) -> None:
    name, text = found
    Path("zoo.json").write_text(json.dumps(GOOD_ZOO))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, text)
        assert f"variable {name} takes" in refused(training.main, "--zoo-settings", "zoo.json")
        if name.startswith("FLOWN_"):
            assert name in refused(command_line.main, "run", str(path)) and name in refused(benchmarks.main, "zoo")


@pytest.mark.parametrize(
    "given", [{"RANK": ""}, {"WORLD_SIZE": ""}, {"RANK": "1"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"FLOWN_CACHE": "file"}]
)
def test_ranks_and_folders(monkeypatch: pytest.MonkeyPatch, given: dict) -> None:
    Path("zoo.json").write_text(json.dumps(GOOD_ZOO))
    Path("file").touch()
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    assert next(iter(given)) in refused(training.main, "--zoo-settings", "zoo.json")


OPTIONS = {
    (command_line.main, "run", "--timeout"): command_line.TIMEOUT,
    (command_line.main, "run", "studies/01_zoo", "--seeds"): notebooks.PARAMETERS["seed"],
    (command_line.main, "run", "studies/01_zoo", "--jobs"): command_line.JOBS,
    (command_line.main, "run", "--profile"): ENVIRONMENT["FLOWN_PROFILE"],
    (benchmarks.main, "zoo", "--rounds"): benchmarks.ROUNDS,
    (benchmarks.main, "workers", "--networks"): benchmarks.NETWORKS,
}


@tries(60)
@given(st.sampled_from(list(OPTIONS)).flatmap(lambda place: st.tuples(st.just(place), wrong_texts(OPTIONS[place]))))
def test_options(found: tuple[tuple[Any, ...], str]) -> None:
    (main, *command, option), text = found
    assert f"{option} takes" in refused(main, *command, f"{option}={text}")


def test_good_options_get_to_work(path: Path) -> None:
    for main, arguments in (
        (command_line.main, ["run", str(path), "--timeout", "1", "--output", "out"]),
        (command_line.main, ["run", "studies/01_zoo", "--seeds", "1", "--output", "out"]),
        (benchmarks.main, ["zoo", "--rounds", "2", "--networks", "4", "8"]),
    ):
        with pytest.raises(ReachedError), contextlib.redirect_stderr(io.StringIO()):
            main(arguments)


def test_files_in_the_way(path: Path) -> None:
    Path("file").write_text("{}")
    Path("results").mkdir(exist_ok=True)
    for arguments in (
        ["run", str(path), "--output", "file"],
        ["run", str(path), "--output", "file/below"],
        ["report", "--print", "--results", "results"],
        ["report", "--print", "--results", "nowhere"],
        ["report", "--results", "results"],
        ["run", "\x00" * 1000],
    ):
        refused(command_line.main, *arguments)
    for classifier in ("elvish", "mlp_1x28x28_9999999_9999999_10"):
        refused(benchmarks.main, "zoo", "--classifier", classifier, "--networks", "1000")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'{"cells": null, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ]
    + [
        json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 4, "metadata": {}}).encode() for cells in ([None], 3, [{}])
    ],
)
def test_files_that_are_no_notebooks(content: bytes) -> None:
    Path("11_odd.ipynb").write_bytes(content)
    assert "11_odd.ipynb" in refused(command_line.main, "run", "11_odd.ipynb")


def test_a_console_without_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", console)
    monkeypatch.setattr("flownlib.harness.doctor.main", lambda: print("✓ fine") or 0)
    assert command_line.main(["doctor"]) == 0
    console.flush()
    assert console.buffer.getvalue() == b"? fine\n"

"""Whatever is handed to the library (the compiled kernel, scoring, tests, generators, the audit) is right or refused."""

import inspect
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from flownlib.baselines import Gaussian, Noise, Retrieval, Soup
from flownlib.chapters.shared import CanonicalZoo
from flownlib.chapters.shared_methods import variant
from flownlib.encoders import WeightSpace
from flownlib.evaluation import ReferenceSet, compare
from flownlib.extensions.audit import audit, table_of
from flownlib.extensions.diffusion import LatentDiffusion
from flownlib.extensions.pca import PCA
from flownlib.extensions.regression import HyperNetwork, KernelDensity
from flownlib.generators import FlowGenerator, FlowTraining
from flownlib.networks import Classifier, Linear
from flownlib.scoring import Split, Task, score
from flownlib.speed import lanes
from flownlib.speed.loops import train_many
from flownlib.speed.plan import initial_weights
from flownlib.statistics import energy_test
from flownlib.zoo import Zoo

MODEL = Classifier("tiny", (1, 3, 3), (Linear(9, 4), Linear(4, 3)))
NAN, INF = float("nan"), float("inf")
needs_compiler = pytest.mark.skipif(lanes.compiler() is None, reason="there is no C++ compiler")


def bad(examples):
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def call(dtype=torch.float32):
    """A good call of the kernel: 3 networks, 12 images, 4 steps of 2 images."""
    return {
        "weights": initial_weights(MODEL, range(3), dtype),
        "images": torch.randn(12, 1, 3, 3, generator=seeded(1), dtype=dtype),
        "labels": torch.randint(3, (12,), generator=seeded(2)),
        "orders": torch.randint(12, (3, 4, 2), generator=seeded(3)),
        "rate": torch.full((3,), 0.01, dtype=dtype),
        "decay": torch.zeros(3, dtype=dtype),
        "record": [2, 4],
    }


def poked(tensor, value, at):
    """A copy with one number changed."""
    changed = tensor.clone()
    changed.view(-1)[at % tensor.numel()] = value
    return changed


REALS, WHOLES = ("weights", "images", "rate", "decay"), ("labels", "orders")
FLOATS = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
PLACE = st.integers(0, 10_000)


def not_tensors(names):
    return st.tuples(st.sampled_from(names), st.sampled_from([None, 3.5, "x", [1, 2], {}]).map(lambda v: lambda _: v))


KERNEL_FAULTS = st.one_of(
    # numbers that are none
    st.tuples(
        st.sampled_from(REALS), st.tuples(st.sampled_from([NAN, INF, -INF]), PLACE).map(lambda p: lambda t: poked(t, *p))
    ),
    # rates and decays that are none either
    st.tuples(st.just("rate"), st.tuples(st.floats(-5, 0), PLACE).map(lambda p: lambda t: poked(t, *p))),
    st.tuples(st.just("decay"), st.tuples(st.floats(-5, -1e-3), PLACE).map(lambda p: lambda t: poked(t, *p))),
    # whole numbers out of range: before, just after, far away
    st.tuples(
        st.sampled_from(WHOLES),
        st.tuples(st.one_of(st.integers(-(2**62), -1), st.integers(12, 2**62)), PLACE).map(lambda p: lambda t: poked(t, *p)),
    ),
    st.tuples(st.just("labels"), st.tuples(st.integers(3, 11), PLACE).map(lambda p: lambda t: poked(t, *p))),
    # other types
    st.tuples(st.sampled_from(WHOLES), FLOATS.map(lambda d: lambda t: t.to(d))),
    st.tuples(
        st.just("weights"), st.sampled_from([torch.float64, torch.float16, torch.int64]).map(lambda d: lambda t: t.to(d))
    ),
    st.tuples(st.just("images"), st.sampled_from([torch.uint8, torch.int64, torch.bool]).map(lambda d: lambda t: t.to(d))),
    # other shapes: fewer rows, one axis less or more, an axis of another size, nothing at all
    st.tuples(st.sampled_from(("images", "labels", "weights")), st.integers(0, 2).map(lambda n: lambda t: t[:n])),
    st.tuples(st.just("orders"), st.sampled_from([0, 2]).map(lambda n: lambda t: t[:n])),
    st.tuples(st.sampled_from(("weights", "images", "orders", "labels")), st.just(lambda t: t[..., :0])),
    st.tuples(st.sampled_from(("weights", "images", "orders", "labels")), st.just(lambda t: t[0])),
    st.tuples(st.sampled_from(("weights", "images", "orders", "labels")), st.just(lambda t: t[None])),
    st.tuples(st.sampled_from(("weights", "images")), st.integers(1, 2).map(lambda n: lambda t: t[..., :-n])),
    st.tuples(st.sampled_from(("weights", "images")), st.just(lambda t: torch.cat([t, t], -1))),
    st.tuples(st.sampled_from(("rate", "decay")), st.integers(0, 2).map(lambda n: lambda t: t[:n])),
    # other memory
    st.tuples(st.sampled_from(("weights", "images", "labels", "orders")), st.just(lambda t: t.to("meta"))),
    st.tuples(st.sampled_from(("weights", "images", "labels", "orders")), st.just(lambda t: t.to_sparse())),
    st.tuples(st.just("record"), st.sampled_from([[-1], [5], [2, 9]]).map(lambda r: lambda _: r)),
    not_tensors(("weights", "images", "labels", "orders")),
)


@needs_compiler
@bad(300)
@given(fault=KERNEL_FAULTS)
def test_the_kernel_refuses_every_bad_call(fault):
    name, change = fault
    arguments = call()
    with pytest.raises(ValueError) as error:
        lanes.kernel(MODEL, torch.float32).train(**(arguments | {name: change(arguments[name])}))
    assert "\n" not in str(error.value)


STRIDED = st.sampled_from(
    [
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),  # columns side by side
        lambda t: torch.stack([t, t + 1], -1)[..., 0],  # every other number
        lambda t: torch.cat([t, t])[: len(t)],  # part of a longer one
    ]
)
WHOLE = st.sampled_from([torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])


@needs_compiler
@bad(60)
@given(kind=WHOLE, name=st.sampled_from(WHOLES), strided=st.dictionaries(st.sampled_from((*REALS, *WHOLES)), STRIDED))
def test_other_whole_numbers_and_other_memory_give_the_same_bits(kind, name, strided):
    arguments, kernel = call(), lanes.kernel(MODEL, torch.float32)
    expected = kernel.train(**arguments)
    changed = arguments | {name: arguments[name].to(kind)}
    changed |= {key: lay(changed[key]) for key, lay in strided.items()}
    assert torch.equal(kernel.train(**changed), expected)
    assert not torch.equal(kernel.train(**(arguments | {"labels": arguments["labels"].flip(0)})), expected)


CRASHES = {
    "int32 labels, once read as int64": "a['labels'] = a['labels'].int()",
    "float labels": "a['labels'] = a['labels'].float()",
    "float orders": "a['orders'] = a['orders'].double()",
    "fewer labels than images": "a['labels'] = a['labels'][:1]",
    "weights of the other precision": "a['weights'] = a['weights'].half().repeat(1, 1)",
    "an image far away": "a['orders'][0, 0, 0] = 2**40",
    "a label far away": "a['labels'][0] = 2**40",
}


@needs_compiler
def test_what_once_ended_the_process_ends_in_a_sentence():
    lines = ["import torch", "from flownlib.speed import lanes", "from flownlib.networks import Classifier, Linear"]
    lines += ["from flownlib.speed.plan import initial_weights", f"MODEL = {MODEL!r}", *map(inspect.getsource, (seeded, call))]
    lines += ["kernel, good = lanes.kernel(MODEL, torch.float32), call()", "expected = kernel.train(**good)"]
    for change in CRASHES.values():
        lines += ["a = call()", change, "try:", "    print(torch.equal(kernel.train(**a), expected))"]
        lines += ["except ValueError as error:", "    print('ValueError', error)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert said[0] == "True" and len(said) == len(CRASHES)
    assert all(line.startswith("ValueError") for line in said[1:])


@bad(60)
@given(fault=KERNEL_FAULTS.filter(lambda fault: fault[0] != "weights"))
def test_plain_torch_refuses_what_the_kernel_refuses(fault):
    name, change = fault
    a = call()
    a[name] = change(a[name])
    with pytest.raises(ValueError):
        split = Split(a["images"], a["labels"])
        train_many(MODEL, a["weights"], split, a["orders"], a["rate"], a["record"], a["decay"], "torch")


def networks(seed=0, n=8):
    """A zoo of two tasks, n networks each: initial weights, which is all that is needed here."""
    weights = initial_weights(MODEL, range(1000 * seed, 1000 * seed + 2 * n))
    table = pd.DataFrame({"task": ["one"] * n + ["two"] * n, "seed": [*range(n)] * 2})
    return Zoo(weights, table, MODEL)


def task(name, seed=0):
    draw = lambda n, part: Split(
        torch.randn(n, 1, 3, 3, generator=seeded(10 * seed + part)), torch.randint(3, (n,), generator=seeded(part))
    )
    return Task(name, 3, draw(20, 1), draw(20, 2), draw(30, 3))


TASKS = {name: task(name, seed) for seed, name in enumerate(("one", "two"))}
CONTEXTS = {"one": torch.zeros(2, 5), "two": torch.ones(2, 5)}
ZOO = CanonicalZoo(networks(0, 10), networks(1, 8), None)


def fitted():
    pca, short = PCA.fit(ZOO.train, 4), FlowTraining(3, 8)
    made = [Retrieval(), Noise(0.3), Soup(), Gaussian(), KernelDensity(pca), HyperNetwork(pca, training=short)]
    made += [FlowGenerator(pca, width=16, training=short), LatentDiffusion(pca, width=16, training=short, levels=20, steps=4)]
    return [generator.fit(ZOO.train, CONTEXTS, 0) for generator in made]


GENERATORS = fitted()


class Given(Retrieval):
    """Hands out given networks whatever it is asked."""

    def __init__(self, weights, name="given"):
        self.weights, self.name = weights, name

    def sample(self, n, y, generator):
        return self.weights


@bad(60)
@given(
    name=st.sampled_from(("weights", "x", "y")),
    value=st.sampled_from([NAN, INF, -INF, 2**40, -1]),
    at=PLACE,
    how=st.sampled_from(["poke", "poke", "empty", "short", "narrow", "float", "flat"]),
)
def test_scoring_refuses_what_is_no_network_no_image_or_no_label(name, value, at, how):
    good = {"weights": ZOO.train.weights, "x": TASKS["one"].test.x, "y": TASKS["one"].test.y}
    assert score(MODEL, **good).accuracy.isfinite().all()
    tensor = good[name]
    if how == "poke":
        assume((name == "y") == (value in (2**40, -1)))
        changed = poked(tensor, value, at)
    else:
        changed = {
            "empty": tensor[:0],
            "short": tensor[1:],
            "narrow": tensor[..., 1:],
            "float": tensor.double() if name == "y" else tensor.long(),
            "flat": tensor.flatten(),
        }[how]
        assume(not (name == "weights" and how == "short") and not (name == "y" and how == "flat"))
    with pytest.raises(ValueError):
        score(MODEL, **(good | {name: changed}))


def test_a_diverged_network_is_scored_when_asked_for_and_named_when_not():
    weights = poked(ZOO.train.weights, NAN, MODEL.layout.size + 3)
    images = TASKS["one"].test
    with pytest.raises(ValueError, match="networks 1 of 20 hold numbers that are not finite"):
        score(MODEL, weights, images.x, images.y)
    allowed = score(MODEL, weights, images.x, images.y, allow_diverged=True)
    assert torch.equal(allowed.wrong[2:], score(MODEL, weights[2:], images.x, images.y).wrong)


@bad(60)
@given(
    side=st.booleans(),
    value=st.sampled_from([NAN, INF, -INF]),
    at=PLACE,
    how=st.sampled_from(["poke", "none", "d", "flat", 0, -3]),
)
def test_a_two_sample_test_of_what_is_no_number_has_no_p_value(side, value, at, how):
    samples, permutations = [torch.randn(6, 3, generator=seeded(k)) for k in range(2)], 9
    assert 0 < energy_test(*samples, permutations, seeded())[1] <= 1
    changes = {
        "poke": poked(samples[side], value, at),
        "none": samples[side][:0],
        "d": samples[side][:, :1],
        "flat": samples[side][0],
    }
    samples[side] = changes.get(how, samples[side])
    with pytest.raises(ValueError):
        energy_test(*samples, how if isinstance(how, int) else permutations, seeded())


@bad(100)
@given(
    generator=st.sampled_from(GENERATORS),
    n=st.sampled_from([0, -1, 2.5, True, None, 4]),
    y=st.sampled_from(
        [torch.zeros(s) for s in ((1,), (), (4,), (6,), (5, 1), (1, 5), (4, 5), (0,))] + [torch.full((5,), NAN), None]
    ),
)
def test_generators_refuse_other_contexts_and_no_networks(generator, n, y):
    good = CONTEXTS["one"][0]
    assert generator.sample(4, good, seeded()).shape == (4, MODEL.layout.size)
    with pytest.raises(ValueError):
        generator.sample(4, y, seeded())
    if n != 4 or n is True:
        with pytest.raises(ValueError):
            generator.sample(n, good, seeded())


@bad(40)
@given(
    steps=st.one_of(st.integers(-100, 0), st.sampled_from([2.5, True, "3", None])),
    what=st.sampled_from(["steps", "batch_size"]),
)
def test_less_than_one_step_is_no_training(steps, what):
    with pytest.raises(ValueError, match=f"{what} of a flow's training must be a whole number of at least 1"):
        FlowTraining(**{what: steps})
    for generator in GENERATORS[-2:]:
        with pytest.raises(ValueError, match="at least"):
            variant(generator, steps=steps).sample(2, CONTEXTS["one"][0], seeded())


@bad(60)
@given(
    part=st.sampled_from(("train", "validation", "test")),
    value=st.sampled_from([NAN, INF, 3, 4, 2**40, -1]),
    at=PLACE,
    how=st.sampled_from(["poke", "poke", "empty", "fewer labels", "float labels", "from one", "other images"]),
)
def test_a_task_of_bad_images_or_labels_cannot_be_made(part, value, at, how):
    good = TASKS["one"]
    x, y = getattr(good, part).x, getattr(good, part).y
    with pytest.raises(ValueError):
        if how == "poke":
            split = Split(x, poked(y, value, at)) if isinstance(value, int) else Split(poked(x, value, at), y)
        else:
            split = {
                "empty": lambda: Split(x[:0], y[:0]),
                "fewer labels": lambda: Split(x, y[1:]),
                "float labels": lambda: Split(x, y.float()),
                "from one": lambda: Split(x, y + 1),
                "other images": lambda: Split(x[..., 1:], y),
            }[how]()
        replace(good, **{part: split})


def test_other_whole_labels_are_the_same_labels():
    split = Split(TASKS["one"].train.x, TASKS["one"].train.y.to(torch.uint8))
    assert split.y.dtype == torch.int64 and torch.equal(split.y, TASKS["one"].train.y)


def leaky(noise, count, side="held_out", part=None):
    """The zoo with `count` networks a task of one side replaced by (near) copies of training networks."""
    zoo = getattr(ZOO, side)
    weights, scale = zoo.weights.clone(), WeightSpace.fit(ZOO.train).standardiser.scale
    for name in zoo.tasks:
        rows = torch.tensor((zoo.table["task"] == name).to_numpy()).nonzero()[:, 0][-count:]
        source = ZOO.train.task(name).weights[:count]
        weights[rows] = source + noise * scale * torch.randn(source.shape, generator=seeded())
    return replace(ZOO, **{side: zoo.with_weights(weights)})


@bad(60)
@given(noise=st.floats(0, 0.2), count=st.integers(1, 8), where=st.sampled_from(["held_out", "held_out", "train", "same"]))
def test_an_audit_notices_copies_in_its_reference(noise, count, where):
    if where == "held_out":
        zoo, words = leaky(noise, count), f"{count} of the 8 held-out networks of task 'one' are copies or near copies"
    elif where == "train":
        zoo, words = leaky(0.0, min(count, 5), "train"), "of the 10 training networks of task 'one' are copies of one another"
    else:
        one = ZOO.held_out.weights[:1].expand(16, -1)
        zoo, words = (
            replace(ZOO, held_out=ZOO.held_out.with_weights(one)),
            "8 of the 8 held-out networks of task 'one' are copies",
        )
    with pytest.raises(ValueError, match=words):
        audit(GENERATORS[2], zoo, TASKS, CONTEXTS, 8, 0)


BAD_AUDITS = {
    "few": (lambda a, k: a | {"n": k % 6}, "needs 6 samples a task or more"),
    "negative": (lambda a, k: a | {"n": -k}, "needs 6 samples a task or more"),
    "few made": (lambda a, k: a | {"generator": Given(networks(2).weights[: k % 6])}, "needs 6 samples|shape"),
    "nan": (lambda a, k: a | {"generator": Given(poked(networks(2).weights, NAN, k))}, "hold numbers that are not finite"),
    "narrow": (lambda a, k: a | {"generator": Given(networks(2).weights[:, 1 + k % 9 :])}, "shape"),
    "context": (lambda a, k: a | {"contexts": {n: y[:, : k % 5] for n, y in CONTEXTS.items()}}, "contexts of shape"),
    "no context": (lambda a, k: a | {"contexts": {"one": CONTEXTS["one"]}}, "one is missing"),
    "no task": (lambda a, k: a | {"tasks": {}}, "1 to 24 tasks, not 0"),
    "renamed": (lambda a, k: a | {"tasks": {"one": replace(TASKS["one"], name=f"other {k}")}}, "calls itself 'other"),
    "unknown": (lambda a, k: a | {"tasks": {"three": TASKS["one"]}}, "one is missing"),
    "one held out": (lambda a, k: a | {"zoo": replace(ZOO, held_out=last(ZOO.held_out, 1))}, "too few"),
    "unmeasured": (lambda a, k: a | {"references": {}}, "one is missing"),
}


def last(zoo, count):
    return zoo.select(zoo.table["seed"] >= zoo.table["seed"].max() + 1 - count)


@bad(80)
@given(kind=st.sampled_from(sorted(BAD_AUDITS)), k=st.integers(1, 200))
def test_an_audit_refuses_what_it_cannot_judge(kind, k):
    change, words = BAD_AUDITS[kind]
    good = {"generator": GENERATORS[0], "zoo": ZOO, "tasks": TASKS, "contexts": CONTEXTS, "n": 8, "seed": 0}
    with pytest.raises(ValueError, match=words):
        audit(**change(good, k))


def test_one_network_again_and_again_is_neither_an_average_nor_the_zoo():
    for weights in (
        networks(3).weights[:1].expand(12, -1),
        networks(3).weights[:2].repeat(8, 1),
        networks(3).weights[:4].repeat(8, 1),
    ):
        assert audit(Given(weights), ZOO, TASKS, CONTEXTS, 12, 0).verdict == "too alike"
    assert (
        audit(Given(ZOO.train.weights[:1].expand(12, -1)), ZOO, {"one": TASKS["one"]}, CONTEXTS, 12, 0).verdict == "memorises"
    )
    mean = torch.stack([ZOO.train.task(name).weights.mean(0) for name in TASKS]).mean(0).expand(12, -1)
    assert audit(Given(mean), ZOO, TASKS, CONTEXTS, 12, 0).verdict == "averages"
    with pytest.raises(ValueError, match="needs 6 samples a task or more, and there are 1"):
        audit(Given(networks(3).weights[:1]), ZOO, TASKS, CONTEXTS, 12, 0)


def test_methods_of_one_name_are_not_merged():
    references = {
        name: ReferenceSet.of(one, ZOO.train, ZOO.held_out, WeightSpace.fit(ZOO.train)) for name, one in TASKS.items()
    }
    one, other = GENERATORS[0], Given(networks(3).weights, "retrieval")
    with pytest.raises(ValueError, match="methods of different names.*rename 'retrieval'"):
        compare([one, other], references, CONTEXTS, ZOO.held_out, 8, 0)
    audits = [audit(given, ZOO, TASKS, CONTEXTS, 8, 0, references) for given in (one, other)]
    assert len(table_of(audits[:1])) == 4
    for wrong in (audits, [], [replace(audits[0], name="zoo_held_out")]):
        with pytest.raises(ValueError, match="methods of different names"):
            table_of(wrong)

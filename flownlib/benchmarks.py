"""How fast zoos are made on this machine: `python -m flownlib.benchmarks zoo · workers · thousand · kills`.

Everything is measured in one run, variants taking turns, so that a busy neighbour slows all alike. Results go to
figures/results/benchmark_<name>_<device>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from flownlib import backends, results
from flownlib.classifiers import Classifier, Conv, classifier
from flownlib.scoring import logits_of
from flownlib.statistics import mean_interval, proportion_interval
from flownlib.tasks import Split, SplitSizes, load_task
from flownlib.training import Training, initial_weights, minibatch_orders, train_many, train_one
from flownlib.workers import default_workers
from flownlib.zoo import Zoo, ZooSettings, collect

BATCH = 50
Job = Callable[[], int]  # does some work, returns how many model-steps it was


def operations_per_step(model: Classifier, batch: int = BATCH) -> int:
    """Floating-point operations of one optimiser step of one network: forward, weight and input gradients, two a product."""
    _, height, width = model.image_shape
    products = 0
    for i, layer in enumerate(model.layers):
        if isinstance(layer, Conv):
            height, width = ((n + 2 * layer.padding - layer.kernel) // layer.stride + 1 for n in (height, width))
            here = height * width * layer.out_channels * layer.in_channels * layer.kernel**2
            height, width = height // layer.pool, width // layer.pool
        else:
            here = layer.in_features * layer.out_features
        products += here * (2 if i == 0 else 3)  # nobody needs the gradient of the images
    return 2 * batch * products


def clock(device: str) -> float:
    """Processor seconds, which a busy machine does not stretch; on a GPU seconds by the clock, once it is idle."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak(device: str, size: int = 1024) -> float:
    """Floating-point operations a second in float32 matrix products."""
    a = torch.randn(size, size, device=device)
    start, count = clock(device), 0
    while clock(device) - start < 0.3:
        _, count = a @ a, count + 1
    return 2 * size**3 * count / (clock(device) - start)


def vmap_steps(model: Classifier, weights: Tensor, data: Split, orders: Tensor) -> int:
    """Training by torch.func: one plain module under vmap, each network with its own minibatches."""
    module = model.module().to(weights.device)
    weights = weights.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=3e-3, fused=True)
    one = vmap(lambda vector, x: functional_call(module, model.layout.views(vector), (x,)))
    for batch in orders.unbind(1):
        logits = one(weights, data.x[batch])
        loss = F.cross_entropy(logits.flatten(0, 1), data.y[batch].flatten(), reduction="sum") / batch.shape[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return orders.shape[0] * orders.shape[1]


def zoo_jobs(model: Classifier, device: str, counts: list[int]) -> dict[tuple[str, str, int], Job]:
    """(method, minibatches, networks) → a job of about the same length each."""
    task = load_task("latin", SplitSizes()) if model.image_shape == (1, 28, 28) else None
    generator = torch.Generator().manual_seed(0)
    split = task.train if task else Split(torch.randn(2000, *model.image_shape, generator=generator), torch.arange(2000) % 10)
    data = Split(split.x.to(device), split.y.to(device))
    most = max(counts)
    weights = initial_weights(model, range(most)).to(device)
    orders = minibatch_orders(range(most), len(data), Training(1, BATCH)).to(device)

    def many(m: int, shared: bool, backend: str, steps: int) -> int:
        train_many(model, weights[:m], data, orders[: 1 if shared else m, :steps], 3e-3, backend=backend)
        return m * steps

    def alone(steps: int = 40) -> int:
        train_one(model, weights[0], data, orders[0, :steps], 3e-3)
        return steps

    jobs: dict[tuple[str, str, int], Job] = {("loop", "own", 1): alone}
    methods = ("torch", "lanes") if backends.choose("auto", model, torch.float32, device) == "lanes" else ("torch",)
    for m in counts:
        steps, few = max(10, min(40, 640 // m)), max(3, min(40, 640 // m))
        jobs["vmap", "own", m] = lambda m=m, few=few: vmap_steps(model, weights[:m], data, orders[:m, :few])
        for method in methods:
            for shared in (False, True):
                key = (method, "shared" if shared else "own", m)
                jobs[key] = lambda m=m, shared=shared, method=method, steps=steps: many(m, shared, method, steps)
    return jobs


def zoo(options: argparse.Namespace) -> list[dict]:
    """Model-steps a second: the sequential loop, vmap, ours in plain PyTorch and compiled, at several M."""
    device, model = options.device, classifier(options.classifier)
    counts = options.networks or ([16, 64, 256] if device == "cpu" else [64, 256, 1024, 4096])
    jobs = zoo_jobs(model, device, counts)
    rates: dict[tuple[str, str, int], list[float]] = {key: [] for key in jobs}
    peaks: list[float] = []
    for job in jobs.values():
        job()  # compiles, warms the caches
    for _ in range(options.rounds):
        peaks.append(peak(device))
        for key, job in jobs.items():
            start = clock(device)
            rates[key].append(job() / (clock(device) - start))
    fastest = statistics.median(peaks)
    share = operations_per_step(model) / fastest
    loop = rates["loop", "own", 1]
    print(f"{model.name} on {device_name(device)}, {options.rounds} rounds; matrix products {fastest / 1e9:.0f} GFLOP/s")
    print(f"{'method':<8}{'minibatches':<13}{'M':>5}{'steps/s':>12}{'× loop (95 %)':>26}{'of peak':>9}")
    made = []
    for (method, minibatches, m), found in rates.items():
        ratio, rate = mean_interval([a / b for a, b in zip(found, loop, strict=True)]), mean_interval(found)
        print(f"{method:<8}{minibatches:<13}{m:>5}{rate.value:>12,.0f}{str(ratio):>26}{rate.value * share:>8.0%}")
        setting = {"classifier": model.name, "minibatches": minibatches, "networks": m, "device": device_name(device)}
        made.append(results.record("model_steps_per_second", method, setting, rate, [0]))
        made.append(results.record("speedup", method, setting, ratio, [0]))
        made.append(results.record("share_of_peak", method, setting, mean_interval([r * share for r in found]), [0]))
    return made + evaluation(model, device, options.rounds)


def evaluation(model: Classifier, device: str, rounds: int) -> list[dict]:
    """Networks evaluated on 5,000 images in a second: one module after another, and ours."""
    generator = torch.Generator().manual_seed(0)
    weights = model.initialise(32, generator).to(device)
    x = torch.randn(5000, *model.image_shape, generator=generator).to(device)
    module = model.module().to(device)

    @torch.no_grad()
    def plain() -> None:
        for images in x.split(1000):
            module(images)

    jobs = {"loop": (plain, 1), "torch": (lambda: logits_of(model, weights, x, backend="torch"), 32)}
    if backends.choose("auto", model, torch.float32, device) == "lanes":
        jobs["lanes"] = (lambda: logits_of(model, weights, x, backend="lanes"), 32)
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, (job, count) in jobs.items():
            start = clock(device)
            job()
            rates[name].append(count / (clock(device) - start))
    made = []
    for name, found in rates.items():
        print(f"evaluation on 5,000 images, {name:<6}{mean_interval(found).value:>10,.0f} networks/s")
        setting = {"classifier": model.name, "images": 5000, "device": device_name(device)}
        made.append(results.record("networks_per_second", name, setting, mean_interval(found), [0]))
    return made


@contextmanager
def empty_cache() -> Iterator[Path]:
    """A cache of its own for what is timed, which holds only the tasks' images and the compiled kernels."""
    before = os.environ.get("FLOWN_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FLOWN_CACHE"] = folder
        try:
            load_task("latin", SplitSizes())
            backends.why_not_lanes.cache_clear()
            backends.lanes.kernel.cache_clear()
            backends.choose("auto", classifier("cnn_small"), torch.float32)
            yield Path(folder)
        finally:
            os.environ.pop("FLOWN_CACHE")
            if before is not None:
                os.environ["FLOWN_CACHE"] = before


def timed_zoo(networks: int, workers: int, backend: str, seed: int) -> tuple[float, Zoo]:
    """Seconds by the clock, from nothing, and the zoo."""
    settings = ZooSettings(("latin",), networks, backend=backend, seed=seed)
    with empty_cache():
        start = time.perf_counter()
        made = collect(settings, workers, progress=False)
        return time.perf_counter() - start, made


def workers(options: argparse.Namespace) -> list[dict]:
    """The same zoo by one worker process and by two, start-up included; equal by hash."""
    networks, ratios = (options.networks or [1000])[0], []
    for seed in range(options.rounds):
        (alone, first), (pair, second) = timed_zoo(networks, 1, "auto", seed), timed_zoo(networks, 2, "auto", seed)
        if first.digest() != second.digest():
            raise RuntimeError(f"one and two workers made different zoos: {first.digest()} and {second.digest()}")
        ratios.append(alone / pair)
        print(
            f"{networks} networks: one worker {alone:.1f} s, two {pair:.1f} s, ratio {alone / pair:.2f}, both {first.digest()}"
        )
    setting = {"workers": 2, "networks": networks, "device": device_name("cpu")}
    return [results.record("speedup", "workers", setting, mean_interval(ratios), list(range(options.rounds)))]


def thousand(options: argparse.Namespace) -> list[dict]:
    """A thousand networks of one task in the tutorial's settings, from nothing, by each backend."""
    made = []
    for backend in (
        ("lanes", "torch") if backends.choose("auto", classifier("cnn_small"), torch.float32) == "lanes" else ("torch",)
    ):
        seconds = [timed_zoo(1000, default_workers(), backend, seed)[0] for seed in range(options.rounds)]
        interval = mean_interval(seconds)
        print(f"1,000 networks, {default_workers()} workers, {backend}: {interval} s by the clock")
        setting = {"networks": 1000, "workers": default_workers(), "device": device_name("cpu")}
        made.append(results.record("seconds_collect", backend, setting, interval, list(range(options.rounds))))
    return made


def killed(command: list[str], cache: Path, shards: int, delay: float) -> int:
    """Run a command until it has stored so many shards in its cache, kill it (signal 9) `delay` seconds later.

    Returns:
        How many shards were stored when it was gone.
    """
    process = subprocess.Popen(command, env=os.environ | {"FLOWN_CACHE": str(cache)}, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(cache.glob("zoo-shard-*"))) < shards:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.wait()
    return len(list(cache.glob("zoo-shard-*")))


def kills(options: argparse.Namespace) -> list[dict]:
    """Collections killed with signal 9 at random moments: each has to go on to the zoo that is made undisturbed."""
    draw, survived = random.Random(0), 0
    settings = ZooSettings(("latin", "greek"), 80, sizes=SplitSizes(500, 100, 200), training=Training(4, 25))
    shards = len(settings.shards())
    with empty_cache(), tempfile.TemporaryDirectory() as folder:
        for i in range(options.rounds):
            cache, file, chosen = Path(folder) / f"cache{i}", Path(folder) / "zoo.json", replace(settings, seed=i)
            file.write_text(json.dumps(asdict(chosen)))
            command = [sys.executable, "-m", "flownlib.training", "--zoo-settings", str(file), "--output", str(cache / "zoo")]
            begun = draw.randrange(shards)
            stored = killed(command, cache, begun, draw.uniform(0, 0.2 if begun else 3))  # the first shard takes a start
            subprocess.run(command, env=os.environ | {"FLOWN_CACHE": str(cache)}, check=True, stdout=subprocess.DEVNULL)
            found, expected = Zoo.load(cache / "zoo"), collect(chosen, 1, progress=False)
            same = found.digest() == expected.digest() and not found.table.duplicated(["task", "seed"]).any()
            survived += same
            verdict = "the same zoo" if same else "ANOTHER ZOO"
            print(f"kill {i + 1:>2}: {stored:>2} of {shards} shards were stored, then {verdict}", flush=True)
    setting = {"kills": options.rounds, "device": device_name("cpu")}
    return [results.record("kills_survived", "collect", setting, proportion_interval(survived, options.rounds), [0])]


def device_name(device: str) -> str:
    """The processor or GPU in words."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{named}, {torch.backends.cpu.get_cpu_capability()}"


COMMANDS = {"zoo": (zoo, 8), "workers": (workers, 3), "thousand": (thousand, 3), "kills": (kills, 20)}


def main(arguments: list[str] | None = None) -> int:
    """Run a benchmark, print it, store its results."""
    options = argparse.ArgumentParser(prog="python -m flownlib.benchmarks", description=__doc__.splitlines()[0])
    options.add_argument("name", choices=COMMANDS)
    options.add_argument("--rounds", type=int, help="how often everything is measured")
    options.add_argument("--networks", type=int, nargs="+", help="how many at once")
    options.add_argument("--classifier", default="cnn_small")
    options.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options.add_argument("--no-save", action="store_true", help="print only")
    chosen = options.parse_args(arguments)
    command, rounds = COMMANDS[chosen.name]
    chosen.rounds = chosen.rounds or rounds
    torch.set_num_threads(1)
    backends.keep_freed_memory()
    try:
        made = command(chosen)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not chosen.no_save:
        suffix = "" if chosen.classifier == "cnn_small" else f"_{chosen.classifier}"
        print(f"results: {results.write(f'benchmark_{chosen.name}{suffix}_{chosen.device}', 'tutorial', made)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How fast many networks are trained and evaluated at once, beside the plain loop and the matrix-product rate."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from flownlib.benchmarks.measurements import Measurements, usable_backends
from flownlib.networks import Classifier, Conv, classifier
from flownlib.scoring import Split, logits_of
from flownlib.speed.loops import train_many, train_one
from flownlib.speed.plan import Training, initial_weights, minibatch_orders
from flownlib.statistics import mean_interval
from flownlib.tasks import load_task
from flownlib.tasks.base import SplitSizes

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
    batched = vmap(lambda vector, x: functional_call(module, model.layout.unflatten(vector), (x,)))
    for batch in orders.unbind(1):
        logits = batched(weights, data.x[batch])
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
    for m in counts:
        steps, few = max(10, min(40, 640 // m)), max(3, min(40, 640 // m))
        jobs["vmap", "own", m] = lambda m=m, few=few: vmap_steps(model, weights[:m], data, orders[:m, :few])
        for method in reversed(usable_backends(model, device)):
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
    measured = Measurements(device)
    for (method, minibatches, m), steps in rates.items():
        setting = {"classifier": model.name, "minibatches": minibatches, "networks": m}
        measured.add("model_steps_per_second", method, mean_interval(steps), **setting)
        measured.add("speedup", method, mean_interval([a / b for a, b in zip(steps, loop, strict=True)]), **setting)
        measured.add("share_of_peak", method, mean_interval([rate * share for rate in steps]), **setting)
    return [*measured, *evaluation(model, device, options.rounds)]


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

    jobs = {"loop": (plain, 1)}
    for backend in reversed(usable_backends(model, device)):
        jobs[backend] = (partial(logits_of, model, weights, x, backend=backend), 32)
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, (job, count) in jobs.items():
            start = clock(device)
            job()
            rates[name].append(count / (clock(device) - start))
    measured = Measurements(device)
    for name, networks in rates.items():
        measured.add("networks_per_second", name, mean_interval(networks), classifier=model.name, images=5000)
    return measured

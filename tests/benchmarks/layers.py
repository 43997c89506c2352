"""Exported EvoNorm-B0 and S0 beside BN+ReLU, BN+SiLU, GroupNorm+SiLU and timm's layers: time, memory, kept tensors.

Forward and backward, and inference; eager and compiled; float32 on (16, 64, 56, 56), and on tokens (64, 197, 192) for
those that serve them. One thread on a CPU, freed memory kept as the engine's workers keep it; on a GPU where there is
one, with batches 16 times as large. All sides are measured in turn, round after round, in an order that rotates; a
ratio is that of two sides' times in the same round, and what is given is the median over the rounds.

`kept` is what a forward pass keeps for the backward one, the input included, in multiples of the input, each piece of
memory once. `floor_ms` is the time in which the bytes that must move (to the device's memory and back: forward reads x
twice and writes y, backward reads x and the gradient twice and writes one; inference reads x as often as it has
moments to take, plus once) would be copied; `over_floor` is a side's time over it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import EvoNorm2dB0, EvoNorm2dS0
from torch import Tensor, nn

from normact.search.heap import keep_freed_memory
from normact.spaces import emit, named
from tests.benchmarks.saved import saved_bytes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TIMES = 16 if DEVICE == "cuda" else 1
"""How much larger a GPU's batches are: smaller ones are over before the next kernel is launched."""
IMAGES, TOKENS = (16 * TIMES, 64, 56, 56), (64 * TIMES, 197, 192)
ROUNDS = 15
GROUPS = 32
BOUNDS = {
    "compiled_vs_bn_silu": (0, 1),
    "eager_vs_timm": (0, 1 / 1.5),
    "memory_vs_timm": (0, 0.6),
    "checkpoint_memory_vs_timm": (0, 0.3),
}

Step = Callable[[], None]


def exported(name: str, **arguments: Any) -> nn.Module:
    """A catalogue layer, from its exported file."""
    namespace: dict[str, Any] = {"__name__": name}
    exec(compile(emit(named(name).graph, name), f"{name}.py", "exec"), namespace)
    return namespace[name](**arguments)


class Norm1d(nn.Module):
    """A norm that wants channels second, on tokens."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def image_layers() -> dict[str, nn.Module]:
    channels = IMAGES[1]
    return {
        "b0": exported("evonorm_b0", num_features=channels),
        "s0": exported("evonorm_s0", num_features=channels, groups=GROUPS),
        "bn_relu": nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()),
        "bn_silu": nn.Sequential(nn.BatchNorm2d(channels), nn.SiLU()),
        "gn_silu": nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.SiLU()),
        "timm_b0": EvoNorm2dB0(channels),
        "timm_s0": EvoNorm2dS0(channels, groups=GROUPS),
    }


def token_layers() -> dict[str, nn.Module]:
    channels = TOKENS[2]
    return {
        "b0": exported("evonorm_b0", num_features=channels, layout="NLC"),
        "s0": exported("evonorm_s0", num_features=channels, groups=GROUPS, layout="NLC"),
        "bn_silu": nn.Sequential(Norm1d(nn.BatchNorm1d(channels)), nn.SiLU()),
        "gn_silu": nn.Sequential(Norm1d(nn.GroupNorm(GROUPS, channels)), nn.SiLU()),
        "ln_silu": nn.Sequential(nn.LayerNorm(channels), nn.SiLU()),
    }


def training_step(layer: nn.Module, run: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Step:
    x, above = torch.randn(shape, device=DEVICE, requires_grad=True), torch.randn(shape, device=DEVICE)

    def step() -> None:
        layer.train()
        run(x).backward(above)
        x.grad = None
        layer.zero_grad(set_to_none=True)

    return step


def inference_step(layer: nn.Module, run: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Step:
    x = torch.randn(shape, device=DEVICE)

    def step() -> None:
        layer.eval()
        with torch.no_grad():
            run(x)

    return step


def seconds(step: Step) -> float:
    """Processor time, or, on a GPU, the time until it is done."""
    if DEVICE == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measured(sides: dict[str, Step]) -> dict[str, list[float]]:
    """Milliseconds, by side and round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for name in names:  # warm-up, and the compiler's work
        for _ in range(3):
            sides[name]()
    for number in range(ROUNDS):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(1000 * seconds(sides[name]))
    return times


def ratio(times: dict[str, list[float]], ours: str, theirs: str) -> float:
    return round(statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True)), 3)


def kept(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """What a forward pass keeps for the backward one, in multiples of the input."""
    x = torch.randn(shape, device=DEVICE, requires_grad=True)
    return round(saved_bytes(layer.train(), x) / (x.numel() * x.element_size()), 3)


def peak(step: Step, shape: tuple[int, ...]) -> float:
    """The most memory that tensors took in a step beyond what there was before, in multiples of the input."""
    size = 4 * torch.Size(shape).numel()
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return round((torch.cuda.max_memory_allocated() - before) / size, 2)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    total = most = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return round(most / size, 2)


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of copying a tensor that no cache holds."""
    a = torch.randn(2**26, device=DEVICE)
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * a.numel() * 4 / statistics.median(seconds(lambda: b.copy_(a)) for _ in range(9))


def floors(shape: tuple[int, ...], bandwidth: float) -> dict[str, float]:
    size = 4 * torch.Size(shape).numel()
    return {"training": 1000 * 8 * size / bandwidth, "inference": 1000 * 3 * size / bandwidth}


def measure(layers: dict[str, nn.Module], shape: tuple[int, ...], bandwidth: float) -> dict[str, Any]:
    layers = {name: layer.to(DEVICE) for name, layer in layers.items()}
    found: dict[str, Any] = {}
    below = {what: round(ms, 3) for what, ms in floors(shape, bandwidth).items()}
    for how in ("eager", "compiled"):
        for what, make in (("training", training_step), ("inference", inference_step)):
            runs = {name: torch.compile(m, fullgraph=True) if how == "compiled" else m for name, m in layers.items()}
            sides = {name: make(layers[name], runs[name], shape) for name in layers}
            times = measured(sides)
            ms = {name: round(statistics.median(values), 3) for name, values in times.items()}
            found[f"{how}_{what}"] = {
                "ms": ms,
                "vs_bn_silu": {name: ratio(times, name, "bn_silu") for name in times},
                "over_floor": {name: round(value / below[what], 2) for name, value in ms.items()},
                "peak": {name: peak(step, shape) for name, step in sides.items()},
            }
            if "timm_b0" in times:
                found[f"{how}_{what}"]["vs_timm"] = {k: ratio(times, k, f"timm_{k}") for k in ("b0", "s0")}
    return found | {"floor_ms": below, "kept": {name: kept(layer, shape) for name, layer in layers.items()}}


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    with torch._dynamo.config.patch(recompile_limit=1000):
        images = measure(image_layers(), IMAGES, bandwidth)
        tokens = measure(token_layers(), TOKENS, bandwidth)
    channels = IMAGES[1]
    again = {
        "b0": exported("evonorm_b0", num_features=channels, checkpoint=True),
        "s0": exported("evonorm_s0", num_features=channels, groups=GROUPS, checkpoint=True),
    }
    keeps = images["kept"]
    pairs = [(k, f"timm_{k}") for k in ("b0", "s0")]
    return {
        "compiled_vs_bn_silu": max(
            m["compiled_training"]["vs_bn_silu"][k] for m in (images, tokens) for k in ("b0", "s0")
        ),
        "eager_vs_timm": max(images["eager_training"]["vs_timm"].values()),
        "memory_vs_timm": round(max(keeps[a] / keeps[b] for a, b in pairs), 3),
        "checkpoint_memory_vs_timm": round(max(kept(again[a].to(DEVICE), IMAGES) / keeps[b] for a, b in pairs), 3),
        "images": images,
        "tokens": tokens,
        "copy_gb_per_s": round(bandwidth / 1e9, 2),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu, one thread",
    }

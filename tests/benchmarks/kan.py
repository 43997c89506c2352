"""KAN layers, forward and backward, beside `nn.Linear` and a dense recursion of B-splines: 784 to 64, batch 256.

Every family has 8 functions an input (rational functions and graphs have 1, which is what they are), a layer norm in
front (its tanh too where the family needs it) and a base branch; inputs have gradients too, as in the middle of a net.
One thread, freed memory kept as the engine's workers keep it. All sides are measured in turn, round after round, in
an order that rotates; a ratio is that of two sides' processor times in the same round, and what is given is the median
over the rounds. `Recursion` is efficient-kan's way to have B-splines: Cox and de Boor's recursion on all knots, a
product for the splines and another one for the base branch, gradients by autograd.

`kept_mib` is what a forward pass keeps for the backward one beyond its input and its parameters, with and without
`recompute`, which computes the bases once more in the backward pass.

What the families' own gradients give, against autograd's of the same formulas (medians of 10 rounds, in turn): 0.57
of the time for ReLU-KAN, 0.66 and 0.67 for sech and RSWAF, 0.73 to 0.80 for B-splines and wavelets, 0.87 for
Gaussians and Fourier, no less for polynomials and sines; and 7.66 MiB kept where autograd keeps 11.5 to 31.4. Rational
functions and graphs have none: they are computed again, in 1.31 and 1.19 of the time, and keep 2.3 MiB (autograd 10.0
and 2.3).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normact.search.heap import keep_freed_memory
from normact.spaces.kan import BASES, KANLinear
from tests.benchmarks.machine import spread
from tests.benchmarks.saved import saved_bytes

INPUTS, OUTPUTS, BATCH = 784, 64, 256
EAGER_ROUNDS, COMPILED_ROUNDS, STEPS = 30, 30, 3
SETTINGS: dict[str, dict[str, Any]] = {
    "bspline": {"grid": 5, "order": 3},
    "relu_kan": {"grid": 5, "order": 3},
    "fourier": {"frequencies": 4},
    **{name: {"levels": 3} for name in ("mexican_hat", "morlet", "dog", "difference_of_gaussians")},
    **{name: {"degree": 8} for name in ("chebyshev", "legendre", "jacobi", "gram")},
    **{name: {"grid": 8} for name in ("gaussian", "sech", "rswaf", "sine", "piecewise_linear")},
}
RBF = "gaussian"
FAST = ("chebyshev", "legendre", "sech", "rswaf", "fourier", "piecewise_linear")
BOUNDS = {
    "worst_fast_family_vs_rbf": (0, 1.5),
    "bspline_vs_rbf": (0, 2),
    "cox_de_boor_vs_bspline": (2, float("inf")),
    "worst_other_vs_rbf": (0, 2.5),
    "worst_compiled_vs_rbf": (0, 1.5),
}

Step = Callable[[], None]


class Recursion(nn.Module):
    """efficient-kan's layer on the grid of ours, behind the same layer norm."""

    def __init__(self, grid: int = 5, order: int = 3) -> None:
        super().__init__()
        self.order = order
        self.norm = nn.LayerNorm(INPUTS)
        knots = (torch.arange(-order, grid + order + 1) * 4 / grid - 2).expand(INPUTS, -1)
        self.register_buffer("knots", knots.contiguous())
        self.base = nn.Linear(INPUTS, OUTPUTS)
        self.splines = nn.Parameter(torch.randn(OUTPUTS, INPUTS * (grid + order)) / (INPUTS * 2) ** 0.5)

    def bases(self, x: Tensor) -> Tensor:
        x, t = x.unsqueeze(-1), self.knots
        bases = ((x >= t[:, :-1]) & (x < t[:, 1:])).to(x.dtype)
        for k in range(1, self.order + 1):
            rising = (x - t[:, : -(k + 1)]) / (t[:, k:-1] - t[:, : -(k + 1)]) * bases[..., :-1]
            falling = (t[:, k + 1 :] - x) / (t[:, k + 1 :] - t[:, 1:-k]) * bases[..., 1:]
            bases = rising + falling
        return bases

    def forward(self, x: Tensor) -> Tensor:
        splines = nn.functional.linear(self.bases(self.norm(x)).flatten(-2), self.splines)
        return self.base(nn.functional.silu(x)) + splines


def family_layer(name: str, recompute: bool = False) -> KANLinear:
    normalizer = "layer_tanh" if BASES[name].bounded else "layer"
    return KANLinear(INPUTS, OUTPUTS, ((name, SETTINGS.get(name, {})),), normalizer=normalizer, recompute=recompute)


def step_of(layer: nn.Module, compiled: bool = False) -> Step:
    """A forward and a backward pass."""
    x, above = torch.randn(BATCH, INPUTS, requires_grad=True), torch.randn(BATCH, OUTPUTS)
    run = torch.compile(layer) if compiled else layer

    def step() -> None:
        run(x).backward(above)
        x.grad = None
        layer.zero_grad(set_to_none=True)

    return step


Times = dict[str, list[float]]


def measured(sides: dict[str, Step], rounds: int) -> Times:
    """Milliseconds of processor time a step, by side and round."""
    times: Times = {name: [] for name in sides}
    names = list(sides)
    for name in names:  # warm-up, and the compiler's work
        for _ in range(3):
            sides[name]()
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.process_time()
            for _ in range(STEPS):
                sides[name]()
            times[name].append(1000 * (time.process_time() - start) / STEPS)
    return times


def ratios(times: Times, over: str) -> dict[str, dict[str, float]]:
    """Of each side's times to those of one side, round by round."""
    return {name: spread([a / b for a, b in zip(own, times[over], strict=True)], 3) for name, own in times.items()}


def worst(found: dict[str, dict[str, float]], names: list[str]) -> tuple[str, float]:
    name = max(names, key=lambda name: found[name]["median"])
    return name, found[name]["median"]


def kept_mib(layer: nn.Module) -> float:
    """MiB that the backward pass of a step finds kept, each piece of memory once."""
    x = torch.randn(BATCH, INPUTS, requires_grad=True)
    return round(saved_bytes(layer, x, without=[x]) / 2**20, 3)


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    families = sorted(BASES)
    others = [name for name in families if name not in (*FAST, RBF, "bspline")]
    sides = {name: family_layer(name) for name in families}
    plain: dict[str, nn.Module] = {"linear": nn.Linear(INPUTS, OUTPUTS), "cox_de_boor": Recursion()}
    again: dict[str, nn.Module] = {f"{name}_recomputed": family_layer(name, True) for name in (RBF, "bspline")}
    eager = measured({name: step_of(layer) for name, layer in {**sides, **plain, **again}.items()}, EAGER_ROUNDS)
    vs_rbf = ratios(eager, RBF)
    with torch._dynamo.config.patch(recompile_limit=1000):  # all sides are one class's code, compiled for each anew
        compiled = measured({name: step_of(layer, True) for name, layer in {**sides, **plain}.items()}, COMPILED_ROUNDS)
    compiled_vs_rbf = ratios(compiled, RBF)
    fast, other, squeezed = worst(vs_rbf, list(FAST)), worst(vs_rbf, others), worst(compiled_vs_rbf, families)
    return {
        "worst_fast_family_vs_rbf": fast[1],
        "bspline_vs_rbf": vs_rbf["bspline"]["median"],
        "cox_de_boor_vs_bspline": ratios(eager, "bspline")["cox_de_boor"]["median"],
        "worst_other_vs_rbf": other[1],
        "worst_compiled_vs_rbf": squeezed[1],
        "rbf_vs_linear": ratios(eager, "linear")[RBF]["median"],
        "worst": {"fast": fast[0], "other": other[0], "compiled": squeezed[0]},
        "vs_rbf": vs_rbf,
        "compiled_vs_rbf": compiled_vs_rbf,
        "ms": {name: round(statistics.median(values), 2) for name, values in eager.items()},
        "compiled_ms": {name: round(statistics.median(values), 2) for name, values in compiled.items()},
        "kept_mib": {name: kept_mib(layer) for name, layer in {**sides, **plain}.items()},
        "kept_mib_recomputed": {name: kept_mib(family_layer(name, True)) for name in families},
        "functions": {name: layer.bases[0].size for name, layer in sides.items()},
    }

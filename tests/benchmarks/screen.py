"""Screening: graphs that reach x, through probe and fingerprint, per second on one core."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from normact.launch.config import compose_config, space_of
from normact.search.gates import Duplicate, Pass, Probe, ScreenContext
from normact.spaces import Space
from tests.benchmarks.machine import spread

GRAPHS = 2000
REPEATS = 5
BOUNDS = {
    "evonorm_b.graphs_per_s.median": (400, float("inf")),
    "evonorm_s.graphs_per_s.median": (400, float("inf")),
}


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"graphs": GRAPHS}
    for preset in ("evonorm_b", "evonorm_s"):
        space = space_of(compose_config([f"space={preset}"]))
        screen(space, 0, 200)  # warm-up
        rates, survivor_rates, shares = [], [], []
        for repeat in range(REPEATS):
            rate, survivor_rate, share = screen(space, repeat + 1, GRAPHS)
            rates.append(rate)
            survivor_rates.append(survivor_rate)
            shares.append(share)
            print(f"{preset}: {rate:.0f} graphs/s, survivors alone {survivor_rate:.0f}/s, {share:.0%} survive")
        figures[preset] = {
            "graphs_per_s": spread(rates, 0),
            "survivors_per_s": spread(survivor_rates, 0),
            "share_surviving": spread(shares, 3),
        }
    return figures


def screen(space: Space, seed: int, count: int) -> tuple[float, float, float]:
    """Graphs a second in all, survivors of the probe a second (probe and fingerprint), share that survive."""
    rng = np.random.default_rng(seed)
    graphs = [space.sample(rng) for _ in range(count)]
    probe, duplicate = Probe(), Duplicate()
    on_survivors, survivors = 0.0, 0
    start = time.perf_counter()
    for graph in graphs:
        begin = time.perf_counter()
        ctx = ScreenContext(space, graph, 0)
        if isinstance(probe.check(ctx), Pass):
            duplicate.check(ctx)
            survivors += 1
            on_survivors += time.perf_counter() - begin
    return count / (time.perf_counter() - start), survivors / on_survivors, survivors / count

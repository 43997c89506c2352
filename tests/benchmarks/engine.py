"""The engine beside Ray Tune and Optuna, on one trivial objective; and what a controller takes for a proposal.

The objective is a hash of the graph, so what is left is each tool's own work: to propose, hand out, record and
learn. All run two evaluations at a time and keep every result on disk.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from normact.launch.ray_pool import RayPool
from normact.search.budget import Budget
from normact.search.controllers import RandomSearch
from normact.search.engine import Engine
from normact.search.ledger import Ledger
from normact.search.pool import Evaluate, Pool
from normact.spaces import EVONORM_MOMENTS, EVONORM_POINTWISE, GraphSpace, LayerGraph, Node
from tests import judges
from tests.benchmarks import others
from tests.benchmarks.ask_tell import ask_tell
from tests.benchmarks.machine import spread

PROPOSALS = 4000
REPEATS = 5
BOUNDS = {
    "outcomes_per_s": (1500, float("inf")),
    "new_outcomes_per_s": (1500, float("inf")),
    "ask_tell_ms_100k": (0, 1),
}
OTHERS_SECONDS = {"ray_tune": 30.0, "optuna_journal": 8.0, "optuna_sqlite": 8.0}


class Distinct(GraphSpace):
    """Graphs that never repeat: each sample is multiplied by a trainable scalar of a starting value of its own."""

    def sample(self, rng: np.random.Generator) -> LayerGraph:
        graph = super().sample(rng)
        scalar = f"s{rng.integers(10**9)}.{rng.integers(10**9):09d}"
        return LayerGraph((*graph.nodes, Node("mul", (len(graph.nodes) - 1, scalar))), graph.affine)


OPS = [*EVONORM_POINTWISE, *EVONORM_MOMENTS]
SPACE = GraphSpace(OPS)
DISTINCT = Distinct(OPS)


class FreeTraining(judges.Judge):
    """Passes everything in screening, and trains nothing: what is left is the engine's own work."""


def make_evaluate() -> Evaluate:
    return FreeTraining(SPACE, reject=0.0)


def loss_of(seed: int) -> float:
    return others.trivial_loss(SPACE, seed)


def run() -> dict[str, Any]:
    import tests.benchmarks.engine as module

    for part in (module, judges, others):  # workers need not be able to import the tests
        ray.cloudpickle.register_pickle_by_value(part)
    figures = our_engine(module)
    figures |= {f"{name}_detail": compared(name, module.loss_of) for name in OTHERS_SECONDS}
    figures |= {f"{name}_per_s": figures[f"{name}_detail"]["per_s"] for name in OTHERS_SECONDS}
    asks = ask_tell(SPACE)
    worst = max(max(times["ask_median_ms"], times["tell_median_ms"]) for times in asks.values())
    return {**figures, "ask_tell_ms_100k": round(worst, 3), "ask_tell_detail": asks}


def our_engine(module: Any) -> dict[str, Any]:
    """Outcomes a second that were judged themselves, in a space with duplicates and in one without."""
    pool = RayPool(module.make_evaluate, workers=2)
    rows = {"normal": (SPACE, "normal"), "full": (SPACE, "full"), "new": (DISTINCT, "normal")}
    rates: dict[str, list[float]] = {name: [] for name in rows}
    shares: list[float] = []
    try:
        search(pool, SPACE, "normal", seed=0)  # warm-up
        for repeat in range(REPEATS):
            for name, (space, durability) in rows.items():
                rate, share = search(pool, space, durability, seed=repeat + 1)
                rates[name].append(rate)
                shares += [share] if name == "normal" else []
                print(f"{name}: {rate:.0f} outcomes/s, of all proposals {share:.0%} duplicates")
    finally:
        pool.close()
    return {
        "outcomes_per_s": spread(rates["normal"], 0)["median"],
        "new_outcomes_per_s": spread(rates["new"], 0)["median"],
        **{f"{name}_detail": spread(values, 0) for name, values in rates.items()},
        "duplicates": spread(shares, 3),
        "proposals": PROPOSALS,
        "workers": 2,
    }


def search(pool: Pool, space: GraphSpace, durability: Any, seed: int) -> tuple[float, float]:
    """Outcomes a second that are not answers by an earlier one, and the share of those that are."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite", create=True, durability=durability)
        with ledger:
            controller = RandomSearch(space, [judges.LOSS], seed)
            engine = Engine(space, controller, ledger, pool, Budget(proposals=PROPOSALS), judges.LOSS, seed)
            start = time.perf_counter()
            engine.run()
            seconds = time.perf_counter() - start
            assert ledger.count("finished") == PROPOSALS
    judged = engine.funnel.ended["accepted"]  # screening passes everything
    assert space is SPACE or judged == PROPOSALS, f"{PROPOSALS - judged} of {PROPOSALS} were not new"
    return judged / seconds, 1 - judged / PROPOSALS


def compared(name: str, loss: Any) -> dict[str, float]:
    """Another tool's trials a second."""
    tool = partial(getattr(others, name), loss, OTHERS_SECONDS[name])
    if name != "ray_tune":
        figures = tool()
    else:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        try:
            figures = tool()
        finally:
            ray.shutdown()
    print(f"{name}: {figures['per_s']} trials/s, {figures['trials']} in {figures['seconds']} s")
    return figures

"""What the gates save: a funnel's worker time against training every distinct valid graph for 100 steps.

A number of random proposals of `evonorm_b` goes through all gates. Of the distinct valid ones (structure and
duplicate gates alone) a random few are trained for 100 steps on all anchors, as the full cost of one.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

from normact.launch.config import compose_config, search_evaluator
from normact.search.funnel import FIRST_LOOK
from normact.search.pool import Job

PROPOSALS = 1500
TRAINED = 40


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    evaluator = search_evaluator(compose_config([]))
    space = evaluator.space
    graphs = [space.sample(np.random.default_rng([7, i])) for i in range(PROPOSALS)]
    data = {i: space.to_json(graph) for i, graph in enumerate(graphs)}
    prints = distinct(evaluator, graphs)
    start = time.perf_counter()
    screened = evaluator(Job(0, "screen", tuple(data.items()), 0))
    seen: set[str] = set()
    reached: list[int] = []
    for outcome in screened:
        if not outcome.gate and outcome.fingerprint not in seen:
            seen.add(outcome.fingerprint)
            reached.append(outcome.number)
    trained = [evaluator(Job(1, "train", ((n, data[n]),), 0))[0] for n in reached]
    funnel_seconds = time.perf_counter() - start
    valid = sorted(prints.values())
    picks = np.random.default_rng(0).choice(valid, size=min(TRAINED, len(valid)), replace=False)
    seconds = [cost(evaluator, graphs[int(n)]) for n in picks]
    full = statistics.fmean(seconds) * len(valid)
    error = statistics.stdev(seconds) / len(seconds) ** 0.5 * len(valid)
    return {
        "proposals": PROPOSALS,
        "distinct_valid": len(valid),
        "share_reaching_training": round(len(reached) / PROPOSALS, 4),
        "share_past_step_10": round(sum(o.steps > FIRST_LOOK for o in trained) / PROPOSALS, 4),
        "share_accepted": round(sum(not o.gate for o in trained) / PROPOSALS, 4),
        "funnel_seconds": round(funnel_seconds, 1),
        "train_all_seconds": round(full, 1),
        "train_all_standard_error": round(error, 1),
        "times_less": round(full / funnel_seconds, 1),
        "trained_for_the_cost": len(seconds),
    }


def distinct(evaluator: Any, graphs: list[Any]) -> dict[str, int]:
    """The first graph of each fingerprint among those that reach x."""
    from normact.search.gates import Duplicate, ScreenContext

    first: dict[str, int] = {}
    for number, graph in enumerate(graphs):
        ctx = ScreenContext(evaluator.space, graph, 0)
        Duplicate().check(ctx)
        first.setdefault(ctx.fingerprint, number)
    return first


def cost(evaluator: Any, graph: Any) -> float:
    """Seconds of 100 steps on every anchor; a loss that is not finite ends a training early, as it would."""
    start = time.perf_counter()
    for anchor in evaluator.task.anchors:
        evaluator.task.start(anchor, lambda site: evaluator.space.build(graph, site), 0).run_to(100)
    return time.perf_counter() - start

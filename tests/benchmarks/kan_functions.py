"""The function suite: what a search finds, each family alone, an MLP, and an MLP with learnable activations.

For each function, 1,024 noiseless training points in [d, 8, 1] nets: a search of 80 proposals (its error on held-out
points decides), then three fresh seeds of everything, judged on 4,096 other points. The MLPs have as many parameters as
the network with eight functions an input; the learnable one has a spline of its own on each node. The inputs of the
families are brought to [-1, 1]; the search may do otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from normact.launch.config import compose_config, space_of, task_of
from normact.search.data import FUNCTIONS
from normact.search.outcome import Outcome
from normact.spaces import Site
from tests.benchmarks.studies import Study

PROPOSALS = 80
SEEDS = 3
HIDDEN = 8
FAMILIES = (
    *("bspline", "gaussian(grid=8)", "chebyshev(degree=8)", "legendre(degree=8)", "jacobi(degree=8)", "gram(degree=8)"),
    *("fourier(frequencies=4)", "sine(grid=8)", "sech(grid=8)", "rswaf(grid=8)", "piecewise_linear(grid=8)"),
    *("relu_kan", "mexican_hat", "morlet", "dog", "rational"),
)
MLPS = {
    "MLP": "node(graph(expression='silu(x)'), normalizer=none)",
    "MLP, learnable activations": "node(bspline(grid=5, order=3), normalizer=minmax, sharing=channel)",
}


def run() -> dict[str, Any]:
    study = Study("kan_functions")
    table: dict[str, dict[str, Any]] = {}
    for name in FUNCTIONS:
        table[name] = one(study, name)
        print(name, table[name], flush=True)
    return {"functions": table, **summary(table)}


def one(study: Study, function: str) -> dict[str, Any]:
    """Median test RMSE over the seeds of all entrants on one function."""
    common = ("data=functions", f"data.function={function}", "budget.minutes=null")
    rows = study.search(f"{function} search", ("space=kan", *common, f"budget.proposals={PROPOSALS}"))
    found = min((row for row in rows if "rmse" in row["scores"]), key=lambda row: row["scores"]["rmse"])["text"]
    entrants = {text.split("(")[0]: f"kan({text}, normalizer=minmax)" for text in FAMILIES}
    outcomes = study.judge(
        f"{function} kans", ("space=kan", "gates=none", *common), {"found": found, **entrants}, SEEDS
    )
    hidden = equal_width(function)
    mlp = ("space=kan_act", "space.layouts=[NC]", "gates=none", *common, "anchor=mlp", f"anchor.mlp.hidden=[{hidden}]")
    outcomes |= study.judge(f"{function} mlps", mlp, MLPS, SEEDS)
    return {"found": found, "rmse": {name: rmse_of(of) for name, of in outcomes.items()}}


def equal_width(function: str) -> int:
    """The hidden width that gives an MLP as many parameters as a [d, 8, 1] net of eight functions an input."""
    task = task_of(compose_config(["space=kan", "data=functions", f"data.function={function}"]))
    space = space_of(compose_config(["space=kan"]))
    inputs = task.data.shape[0]
    widths = ((inputs, HIDDEN), (HIDDEN, 1))
    candidate = space.parse("kan(gaussian(grid=8), normalizer=minmax)")
    sites = [Site("linear", i, *width, layout="NC") for i, width in enumerate(widths)]
    parameters = sum(p.numel() for site in sites for p in space.build(candidate, site).parameters())
    return max(1, round((parameters - 1) / (inputs + 2)))


def rmse_of(outcomes: Sequence[Outcome]) -> float:
    """The median over seeds; infinite where most trainings failed."""
    values = [next(iter(outcome.final("test_rmse").values()), float("inf")) for outcome in outcomes]
    return float(f"{np.median(values):.4g}")


def summary(table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How the find ranks, and its error over that of others: the geometric mean over the functions."""
    rmse = {name: row["rmse"] for name, row in table.items()}
    families = [text.split("(")[0] for text in FAMILIES]
    others = [*families, *MLPS]
    ratios = {
        other: round(float(np.exp(np.mean([np.log(row["found"] / row[other]) for row in rmse.values()]))), 3)
        for other in others
    }
    wins = sum(row["found"] <= min(row[family] for family in families) for row in rmse.values())
    best_of = [row["found"] / min(row[family] for family in families) for row in rmse.values()]
    return {
        "rmse_of_found_over": ratios,
        "functions_where_found_is_best": wins,
        "of": len(rmse),
        "found_over_best_family_of_each_function": round(float(np.exp(np.mean(np.log(best_of)))), 3),
    }

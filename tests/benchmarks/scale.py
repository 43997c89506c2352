"""Scale: up to 5,000 simulated workers, checked against two real ones; a ledger of a million outcomes."""

from __future__ import annotations

from typing import Any

from tests.benchmarks import growth, workers

BOUNDS = {
    "simulated_over_real.median": (0.9, 1.1),
    "workers.5000.at.60.utilisation": (0.9, 1.0),
    "made.peak_mb": (0, 2000),
    "resumed.random.seconds": (0, 60),
    "resumed.evolution.seconds": (0, 60),
    "resumed.evolution.peak_mb": (0, 2000),
    "show.seconds": (0, 5),
}


def run() -> dict[str, Any]:
    return {**workers.run(), **growth.run()}

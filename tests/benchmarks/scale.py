"""Scale: up to 5,000 simulated workers, checked against two real ones; a ledger of a million outcomes."""

from __future__ import annotations

from typing import Any

from tests.benchmarks import growth, workers


def run() -> dict[str, Any]:
    return {**workers.run(), **growth.run()}

"""`python -m tests.benchmarks [NAME]`: run one benchmark, or all; each ends with one line of JSON.

Figures that miss a bound that their benchmark sets are named, and the exit status is 1.
"""

from __future__ import annotations

import functools
import importlib
import json
import operator
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normact.launch.run_folder import versions
from tests.benchmarks.machine import machine
from tests.benchmarks.records import pack

NAMES = (
    *("screen", "training", "engine", "pool", "scale", "gates", "kan", "kan_accuracy", "kan_functions", "layers"),
    *("table", "controllers", "live", "winners"),
)

RESULTS = Path(__file__).parent / "results"


def main(names: list[str]) -> int:
    missed: list[str] = []
    for name in names or NAMES:
        if name not in NAMES:
            print(f"unknown benchmark {name!r}; known: {', '.join(NAMES)}", file=sys.stderr)
            return 2
        module = importlib.import_module(f"tests.benchmarks.{name}")
        figures = module.run()
        pack(RESULTS)
        print(json.dumps({"benchmark": name, **figures, "versions": versions(), "machine": machine()}))
        missed += [f"{name}: {line}" for line in misses(figures, getattr(module, "BOUNDS", {}))]
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


def misses(figures: Mapping[str, Any], bounds: Mapping[str, tuple[float, float]]) -> list[str]:
    """The figures that lie outside (least, most), by dotted name."""
    found = {name: functools.reduce(operator.getitem, name.split("."), figures) for name in bounds}
    return [
        f"{name} is {found[name]}, not within {least:g} to {most:g}"
        for name, (least, most) in bounds.items()
        if not least <= found[name] <= most
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

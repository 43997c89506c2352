"""`python -m tests.benchmarks [NAME]`: run one benchmark, or all; each ends with one line of JSON."""

from __future__ import annotations

import importlib
import json
import sys

from normact.launch.run_folder import versions
from tests.benchmarks.machine import machine

NAMES = ("screen", "engine", "funnel")


def main(names: list[str]) -> int:
    for name in names or NAMES:
        if name not in NAMES:
            print(f"unknown benchmark {name!r}; known: {', '.join(NAMES)}", file=sys.stderr)
            return 2
        figures = importlib.import_module(f"tests.benchmarks.{name}").run()
        print(json.dumps({"benchmark": name, **figures, "versions": versions(), "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a benchmark ran on, and how its figures are summed up."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Processor, cores, memory."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": model, "cores": os.cpu_count(), "memory_gib": round(memory, 1)}


def spread(values: list[float], digits: int = 1) -> dict[str, float]:
    """Median, smallest and largest of repeated measurements, and how many there were."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "n": len(values),
    }

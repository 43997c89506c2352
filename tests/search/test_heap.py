"""The heap: what is freed stays mapped."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from normact.search.heap import keep_freed_memory
torch.set_num_threads(1)
print(keep_freed_memory())
a = torch.ones(1 << 17)
def faults():
    for _ in range(20):
        kept = [a.neg() for _ in range(20)]
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print((faults() - before) / 400)
"""


def run(**environment: str) -> tuple[str, float]:
    """What `keep_freed_memory` says in a process of its own, and the page faults of an op on 128 pages after it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said, faults = done.stdout.split()
    return said, float(faults)


GLIBC = "glibc" in str(os.confstr("CS_GNU_LIBC_VERSION"))


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_freed_tensors_are_found_mapped() -> None:
    said, faults = run()
    assert (said, faults < 5) == ("True", True), faults


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_what_the_environment_says_stands() -> None:
    """Here each tensor is a mapping of its own, all of whose 128 pages are new."""
    said, faults = run(MALLOC_MMAP_THRESHOLD_="131072")
    assert (said, faults > 100) == ("False", True), faults

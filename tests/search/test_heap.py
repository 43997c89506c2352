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
if {keep}:
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


def run(keep: bool, **environment: str) -> list[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(keep=keep)],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


GLIBC = "glibc" in str(os.confstr("CS_GNU_LIBC_VERSION"))


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_freed_tensors_are_found_mapped() -> None:
    """A tensor of 512 KiB is 128 pages; twenty at a time lie far above glibc's own threshold."""
    (untouched,) = run(keep=False)
    done, kept = run(keep=True)
    assert done == "True"
    assert float(untouched) > 10  # else this test shows nothing
    assert float(kept) < 1


def test_what_the_environment_says_stands() -> None:
    assert run(True, MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"

"""What every test shares: one torch thread, and property tests that draw the same examples each time."""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def one_thread():
    """The machine's cores are for workers; and a test that changes the number gives it back."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Global random state, for tests that draw from it: the same whichever tests ran before."""
    torch.manual_seed(20240502)


@pytest.fixture
def require():
    """`require(there, what)`: skip the test where a data set or library is missing; in CI that is a failure."""

    def check(there, what):
        if not there and os.environ.get("CI"):
            pytest.fail(f"{what} is missing, which in CI is a failure")
        if not there:
            pytest.skip(f"{what} is missing")

    return check

import os
import re
import subprocess
import sys
import textwrap
import time

import pytest
import ray

import tests.conformance.pool as suite
from normact.launch.ray_pool import RayPool
from normact.launch.ray_session import close_ray, open_ray
from normact.search.pool import Done
from normact.spaces.errors import InputError
from tests.conformance.pool import WAIT, KillSuite, PoolSuite, job, kinds, make_evaluate, reports

CPUS = 4


@pytest.fixture(scope="session")
def ray_here():
    """Ray, started once, as `RayPool` starts it. Workers cannot import the suite: it travels by value."""
    ray.cloudpickle.register_pickle_by_value(suite)
    assert open_ray("local", {"CPU": CPUS, "GPU": 0})
    yield
    close_ray()


@pytest.fixture
def make_pool(ray_here):
    """Makes pools, and closes them."""
    made = []

    def make(*args, **options):
        made.append(RayPool(*args, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


class TestRayPool(PoolSuite, KillSuite):
    @pytest.fixture
    def pool(self, make_pool):
        return make_pool(make_evaluate, workers=2)


class TestPrefetch(KillSuite):
    """However many jobs queue on a worker, the same is reported."""

    @pytest.fixture
    def pool(self, make_pool):
        return make_pool(make_evaluate, workers=2, prefetch=4)


def run_script(text, *args, env=(), **options):
    """Run a script in a process and session of its own; what it printed, on success."""
    script = [sys.executable, "-W", "error", "-c", textwrap.dedent(text), *map(str, args)]
    done = subprocess.run(
        script, capture_output=True, text=True, timeout=120, env={**os.environ, **dict(env)}, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- starting --------------------------------------------------------------------------------------------------


def broken():
    raise LookupError("the data are nowhere")


def dies():
    os._exit(1)


def sleeps():
    time.sleep(3600)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (broken, {}, "LookupError: the data are nowhere"),
        (dies, {}, "3 workers in a row died"),
        (sleeps, {"start_seconds": 1.0}, "no worker for screen and train came up in 1 s"),
        (
            make_evaluate,
            {"cpus_per_worker": 99, "start_seconds": 1.0},
            "99 CPU, 0 GPU each, and Ray has 4 CPU",
        ),
        (make_evaluate, {"gpus_per_worker": 1, "start_seconds": 1.0}, "1 CPU, 1 GPU each, and Ray has 4 CPU"),
    ],
)
def test_workers_that_cannot_start_are_one_clear_error(make_pool, make, options, words):
    began = time.monotonic()
    with pytest.raises(InputError, match=re.escape(words)) as error:
        make_pool(make, workers=2, **options)
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < WAIT
    assert kinds_from(make_pool(make_evaluate)) == {0: Done}


def kinds_from(pool):
    pool.submit(job(0))
    return kinds(reports(pool, 1))

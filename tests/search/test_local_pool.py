import pytest

from normact.search.pool import LocalPool
from tests.conformance.pool import PoolSuite, job, make_evaluate


class TestLocalPool(PoolSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def new_pool(cls):
        return lambda: LocalPool(make_evaluate)


def test_it_does_not_claim_to_kill():
    assert not LocalPool(make_evaluate).can_kill


def test_the_evaluator_is_made_once_at_the_first_job():
    made = []

    def make():
        made.append(1)
        return make_evaluate()

    pool = LocalPool(make)
    assert not made
    for n in range(3):
        pool.submit(job(n))
        assert pool.next(0.0) is not None
    assert made == [1]

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normact.search.funnel import Funnel
from normact.search.outcome import Outcome

GATES = ["structure", "probe", "duplicate", "quality@10"]
ends = st.lists(st.sampled_from(["", *GATES, "error"]), max_size=30)


@given(ends, st.integers(0, 5))
def test_the_rows_add_up(gates, unfinished):
    funnel = Funnel.of(len(gates) + unfinished, [Outcome(i, gate) for i, gate in enumerate(gates)])
    rows = funnel.rows(GATES)
    assert funnel.unfinished == unfinished
    assert rows[-1] == ("unfinished", unfinished, gates.count(""))
    left = len(gates) + unfinished
    for name, ended, after in rows:
        assert ended == (unfinished if name == "unfinished" else gates.count(name))
        left -= ended
        assert after == left
    assert {name for name, _, _ in rows} == {*GATES, *gates, "unfinished"} - {""}


def test_rows_stand_in_the_order_of_the_gates_reached_or_not_then_of_the_alphabet():
    funnel = Funnel.of(5, [Outcome(i, g) for i, g in enumerate(["worker", "probe", "error", "structure", ""])])
    assert [name for name, _, _ in funnel.rows(GATES)] == [*GATES, "error", "worker", "unfinished"]


def test_more_outcomes_than_proposals_are_a_bug():
    with pytest.raises(AssertionError, match="more outcomes than proposals"):
        Funnel.of(1, [Outcome(0), Outcome(1, "probe")]).rows()


def test_trained_counts_distinct_functions_past_step_10():
    outcomes = [
        Outcome(0, steps=10),
        Outcome(1, steps=11),
        Outcome(2, "quality@30", steps=30),
        Outcome(3, "duplicate", steps=30, same_as=2),
        Outcome(4, "probe"),
    ]
    assert Funnel.of(5, outcomes).trained == 2


def test_seconds_are_summed_by_what_they_were_spent_on():
    outcomes = [Outcome(0, seconds={"probe": 0.5, "train": 2.0}), Outcome(1, "probe", seconds={"probe": 0.25})]
    assert Funnel.of(2, outcomes).seconds == {"probe": 0.75, "train": 2.0}

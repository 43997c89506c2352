import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normact.search.objective import Score
from normact.search.outcome import Outcome
from normact.spaces import InputError

names = st.text(max_size=8)
numbers = st.floats()  # NaN and infinities too
whole = st.integers(0, 2**53)
outcomes = st.builds(
    Outcome,
    number=whole,
    gate=names,
    reason=names,
    figures=st.dictionaries(names, numbers, max_size=4),
    scores=st.lists(st.builds(Score, names, names, whole, numbers), max_size=4).map(tuple),
    steps=whole,
    seconds=st.dictionaries(names, numbers, max_size=3),
    memory=whole,
    seed=whole,
    device=names,
    worker=names,
    same_as=st.none() | whole,
    fingerprint=names,
)


def same(a, b):
    """Equality in which NaN equals NaN."""
    return repr(a) == repr(b)


@given(outcomes)
def test_through_json_and_back(outcome):
    text = json.dumps(outcome.to_json(), allow_nan=False)  # what the ledger writes
    assert same(Outcome.from_json(json.loads(text)), outcome)


def test_numbers_of_numpy_are_written_as_numbers():
    data = Outcome(3, figures={"a": np.float32(0.5)}, scores=(Score("o", "n", 1, np.float32(2.0)),)).to_json()
    assert json.loads(json.dumps(data))["figures"] == {"a": 0.5}
    assert data["scores"] == [["o", "n", 1, 2.0]]


def test_fields_that_are_left_out_have_their_defaults():
    assert Outcome.from_json({"number": 4}) == Outcome(4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"number": "1"}, "number"),
        ({"number": True}, "number"),
        ({"number": None}, "number"),
        ({"gate": 3}, "gate"),
        ({"reason": None}, "reason"),
        ({"figures": []}, "figures"),
        ({"figures": {"size": None}}, r"figures\.size"),
        ({"figures": {"size": True}}, r"figures\.size"),
        ({"figures": {"size": "much"}}, r"figures\.size"),
        ({"figures": {"size": 10**400}}, r"figures\.size"),
        ({"seconds": {"train": [1]}}, r"seconds\.train"),
        ({"scores": {}}, "scores"),
        ({"scores": [["o", "a", 1]]}, "a score is"),
        ({"scores": [["o", "a", 1.5, 0.1]]}, "a score is"),
        ({"scores": [["o", "a", True, 0.1]]}, "a score is"),
        ({"scores": [["o", 2, 1, 0.1]]}, "a score is"),
        ({"scores": [["o", "a", 1, "high"]]}, "scores"),
        ({"steps": 1.0}, "steps"),
        ({"same_as": "0"}, "same_as"),
        ({"same_as": False}, "same_as"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_wrong_data_are_refused_by_name(change, named):
    with pytest.raises(InputError, match=named):
        Outcome.from_json({**Outcome(1).to_json(), **change})


@pytest.mark.parametrize("data", [None, [], "1", 7])
def test_what_is_no_mapping_is_refused(data):
    with pytest.raises(InputError, match="mapping"):
        Outcome.from_json(data)


def test_an_outcome_needs_a_number():
    with pytest.raises(InputError, match="number"):
        Outcome.from_json({"gate": "probe"})


def test_final_is_the_last_step_per_anchor_wherever_it_stands():
    scores = (
        Score("acc", "a", 30, 0.7),
        Score("acc", "a", 10, 0.2),
        Score("acc", "b", 10, 0.4),
        Score("loss", "a", 30, 9.0),
    )
    assert Outcome(0, scores=scores).final("acc") == {"a": 0.7, "b": 0.4}
    assert Outcome(0, scores=scores).final("none") == {}


def test_accepted_means_judged_itself_and_passed():
    assert Outcome(0).accepted
    assert not Outcome(0, gate="probe").accepted
    assert not Outcome(1, same_as=0).accepted


def test_a_nan_figure_is_written_by_name():
    assert Outcome(0, figures={"a": math.nan, "b": -math.inf}).to_json()["figures"] == {"a": "nan", "b": "-inf"}

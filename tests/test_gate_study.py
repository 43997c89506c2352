"""The replay of the gate study on records made by hand, and its file after a kill."""

import json

import pytest

from normact.search.gates import Duplicate, Linearity, Probe, Quality, SignalPropagation
from normact.search.objective import Objective
from tests.benchmarks.gates import rate
from tests.benchmarks.gates_replay import Replay, final_skill, full_seconds
from tests.benchmarks.records import read

LOSS = Objective("loss", "", "minimize", 1.0, 0.0)


def anchor(*losses):
    return {"train": [1.0] * 6, "measure": [0.25] * 6, "loss": list(losses)}


def record(first, second, fingerprint="f", probe=True, size=1.0):
    screen = {"probe": {"passed": probe}, "linearity": {"passed": True, "nonlinearity": 1.0}}
    screen["propagation@8"] = {"passed": True, "NCHW.size": size, "NCHW.gradient": 1.0, "NCHW.distinct": 0.5}
    seconds = {"probe": 0.125, "linearity": 0.125, "duplicate": 0.125, "propagation@8": 0.125, "build": 0.5}
    return {"number": 0, "fingerprint": fingerprint, "screen": screen, "seconds": seconds,
            "anchors": {"a": anchor(*first), "b": anchor(*second)}}  # fmt: skip


GOOD, SLOW = (1, 0.9, 0.8, 0.7, 0.5, 0.1), (1, 1, 1, 0.95, 0.5, 0.3)
GATES = [Probe(), Linearity(), Duplicate(), SignalPropagation(8)]


def ends(records, *gates):
    return [(end.gate, end.seconds, end.duplicate) for end in Replay([*GATES, *gates], {"loss": LOSS}).all(records)]


def test_a_graph_that_passes_costs_its_screening_and_its_training():
    good = record(GOOD, SLOW)
    assert full_seconds(good) == 0.5 + 12 + 0.5 and final_skill(good, LOSS) == pytest.approx(0.8)
    assert ends([good]) == [("", 0.5 + 13.0, False)]


def test_a_gate_ends_the_training_at_its_step_and_anchor():
    """The first anchor reaches step 30 and passes; the second is rejected there: 4 stretches and a measure each."""
    assert ends([record(GOOD, SLOW)], Quality(30, 0.1)) == [("quality@30", 0.5 + 0.5 + 8 + 0.5, False)]
    assert ends([record(SLOW, GOOD)], Quality(30, 0.1)) == [("quality@30", 0.5 + 0.5 + 7 + 0.25, False)]


def test_screening_rejects_before_anything_is_trained():
    assert ends([record(GOOD, GOOD, probe=False)]) == [("probe", 0.125, False)]
    assert ends([record(GOOD, GOOD, size=1e5)]) == [("propagation", 0.5, False)]
    assert ends([record(GOOD, GOOD, size=None)]) == [("propagation", 0.5, False)]


def test_a_function_is_trained_once_and_its_twin_shares_its_end():
    twins = [record(GOOD, SLOW), record(GOOD, GOOD), record(GOOD, GOOD, "g")]
    assert ends(twins, Quality(30, 0.1))[1:] == [("quality@30", 0.5, True), ("", 0.5 + 0.5 + 12 + 1.0, False)]


def test_a_divergence_ends_all():
    broken = record(GOOD, GOOD)
    broken["anchors"]["a"].update(train=[1.0, 1.0, 0.5], measure=[0.25, 0.25], loss=[1, 0.9], diverged=14)
    broken["anchors"]["b"].update(train=[1.0, 1.0], measure=[0.25, 0.25], loss=[1, 0.9])
    assert ends([broken], Quality(30, 0.1)) == [("divergence", 0.5 + 0.5 + 4.5, False)]
    assert final_skill(broken, LOSS) == float("-inf") and full_seconds(broken) == 0.5 + 4.5


def test_a_line_that_a_kill_has_torn_is_cut_off(tmp_path):
    path = tmp_path / "study.jsonl"
    assert read(path) == []
    path.write_text(json.dumps({"number": 1}) + "\n" + json.dumps({"number": 2}) + "\n" + '{"number": 3, "gra')
    assert [record["number"] for record in read(path)] == [1, 2]
    assert path.read_text().endswith("2}\n")


def test_no_false_rejection_among_100_leaves_three_and_a_half_percent():
    """Clopper and Pearson, no events: the upper end is 1 - 0.025^(1/n)."""
    assert rate(0, 100) == {"count": 0, "of": 100, "low": 0.0, "high": round(1 - 0.025 ** (1 / 100), 4)}

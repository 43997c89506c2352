"""History: what a ledger tells, read back."""

from dataclasses import asdict

import pytest

from normact.search.budget import Budget
from normact.search.controllers import Evolution, Start
from normact.search.engine import Engine
from normact.search.funnel import Funnel
from normact.search.history import History
from normact.search.ledger import Event, Ledger
from normact.search.objective import Objective, Score
from normact.search.outcome import Outcome
from normact.search.pool import LocalPool
from normact.spaces import InputError
from tests.judges import LOSS, Judge
from tests.toy import Choice, ToySpace


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
        yield ledger


def test_it_agrees_with_the_engine(ledger):
    space = ToySpace()
    controller = Evolution(space, [LOSS], 0, [Start(Choice("sine", 3), "mine")], warmup=3, fresh=0.2)
    engine = Engine(space, controller, ledger, LocalPool(lambda: Judge(space)), Budget(proposals=120), LOSS)
    engine.run()
    history = History(ledger)
    assert history.funnel == engine.funnel
    assert history.funnel == Funnel.of(120, history.outcomes.values())
    assert list(history.proposals) == sorted(history.outcomes) == list(range(120))
    assert history.record(7) == history.proposals[7]
    assert history.outcome(7) == history.outcomes[7]
    assert history.outcome(120) is None


def record(ledger, number, parents=(), operator="sample", note=None, **outcome):
    data = {"candidate": number, "key": f"k{number}", "parents": list(parents), "operator": operator, "note": note}
    ledger.append([Event("proposed", number, data)])
    if outcome:
        ledger.append([Event("finished", number, Outcome(number, **outcome).to_json())])


def test_lineage_goes_back_to_a_start_or_a_sample(ledger):
    record(ledger, 0, operator="start", note={"origin": "evonorm_b0"})
    record(ledger, 1)
    record(ledger, 2, [0], "mutate")
    record(ledger, 3, [2], "mutate")
    record(ledger, 4, [1], "mutate")
    history = History(ledger)
    assert [r.number for r in history.lineage(3)] == [3, 2, 0]
    assert [history.origin(n) for n in (0, 1, 3, 4)] == [
        "evonorm_b0",
        "sample #1",
        "evonorm_b0, 2 generation(s) on",
        "sample #1, 1 generation(s) on",
    ]


def test_a_ranking_never_mixes_devices(ledger):
    def scores(value):
        return (Score("loss", "a", 10, value),)

    record(ledger, 0, device="cpu", scores=scores(0.5))
    record(ledger, 1, device="NVIDIA H100", scores=scores(0.1))
    record(ledger, 2, device="cpu", scores=scores(0.2))
    record(ledger, 3, device="cpu", gate="probe")
    record(ledger, 4, device="cpu", gate="duplicate", same_as=2)
    record(ledger, 5)
    history = History(ledger)
    ranked = {device: [o.number for o in outcomes] for device, outcomes in history.ranked(LOSS).items()}
    assert ranked == {"cpu": [2, 0], "NVIDIA H100": [1]}
    assert [o.number for o in history.ranked(LOSS, 1)["cpu"]] == [2]
    assert [o.number for o in history.latest_accepted(5)] == [0, 2]
    assert [o.number for o in history.latest_accepted(1)] == [2]
    assert history.device == "cpu"


def test_a_front_is_of_means_over_anchors_per_device(ledger):
    """Means of (loss, accuracy): 0 (0.2, 0.5), 1 (0.3, 0.7), 2 dominated by 1, 3 the best loss, 4 on another device."""
    accuracy = Objective("accuracy", "", "maximize", 0.1, 1.0)

    def scores(*pairs):
        losses = [Score("loss", anchor, 10, loss) for anchor, (loss, _) in zip("ab", pairs, strict=True)]
        return (*losses, *(Score("accuracy", anchor, 10, hit) for anchor, (_, hit) in zip("ab", pairs, strict=True)))

    record(ledger, 0, device="cpu", scores=scores((0.1, 0.4), (0.3, 0.6)))
    record(ledger, 1, device="cpu", scores=scores((0.3, 0.7), (0.3, 0.7)))
    record(ledger, 2, device="cpu", scores=scores((0.0, 0.9), (0.9, 0.3)))
    record(ledger, 3, device="cpu", scores=scores((0.1, 0.1), (0.1, 0.1)))
    record(ledger, 4, device="NVIDIA H100", scores=scores((0.9, 0.2), (0.9, 0.2)))
    record(ledger, 5, device="cpu", gate="probe")
    record(ledger, 6, device="cpu", scores=(Score("loss", "a", 10, 0.0),))  # never measured the other
    record(ledger, 7, device="cpu", scores=scores((0.3, 0.7), (0.3, 0.7)))  # as good as 1
    history = History(ledger)

    def numbers(*objectives):
        return {device: [o.number for o in front] for device, front in history.front(objectives).items()}

    assert numbers(LOSS, accuracy) == {"cpu": [3, 0, 1, 7], "NVIDIA H100": [4]}
    assert numbers(accuracy, LOSS) == {"cpu": [1, 7, 0, 3], "NVIDIA H100": [4]}
    assert numbers(LOSS) == {"cpu": [6], "NVIDIA H100": [4]}
    assert numbers(Objective("time", "", "minimize", 1.0, 0.0), LOSS) == {}


def test_objectives_are_those_that_the_run_kept_also_of_earlier_runs(ledger):
    assert History(ledger).objectives == {}
    ledger.set_meta("objective", asdict(LOSS))
    assert History(ledger).objectives == {"loss": LOSS}
    cost = Objective("parameters", "", "minimize", 1.0, 0.0)
    ledger.set_meta("objectives", [asdict(LOSS), asdict(cost)])
    assert list(History(ledger).objectives.items()) == [("loss", LOSS), ("parameters", cost)]
    ledger.set_meta("objectives", [{"name": "loss"}])
    with pytest.raises(InputError, match="damaged: its objectives cannot be read"):
        _ = History(ledger).objectives

"""History: what a ledger tells, read back."""

import pytest

from normact.search.budget import Budget
from normact.search.controllers import Evolution, Start
from normact.search.engine import Engine
from normact.search.funnel import Funnel
from normact.search.history import History
from normact.search.ledger import Event, Ledger
from normact.search.objective import Score
from normact.search.outcome import Outcome
from normact.search.pool import LocalPool
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

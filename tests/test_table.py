"""The tabular benchmark: what it enumerates, how it answers, and searches on a table made by hand."""

import numpy as np
import pytest

from normact.search.objective import Objective
from normact.search.outcome import mean_skill
from normact.search.pool import Job
from normact.spaces import GraphSpace
from tests.benchmarks import controllers
from tests.benchmarks.table import Table, all_graphs, survivors

OPS, INPUTS, NODES = ("add", "div", "relu", "batch_std", "group_std"), ("x", "v1"), 2
LOSS = Objective("validation_loss", "", "minimize", 1.0, 0.0)


@pytest.fixture(scope="module")
def space():
    return GraphSpace(OPS, nodes=NODES, inputs=INPUTS)


@pytest.fixture(scope="module")
def records(space):
    """Every third graph is rejected; loss falls with the graph's place, and is worse by 0.001 under seed 1."""
    texts = [space.describe(graph) for graph in all_graphs(OPS, INPUTS, NODES)]
    rows = [[text, "probe" if i % 3 == 0 else "", "" if i % 3 == 0 else f"f{i}"] for i, text in enumerate(texts)]
    trained = [
        {
            "function": function,
            "seed": seed,
            "gate": "",
            "steps": 100,
            "seconds": 1.0,
            "scores": {"net": {"validation_loss": [[50, 0.9], [100, round(0.8 - i / 1000 + seed / 1000, 4)]]}},
        }
        for i, (_, gate, function) in enumerate(rows)
        if not gate
        for seed in (0, 1)
    ]
    return [{"screened": rows[:10]}, {"screened": rows[10:]}, *trained]


def test_all_graphs_are_those_that_the_space_samples_and_each_is_there_once(space):
    graphs = list(all_graphs(OPS, INPUTS, NODES))
    keys = {space.key(graph) for graph in graphs}
    sampled = {space.key(space.sample(np.random.default_rng(k))) for k in range(3000)}
    assert len(keys) == len(graphs) and sampled == keys


def test_a_table_answers_jobs_and_keeps_the_other_seed_for_the_truth(space, records):
    text, function = next((t, f) for t, gate, f in records[0]["screened"] if not gate)
    data = space.to_json(space.parse(text))
    table, swapped = Table(records, space), Table(records, space, swap=True)
    (screened,) = table(Job(0, "screen", ((5, data),), 0))
    assert (screened.number, screened.gate, screened.fingerprint) == (5, "", function)
    (trained,) = table(Job(1, "train", ((7, data),), 0))
    assert trained.number == 7 and trained.accepted and table.judged == [function]
    assert mean_skill(LOSS, trained) == pytest.approx(mean_skill(LOSS, table.truth(function)) + 0.001)
    assert swapped.seen(function) == table.truth(function)


def test_survivors_are_named_by_their_shortest_graph():
    rows = [["relu(relu(x))", "", "f"], ["relu(x)", "", "f"], ["x + x", "linearity", "g"]]
    assert survivors([{"screened": rows[:1]}, {"screened": rows[1:]}]) == {"f": "relu(x)"}


@pytest.mark.parametrize("name", [*controllers.OURS, *controllers.DIRECT])
def test_a_search_on_the_table_spends_its_trainings_and_finds_good_functions(name, space, records, monkeypatch):
    table = Table(records, space)
    monkeypatch.setattr(controllers, "_table", lambda swap: (table, LOSS))
    monkeypatch.setattr(controllers, "TRAININGS", 20)
    monkeypatch.setattr(controllers, "CHECKPOINTS", (5, 10, 20))
    run = controllers.searched(name, seed=0)
    assert len(run.truths) == 3 and len(table.judged) >= 20 and run.proposals >= 20
    assert list(run.truths) == sorted(run.truths), "the truth of the best so far falls, though seeds agree"
    if name in controllers.OURS:
        assert run.repeats == 0

"""`normact show`: the Pareto front of a run, and what a rerank takes from it."""

import json
import re

import pytest

from normact.launch.reranking import finalists_of
from tests.launch.conftest import TINY, TINY_RERANK

OBJECTIVES = "objective=[validation_loss,accuracy,parameters,relative_memory]"
FRONT = ["validation_loss", "parameters"]
TITLE = "Pareto front, means over anchors (cpu, one seed)"


def dominated(row, rows):
    """By the definition: another row is nowhere worse and somewhere better; both objectives are better when smaller."""
    own = [row["means"][name] for name in FRONT]
    others = [[other["means"][name] for name in FRONT] for other in rows]
    return any(all(a <= b for a, b in zip(o, own, strict=True)) and o != own for o in others)


def test_a_search_for_a_front_shows_it_and_reranks_along_it(normact):
    few = ["rerank.finalists=2", "budget.proposals=20", "start_from=[bn_relu,evonorm_b0,evonorm_s0,gn_silu]"]
    status, out, err = normact(
        "search", *TINY, *TINY_RERANK, OBJECTIVES, f"front=[{','.join(FRONT)}]", *few, "run_dir=run"
    )
    assert status == 0, err
    assert TITLE in out
    data = json.loads(normact("show", "run", "--json", "--top", 1000)[1])
    front = data["front"]["cpu"]
    by_loss = [row["means"]["validation_loss"] for row in front]
    assert by_loss == sorted(by_loss)
    assert front[0]["number"] == data["top"]["cpu"][0]["number"]
    assert not any(dominated(row, front) for row in front)
    everything = json.loads(normact("show", "run", "--json", "--front", "validation_loss")[1])["front"]["cpu"]
    assert [row["number"] for row in everything] == [front[0]["number"]]
    standings = data["reranks"][0]["standings"]
    finalists = [row["entrant"]["name"] for row in standings if row["entrant"]["role"] == "finalist"]
    numbers = [row["number"] for row in front]
    assert finalists and {int(name[1:].split()[0]) for name in finalists} <= set(numbers)

    status, out, _ = normact("show", "run")
    assert TITLE in out
    assert all(f"#{number}: " in out for number in numbers)
    status, out, _ = normact("show", "run", "--front", "accuracy,relative_memory,parameters")
    assert re.search(r"accuracy\W+relative_memory\W+parameters", out[out.index(TITLE) :])
    status, _, err = normact("show", "run", "--front", "accuracy,parameter")
    assert status == 2
    assert "unknown objective 'parameter' in --front; the nearest is 'parameters'" in err
    with pytest.raises(SystemExit):
        normact("show", "run", "--front", "accuracy,")


def test_a_run_of_one_objective_shows_no_front_unless_it_is_asked_for(normact):
    assert normact("search", *TINY, "budget.proposals=15", "run_dir=run")[0] == 0
    assert "Pareto" not in normact("show", "run")[1]
    assert json.loads(normact("show", "run", "--json")[1])["front"] == {}
    assert TITLE in normact("show", "run", "--front", "accuracy,validation_loss")[1]


def test_a_front_of_nothing_new_has_no_rerank(normact):
    """One proposal: the baseline itself."""
    only = [
        "budget.proposals=1",
        "start_from=[bn_relu]",
        OBJECTIVES,
        "front=[validation_loss,parameters]",
        "gates=none",
    ]
    tiny = [part for part in TINY if "gates" not in part and "proposals" not in part]
    status, out, err = normact("search", *tiny, *TINY_RERANK, *only, "run_dir=run")
    assert status == 0, err
    expected = (
        "no rerank: nothing on the front of validation_loss and parameters computes something else than the baselines"
    )
    assert expected in out


@pytest.mark.parametrize(
    ("count", "spread", "expected"),
    [(3, False, [0, 1, 2]), (3, True, [0, 4, 8]), (1, True, [0]), (2, True, [0, 8]), (20, True, list(range(9)))],
)
def test_finalists_are_the_best_or_spread_along_the_front(count, spread, expected):
    assert finalists_of(list(range(9)), count, spread) == expected


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective=[parameters,validation_loss]"], "parameters cannot lead a search"),
        (
            ["objective=[validation_loss]", "front=[validation_loss,parameters]", "rerank.objective=validation_loss"],
            "unknown objective 'parameters'",
        ),
        (["space=kan", "data=functions", "objective=[rmse,brier]"], "brier needs classes"),
        (
            ["objective=[validation_loss,parameters]", "+gates.quality_50.objective=parameters"],
            "gate quality@50 goes by parameters, which is none of quality",
        ),
    ],
)
def test_an_objective_that_cannot_be_is_said_before_anything_runs(normact, overrides, words):
    status, _, err = normact("search", "--dry-run", *overrides, "run_dir=run")
    assert status == 2
    assert words in err and len(err.strip().splitlines()) == 1

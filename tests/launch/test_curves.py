"""`normact curves`: a found KAN trained anew, its strongest edges printed and read."""

import re

import pytest

from tests.launch.conftest import TINY

FUNCTIONS = [
    "space=kan",
    "data=functions",
    "pool=local",
    "rerank.finalists=0",
    "budget.minutes=null",
    "recipe.steps=60",
    "recipe.warmup=0",
    "gates=none",
    "data.samples=200",
    "data.validation=100",
]
LAYERS = "kan(gaussian, normalizer=minmax, post=batch); kan(bspline, normalizer=layer, base=silu)"

NODES = "node(graph, normalizer=none); node(graph, normalizer=minmax)"


@pytest.fixture
def run(normact):
    """A run of three candidates; gives the command on it."""
    starts = [f"'{LAYERS}'", "'af(); kan(gaussian, bspline, combine=product)'", f"'{NODES}'"]
    overrides = [
        f"start_from=[{','.join(starts)}]",
        "budget.proposals=3",
        "space.layers=2",
        "controller=random",
        "run_dir=run",
    ]
    status, _, err = normact("search", *FUNCTIONS, *overrides)
    assert status == 0, err
    return lambda *arguments: normact("curves", "run", *arguments)


def test_edges_are_printed_and_the_training_is_the_searchs(run):
    status, out, err = run("--candidate", "#0", "--top", 2, "--threshold", 0)
    assert status == 0, err
    assert "candidate #0: kan(gaussian(grid=8), normalizer=minmax" in out
    anew, searched = re.search(r"kan_small, trained anew: rmse (\S+); the search measured (\S+)", out).groups()
    assert anew == searched
    assert out.count("standard deviation") == 4
    assert "layer 1, KANLinear: a norm follows the sum of the edges" in out
    deviations = [float(text) for text in re.findall(r"standard deviation (\S+)", out)]
    assert deviations[0] >= deviations[1] > 0
    assert deviations[2] >= deviations[3] > 0
    assert out.count("y = ") == 4
    assert len(re.findall(r"R2 (1\.0|0\.\d{6,})$", out, re.M)) == 4
    assert re.search(
        r"behind the layer's norm, which looks at all inputs, and the base branch adds -?\d\S*\*silu\(x\)", out
    )


def test_what_is_no_elementary_function_is_refused(run):
    status, out, _ = run("--candidate", "#0", "--top", 3, "--threshold", 1)
    assert status == 0
    assert out.count("no elementary function fits: the best, ") == 6
    assert "y = " not in out


def test_layers_that_have_no_edges_say_so(run):
    status, out, _ = run("--candidate", "#1")
    assert status == 0
    assert "layer 1, AFKANLinear: the edges of AFKANLinear cannot be read: AF-KAN normalizes" in out
    assert "combine=product no output is a sum" in out
    assert "standard deviation" not in out


def test_the_nodes_of_an_mlp_are_read_as_its_activation(run):
    """SiLU of the input, then of an affine map of it: scale and shift aside, the same function."""
    status, out, _ = run("--candidate", "#2", "--top", 2)
    assert status == 0
    assert out.count("y = ") == 4
    assert len(re.findall(r"y = \S+\*\(?.+\)?/\(1 \+ exp\(-", out)) == 4


def test_the_best_is_meant_where_none_is_named(run):
    status, out, _ = run("--top", 1)
    assert status == 0
    assert re.search(r"candidate #[012]: ", out)


def test_a_run_without_kan_layers(normact):
    assert normact("search", *TINY, "budget.proposals=1", "start_from=[bn_relu]", "run_dir=other")[0] == 0
    status, _, err = normact("curves", "other", "--candidate", "#0")
    assert status == 2
    assert "has no KAN layer" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "2"], "must be a number from 0 to 1, got '2'"),
        (["--threshold", "high"], "must be a number from 0 to 1, got 'high'"),
        (["--top", "0"], "must be a whole number of at least 1, got '0'"),
    ],
)
def test_bad_options(normact, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        normact("curves", "run", *arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err

import json

import pytest

from normact.launch.main import main
from normact.launch.proxy_study import FIRST_LONG_SEED
from normact.search.ledger import Ledger
from normact.search.objective import Score
from tests.launch.conftest import TINY

PLAN = ["--steps", "4,8", "--seeds", "2", "--times", "2", "--long-seeds", "1", "--candidates", "4"]


def proxy(*arguments, run_dir="run"):
    overrides = [part for part in TINY if not part.startswith(("gates", "~gates"))]
    return main(["proxy", *PLAN, *arguments, *overrides, "gates=none", f"run_dir={run_dir}"])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("normact.launch.proxy_study.Plan.least", -10.0)


def trainings(run_dir="run"):
    with Ledger(f"{run_dir}/ledger.sqlite", write=False) as ledger:
        return ledger.count("reranked"), ledger.count("test_read")


def test_a_study_trains_all_prints_a_table_and_goes_on_without_repeating(tmp_path, capsys):
    assert proxy() == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    data = json.loads((tmp_path / "run/proxy.json").read_text())
    assert data["of"] >= 10
    assert trainings() == (data["of"] * (2 * 2 + 1), 0)
    scores = {row["score"] for row in data["rows"]}
    assert {"validation_loss", "accuracy", "training_loss", "extrapolated_loss"} <= scores
    assert {(row["steps"], row["seeds"]) for row in data["rows"]} == {(4, 1), (4, 2), (8, 1), (8, 2)}
    assert data["recommended"] in data["rows"]
    assert f"recipe.steps={data['recommended']['steps']}" in out
    (tmp_path / "run/proxy.json").unlink()
    assert proxy() == 0
    assert json.loads((tmp_path / "run/proxy.json").read_text()) == data
    assert trainings() == (data["of"] * 5, 0)
    assert proxy("--slack", "1") == 0
    chosen = json.loads((tmp_path / "run/proxy.json").read_text())["recommended"]
    assert (chosen["steps"], chosen["seeds"]) == (4, 1), "with so much slack the cheapest is enough"
    assert trainings() == (data["of"] * 5, 0)


def test_long_trainings_may_be_on_the_networks_and_data_of_the_rerank(tmp_path, capsys):
    assert proxy("--transfer", "anchor@rerank.anchor=[mlp]") == 2
    assert "anchor 'mlp' has a site of layout NC, but the space serves NCHW, NLC" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    elsewhere = ["anchor@rerank.anchor=[deep_resnet]", "rerank.anchor.deep_resnet.width=4"]
    assert proxy("--transfer", *elsewhere) == 0, capsys.readouterr().err
    assert "other seeds, by accuracy, on deep_resnet." in capsys.readouterr().out
    data = json.loads((tmp_path / "run/proxy.json").read_text())
    assert trainings() == (data["of"] * (2 * 2 + 1), 0)
    with Ledger("run/ledger.sqlite", write=False) as ledger:
        anchors = {
            (event.data["seed"] >= FIRST_LONG_SEED, Score(*score).anchor)
            for event in ledger.events("reranked")
            for score in event.data["outcome"]["scores"]
        }
    assert anchors == {(False, "preact_resnet"), (True, "deep_resnet")}
    assert proxy(*elsewhere) == 2
    assert "is not this study" in capsys.readouterr().err


def test_another_study_in_the_same_folder_is_refused(tmp_path, capsys):
    assert proxy("--candidates", "0") == 0
    before = (tmp_path / "run/proxy.json").read_bytes()
    assert proxy("--candidates", "1") == 2
    assert "is not this study; give another run_dir" in capsys.readouterr().err
    assert (tmp_path / "run/proxy.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "4,x"], "--steps needs whole numbers with commas between, got '4,x'"),
        (["--steps", "4,4"], "--steps needs different numbers of at least 2, got [4, 4]"),
        (["--seeds", "1"], "--seeds must be at least 2"),
        (["--times", "0"], "--times and --long-seeds must be at least 1"),
        (["--slack", "-1"], "--slack must be at least 0, got -1.0"),
    ],
)
def test_a_plan_that_makes_no_sense_is_one_line(arguments, says, tmp_path, capsys):
    assert proxy(*arguments) == 2
    err = capsys.readouterr().err
    assert says in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()

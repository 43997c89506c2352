"""The command line, from a search to an export, and everything a person can get wrong."""

import json
import sqlite3
from pathlib import Path

import pytest
import yaml

from normact.search.ledger import Ledger
from tests.launch.conftest import TINY, TINY_RERANK


def test_search_show_rerank_resume_export(normact, tmp_path):
    status, out, _ = normact("search", *TINY, *TINY_RERANK, "run_dir=run")
    assert status == 0
    assert "40 proposals" in out
    assert "Preliminary: 2 seeds cannot support a claim" in out
    assert len(list((tmp_path / "run/exports").glob("layer_*.py"))) == 1
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["budget"]["proposals"] == 40

    status, out, _ = normact("show", "run", "--json")
    data = json.loads(out)
    assert status == 0
    assert data["proposals"] == 40
    assert data["funnel"][-1]["left"] == data["accepted"] == len(data["top"]["cpu"]) > 0
    assert sum(row["candidates"] for row in data["funnel"]) + data["accepted"] == 40
    assert data["test_reads"] == 1
    (reranked,) = data["reranks"]
    assert {row["entrant"]["role"] for row in reranked["standings"]} == {"finalist", "baseline"}
    status, out, _ = normact("show", "run", "--top", 1)
    assert data["top"]["cpu"][0]["layer"] in out

    status, out, _ = normact("rerank", "run")  # nothing is trained again, the test split is not read again
    assert status == 0
    assert json.loads(normact("show", "run", "--json")[1])["test_reads"] == 1

    status, _, err = normact("rerank", "run", "rerank.finalists=0")
    assert status == 2
    assert "got rerank.finalists=0; give 1 or more" in err
    status, out, _ = normact("rerank", "run", "rerank.finalists=2", "rerank.seeds=3")
    assert status == 0
    (reranked,) = json.loads(normact("show", "run", "--json")[1])["reranks"]
    assert len(reranked["standings"]) == 3
    assert "Preliminary: 3 seeds" in out
    assert normact("rerank", "run")[0] == 0

    before = json.loads(normact("show", "run", "--json")[1])
    status, out, _ = normact("resume", "run")
    assert status == 0
    assert "resumed at 40 proposals, 0 of them judged again" in out
    assert json.loads(normact("show", "run", "--json")[1])["top"] == before["top"]

    key = data["top"]["cpu"][-1]["key"]
    status, out, _ = normact("export", "run", "--candidate", key[:8], "--out", "mine.py")
    assert status == 0
    assert "outputs and gradients within" in out
    text = Path("mine.py").read_text()
    assert "def mine(num_features" in text
    assert data["top"]["cpu"][-1]["layer"] in text


def test_check_layers_ops(normact):
    status, out, _ = normact("check", "affine(div(x, instance_std(x)))", *TINY)
    assert "accuracy on preact_resnet" in out
    assert status in (0, 1)
    status, out, _ = normact("check", "exp(square(x))", *TINY)
    assert status == 1
    assert "rejected by gate probe: non-finite output" in out
    status, out, _ = normact("layers")
    assert status == 0
    assert all(name in out for name in ("bn_relu", "evonorm_b0", "frn_tlu", "bn_crrelu"))
    status, out, _ = normact("ops")
    assert status == 0
    assert "left out (empty)" in out
    assert "group_std" in out


def test_dry_run_writes_nothing(normact, tmp_path):
    status, out, _ = normact("search", "--dry-run", *TINY, *TINY_RERANK, "run_dir=run")
    assert status == 0
    resolved = yaml.safe_load("\n".join(line for line in out.splitlines() if not line.startswith("#")))
    assert resolved["recipe"]["steps"] == 12
    assert "# search: at most" in out
    assert "# rerank: 4 trainings" in out
    assert not (tmp_path / "run").exists()


def test_start_from_names_expressions_and_runs(normact):
    status, _, _ = normact("search", *TINY, "start_from=[evonorm_b0,'affine(tanh(x))']", "run_dir=one")
    assert status == 0
    top = json.loads(normact("show", "one", "--json")[1])["top"]["cpu"]
    found = next(row for row in top if row["number"] == 0)
    assert found["origin"] == found["same_as"] == "evonorm_b0"
    status, _, _ = normact("search", *TINY, "start_from=[run:one]", "run_dir=two")
    assert status == 0
    again = json.loads(normact("show", "two", "--json")[1])["top"]["cpu"]
    assert any(row["origin"] == "run:one#0" and row["same_as"] == "evonorm_b0" for row in again)


BAD_SEARCHES = [
    (["data=nope"], "unknown option of data"),
    (["budget.proposals=0"], "budget.proposals must be above zero, got 0"),
    (["budget.proposals=null"], "no budget"),
    (["data=fashion_mnist", "data.folder=/no/such/folder"], "apt-get install dataset-fashion-mnist"),
    (["space.ops=[neg]", "space.constraints.nodes=0"], "no valid layer"),
    (["space.ops=[exp]", "space.inputs=[v0]"], "lack x"),
    (["space.layouts=[NLC]"], "site of layout NCHW"),
    (["gates.stall_30.at=500"], "looks at step 500, but training ends at 12"),
    (["start_from=[bn_rely]"], "the nearest is 'bn_relu'"),
    (["task.device=cuda"], "no GPU"),
    (["rerank.finalists=1", "rerank.baselines=[resnet]"], "unknown baseline 'resnet'"),
    (["rerank.finalists=1", "rerank.objective=speed"], "unknown objective 'speed'"),
    (["durability=some"], "durability must be normal or full"),
    (["objective=[validation_loss,rmse]"], "rmse needs values to predict, but the data's loss is cross_entropy"),
    (["controller=cmaes"], "CmaEsSampler draws numbers alone, but GraphSpace has choices that are none"),
    (
        ["controller=cmaes", "front=[validation_loss,accuracy]"],
        "CmaEsSampler takes one objective, got validation_loss, accuracy",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), BAD_SEARCHES, ids=lambda value: str(value)[:40])
def test_a_bad_search_ends_with_one_line_and_writes_nothing(normact, tmp_path, overrides, message):
    status, _, err = normact("search", *TINY, *overrides, "run_dir=run")
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


class TestBadFolders:
    @pytest.fixture
    def run(self, normact, tmp_path):
        assert normact("search", *TINY, "budget.proposals=5", "start_from=[bn_relu]", "run_dir=run")[0] == 0
        return tmp_path / "run"

    def check(self, normact, arguments, message):
        status, _, err = normact(*arguments)
        assert status == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1

    def test_a_run_folder_that_exists(self, normact, run):
        before = (run / "ledger.sqlite").read_bytes()
        self.check(normact, ["search", *TINY, "run_dir=run"], "normact resume run")
        assert (run / "ledger.sqlite").read_bytes() == before

    @pytest.mark.parametrize("command", ["resume", "show", "rerank"])
    def test_a_folder_that_is_no_run(self, normact, tmp_path, command):
        self.check(normact, [command, "."], "is no run folder")
        self.check(normact, [command, "missing"], "is no run folder")
        assert list(tmp_path.iterdir()) == []

    def test_a_newer_schema(self, normact, run):
        db = sqlite3.connect(run / "ledger.sqlite")
        db.execute("PRAGMA user_version=99")
        db.close()
        self.check(normact, ["resume", "run"], "schema 99")

    def test_a_config_that_names_another_module(self, normact, run, tmp_path):
        text = (run / "config.yaml").read_text()
        evil = text.replace("_target_: normact.search.gates.Structure", "_target_: os.system\n    command: touch evil")
        assert evil != text
        (run / "config.yaml").write_text(evil)
        for command in (["resume", "run"], ["show", "run"], ["rerank", "run"], ["export", "run", "--out", "x.py"]):
            self.check(normact, command, "'os.system', which is not ours")
        assert not (tmp_path / "evil").exists()

    def test_a_run_in_use(self, normact, run):
        with Ledger(run / "ledger.sqlite"):
            self.check(normact, ["resume", "run"], "in use by another driver")
            assert normact("show", "run")[0] == 0

    def test_fingerprints_that_changed(self, normact, run):
        with Ledger(run / "ledger.sqlite") as ledger:
            ledger.set_meta("known_fingerprints", {"bn_relu": "something else"})
        self.check(normact, ["resume", "run"], "fingerprints of bn_relu differ")

    def test_exports_that_cannot_be(self, normact, run):
        (run / "precious.py").write_text("mine")
        self.check(normact, ["export", "run", "--out", "run/precious.py"], "exists already")
        assert (run / "precious.py").read_text() == "mine"
        self.check(
            normact,
            ["export", "run", "--out", "layer.txt"],
            "must end in .py, .pt2, .onnx, .tex, .svg, .png, .pdf; got '.txt'",
        )
        self.check(normact, ["export", "run", "--out", "no/layer.py"], "does not exist")
        self.check(normact, ["export", "run", "--out", "Layer.py", "--name", "9x"], "'9x'")
        self.check(normact, ["export", "run", "--out", "x.py", "--candidate", "zzz"], "no candidate 'zzz'")


@pytest.mark.parametrize("arguments", [[], ["--bogus"], ["search", "--bogus"], ["export", "run"], ["dance"]])
def test_unknown_options_end_with_status_2(normact, arguments):
    with pytest.raises(SystemExit) as caught:
        normact(*arguments)
    assert caught.value.code == 2

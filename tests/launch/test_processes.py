"""The installed command in processes of its own, on Ray: a person's own code, kills, interrupts."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from normact.search.ledger import Ledger
from tests.launch.conftest import TINY, TINY_RERANK
from tests.launch.processes import (
    NORMACT,
    check_nothing_lost_or_doubled,
    check_same_finds,
    count_finished,
    finished,
    kill_when,
    make_toy_config,
    run,
    toy_command,
    wait_a_little,
)

PERSON = Path(__file__).parent / "person"
ON_RAY = [*TINY, "pool=ray", "pool.workers=2"]


@pytest.mark.slow
def test_a_persons_own_parts_work_on_ray_workers_from_another_folder(tmp_path):
    """Op, gate, controller, objective, data and model of a module beside their YAML files."""
    parts = ["space=mine", "gates=mine", "controller=mine", "objective=[accuracy,worst_class]", "data=mine"]
    objective = ["objective=[mine,accuracy]"]
    tiny = ["recipe.steps=30", "recipe.warmup=2", "budget.minutes=null", "budget.proposals=100", "rerank.finalists=0"]
    command = ["search", "--config-dir", PERSON, *parts[:3], *objective, "data=mine", "anchor=[mine]", *tiny]
    run(*command, "pool=ray", "pool.workers=2", "run_dir=run", cwd=tmp_path)
    history = check_nothing_lost_or_doubled(tmp_path / "run", 100)
    assert any(o.gate == "no_division" for o in history.outcomes.values())
    assert not any(o.gate == "error" for o in history.outcomes.values())
    accepted = [o for o in history.outcomes.values() if o.accepted]
    assert accepted
    assert {s.objective for o in accepted for s in o.scores} == {"worst_class", "accuracy"}
    cubes = [r for r in history.proposals.values() if any(node[0] == "cube" for node in r.candidate["nodes"])]
    assert cubes, "the op of their own was never drawn"

    out = subprocess.run([*NORMACT, "show", "run"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert out.returncode == 2
    assert "--allow my_parts" in out.stderr
    shown = run("show", "run", "--allow", "my_parts", "--config-dir", PERSON, "--json", cwd=tmp_path)
    top = json.loads(shown)["top"]["cpu"]
    number = next((row["number"] for row in top if "cube" in row["layer"]), top[0]["number"])
    trust = ["--allow", "my_parts", "--config-dir", PERSON]
    run("export", "run", *trust, "--candidate", f"#{number}", "--out", "found.py", cwd=tmp_path)
    code = "import sys; sys.modules['normact'] = None; import found, torch; found.found(8)(torch.randn(2, 8, 4, 4))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)


@pytest.fixture
def toy_config(tmp_path):
    return make_toy_config(tmp_path / "config")


@pytest.mark.parametrize("pool", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_space_that_is_not_of_norms_goes_all_the_way(tmp_path, toy_config, pool):
    """Search, resume, rerank, export of a `linear` space, unchanged, in both pools."""
    trust = ["--allow", "toy_parts", "--config-dir", toy_config]
    out = run(*toy_command(toy_config, pool), "run_dir=run", cwd=tmp_path)
    assert "plain_square" in out
    history = check_nothing_lost_or_doubled(tmp_path / "run", 60)
    assert sum(o.accepted for o in history.outcomes.values()) > 5
    assert any(o.same_as is not None for o in history.outcomes.values())
    assert "60 proposals" in run("resume", "run", *trust, cwd=tmp_path)
    run("export", "run", *trust, "--out", "basis.py", cwd=tmp_path)
    code = "import basis, torch; assert basis.basis(3, 4)(torch.randn(5, 3)).shape == (5, 4)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_in_the_middle_and_resumed_nothing_is_lost_or_doubled(tmp_path):
    """`kill -9` of the driver, twice, while trainings run on Ray; then the ledger against one never killed."""
    command = ["search", *ON_RAY, "controller=random", "budget.proposals=120", "limits.batch=4"]
    run(*command, "run_dir=whole", cwd=tmp_path)
    whole = check_nothing_lost_or_doubled(tmp_path / "whole", 120)
    ledger_path = tmp_path / "killed/ledger.sqlite"
    kill_when([*NORMACT, *command, "run_dir=killed"], tmp_path, lambda: count_finished(ledger_path) >= 15)
    kill_when([*NORMACT, "resume", "killed"], tmp_path, lambda: count_finished(ledger_path) >= 50)
    before = finished(ledger_path)
    with Ledger(ledger_path, write=False) as ledger:
        in_flight = ledger.count("proposed") - len(before)
    assert 50 <= len(before) < 120
    assert in_flight > 0, "it was killed with nothing in flight: the test tests nothing"
    out = run("resume", "killed", cwd=tmp_path)
    assert f"{in_flight} of them judged again" in out
    killed = check_nothing_lost_or_doubled(tmp_path / "killed", 120)
    assert all(killed.outcomes[n].to_json() == data for n, data in before.items()), "a record was changed"
    check_same_finds(killed, whole)


def test_ctrl_c_ends_cleanly_and_the_run_goes_on(tmp_path):
    command = [*NORMACT, "search", *ON_RAY, "budget.proposals=100", "run_dir=killed"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        ledger_path = tmp_path / "killed/ledger.sqlite"
        while process.poll() is None and count_finished(ledger_path) < 10:
            wait_a_little(process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the driver and its workers
        out = process.stdout.read()
    assert process.returncode == 130
    assert "everything is recorded. Go on with: normact resume killed" in out
    shown = json.loads(run("show", "killed", "--json", cwd=tmp_path))
    assert shown["proposals"] >= 10
    out = run("resume", "killed", cwd=tmp_path)
    assert re.search(r"resumed at \d+ proposals", out)
    check_nothing_lost_or_doubled(tmp_path / "killed", 100)


@pytest.mark.slow
def test_fashion_mnist_is_searched_for_real(tmp_path, require):
    """A search, its rerank and its export on the real files, with few of the images."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    require(folder.is_dir(), f"Fashion-MNIST in {folder} (apt-get install dataset-fashion-mnist)")
    data = ["data=fashion_mnist", "data.train_size=2000", "data.validation_size=500"]
    rerank = [
        "rerank.finalists=1",
        "rerank.seeds=2",
        "rerank.baselines=[bn_relu]",
        "anchor@rerank.anchor=[deep_resnet]",
    ]
    small = ["anchor.preact_resnet.width=4", "rerank.anchor.deep_resnet.width=8", "rerank.recipe.steps=150"]
    budget = ["anchor=[preact_resnet]", "budget.minutes=null", "budget.proposals=30", "start_from=[bn_silu]"]
    run("search", *data, *rerank, *small, *budget, "pool.workers=2", "run_dir=run", cwd=tmp_path)
    shown = json.loads(run("show", "run", "--json", cwd=tmp_path))
    assert shown["top"]["cpu"][0]["scores"].keys() == {"preact_resnet"}
    baseline = next(row for row in shown["reranks"][0]["standings"] if row["entrant"]["role"] == "baseline")
    assert 0.5 < baseline["test"] < 0.9, "BN-ReLU after 150 steps of Fashion-MNIST"
    assert len(list((tmp_path / "run/exports").glob("*.py"))) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_shuffled_labels_have_no_better_layer(tmp_path):
    """Where nothing can be learnt, no finalist is called better, and all accuracies are near chance."""
    quick = ["recipe.steps=30", "~gates.quality_50", "~gates.stall_30", "~gates.quality_100"]
    rerank = ["rerank.finalists=3", "rerank.seeds=8", "rerank.recipe.steps=60", "rerank.baselines=[bn_relu,gn_relu]"]
    budget = ["budget.minutes=null", "budget.proposals=80"]
    out = run(
        "search", "data.shuffle_labels=true", *quick, *rerank, *budget, "run_dir=run", cwd=tmp_path
    )  # fmt: skip
    assert "No finalist is shown to be better" in out
    rows = json.loads(run("show", "run", "--json", cwd=tmp_path))["reranks"][0]["standings"]
    assert len(rows) == 5
    for row in rows:
        assert "better" not in row["verdict"]
        assert 0.06 < row["test"] < 0.14, "chance is 0.1 on 359 images"


def test_the_run_folder_says_what_made_it(tmp_path):
    run("search", *TINY, *TINY_RERANK, "budget.proposals=20", "run_dir=run", cwd=tmp_path)
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["input"] == {"channels": 1, "size": 8, "features": 64, "outputs": 10, "patch": 2}
    versions = json.loads((tmp_path / "run/versions.json").read_text())
    assert {"normact", "torch", "python", "machine"} <= versions.keys()
    with Ledger(tmp_path / "run/ledger.sqlite", write=False) as ledger:
        assert ledger.meta("versions") == versions
        assert "evonorm_b0" in ledger.meta("known_fingerprints")

"""A run folder, a candidate or a worker may be somebody else's: none of them makes us run or write what it says."""

import ast
import contextlib
import json
import re
import sqlite3
from pathlib import Path

import pytest
import yaml

from normact.launch.trust import check_targets
from normact.spaces import InputError
from tests.launch.conftest import TINY, TINY_RERANK

ROOT = Path(__file__).parents[2]
ALL = [path for folder in ("spaces", "search", "launch") for path in sorted((ROOT / folder).rglob("*.py"))]
COMMANDS = (["resume", "run"], ["show", "run"], ["rerank", "run"], ["export", "run", "--out", "x.py"])

RUNS_DATA = {
    "eval", "exec", "compile", "__import__", "load_module", "exec_module", "run_path", "run_module", "Unpickler",
    "loads", "load", "unsafe_load", "full_load", "read_pickle", "fromfile", "os.system", "os.popen", "Popen", "call",
    "check_call", "check_output", "subprocess.run",
}  # fmt: skip
"""Names of calls that run what they are given, or read a format that can; `eval` of a module is another thing."""

ALLOWED = {
    ("launch/ray_worker.py", "pickle.loads"): "a worker unpickles the factory that its own driver sent",
    (
        "launch/exports/printing.py",
        "spec.loader.exec_module",
    ): "the file that it has itself just written from our space",
    (
        "launch/exports/checks.py",
        "pickle.load",
    ): "the bytes that the check itself has just pickled, of the exported layer",
    ("launch/exports/checks.py", "torch.compile"): "compiles the exported layer; runs no text of others",
    ("spaces/body.py", "self.call"): "a method that prints a call",
    ("spaces/swap/rewrite.py", "compile"): "the forward that torch.fx printed of a model already in this process",
    ("spaces/swap/rewrite.py", "exec"): "the same",
}


def calls(path):
    """Dotted names of what a module calls."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def runs_data(path):
    """Those of a module's calls that may run data: not JSON, regular expressions, `x.eval()`, `x.load()`."""
    for name, node in calls(path):
        harmless = name in ("json.loads", "json.load", "yaml.safe_load", "re.compile")
        reads_nothing = name.endswith((".eval", ".load")) and not node.args and not node.keywords
        if {name, name.split(".")[-1]} & RUNS_DATA and not harmless and not reads_nothing:
            yield name


def test_nothing_is_unpickled_or_evaluated_but_in_named_places():
    assert {(str(path.relative_to(ROOT)), name) for path in ALL for name in runs_data(path)} == set(ALLOWED)


def test_the_scan_sees_what_it_is_there_for(tmp_path):
    source = "torch.load('x')\npickle.loads(b'')\neval('1')\nmodel.eval()\njson.loads('1')\nos.system('x')\n"
    (tmp_path / "module.py").write_text(source)
    assert list(runs_data(tmp_path / "module.py")) == ["torch.load", "pickle.loads", "eval", "os.system"]


@pytest.fixture
def run(normact, tmp_path):
    assert normact("search", *TINY, "budget.proposals=30", "run_dir=run")[0] == 0
    return tmp_path / "run"


def refused(normact, words):
    for command in COMMANDS:
        status, _, err = normact(*command)
        assert status == 2
        assert words in err, err
        assert len(err.strip().splitlines()) == 1


PARTS = [
    "space", "controller", "data", "recipe", "pool", "anchor.preact_resnet", "gates.structure", "rerank.recipe",
    "rerank.data",
]  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_every_command_refuses_a_run_that_names_os_system(normact, run, tmp_path, part):
    config = yaml.safe_load((run / "config.yaml").read_text())
    node = config
    for name in part.split("."):
        node = node.setdefault(name, {})
    node.clear()
    node.update({"_target_": "os.system", "command": f"touch {tmp_path}/evil"})
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    refused(normact, "'os.system', which is not ours")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"runtime_env": {"py_executable": "touch evil; python"}}, "pool.runtime_env"),
        ({"runtime_env": {"worker_process_setup_hook": "os.getcwd"}}, "pool.runtime_env"),
        ({"address": "203.0.113.7:6379"}, "pool.address=203.0.113.7:6379"),
        ({"address": "ray://203.0.113.7:10001"}, "pool.address=ray://203.0.113.7:10001"),
    ],
)
def test_a_run_that_names_a_cluster_or_an_environment_is_asked_about(pool, words):
    config = {"pool": {"_target_": "normact.launch.ray_pool.RayPool", **pool}}
    with pytest.raises(InputError, match=re.escape(words)) as error:
        check_targets(config)
    [allow] = re.findall(r"--allow (\S+)", str(error.value))
    check_targets(config, [allow])


@pytest.mark.parametrize("address", ["local", "auto"])
def test_a_run_on_this_machine_or_on_the_cluster_that_it_is_in_is_not(address):
    pool = {"_target_": "normact.launch.ray_pool.RayPool", "address": address, "runtime_env": None}
    check_targets({"pool": pool})


def test_optuna_s_samplers_may_be_named_and_nothing_else_of_it():
    check_targets({"controller": {"sampler": {"_target_": "optuna.samplers.NSGAIISampler"}}})
    for target in ("optuna.create_study", "optuna.storages.RDBStorage", "optuna.samplers._cmaes.pickle.loads"):
        with pytest.raises(InputError, match="which is not ours"):
            check_targets({"controller": {"sampler": {"_target_": target}}})


@pytest.mark.parametrize(
    "target",
    [
        "normact.search.ledger.Ledger",
        "normact.search.engine.Engine",
        "normact.launch.main.main",
        "normact.launch.export",
    ],
)
def test_only_what_a_config_is_made_of_may_be_named(target):
    """A ledger that is created writes a file wherever it is told to."""
    with pytest.raises(InputError, match="which is not ours"):
        check_targets({"space": {"_target_": f"normact.{target}", "path": "anywhere", "create": True}})


NAMES = ["../../evil", "/tmp/evil", "a/b", ".", "..", "", "x" * 5000, "$(touch evil)", "[red]", "\x1b[2J"]


def test_names_in_a_ledger_become_no_paths(normact, tmp_path):
    """Every text of the ledger that is not a graph's is replaced: keys, fingerprints, devices, workers, reasons."""
    assert normact("search", *TINY, *TINY_RERANK, "budget.proposals=30", "run_dir=run")[0] == 0
    run = tmp_path / "run"
    before = set(tmp_path.parent.rglob("*"))
    with contextlib.closing(sqlite3.connect(run / "ledger.sqlite")) as db, db:
        assert renamed(db) > len(NAMES)
    assert normact("show", "run")[0] == 0
    for command in (["resume", "run"], ["rerank", "run"]):
        assert normact(*command)[0] in (0, 2)
    for number in range(3):
        status, _, err = normact("export", "run", "--candidate", f"#{number}", "--out", "found.py")
        assert status == 0, err
        (tmp_path / "found.py").unlink()
    new = set(tmp_path.parent.rglob("*")) - before
    assert all(path.is_relative_to(run) for path in new), new
    assert not Path("/tmp/evil").exists()


def renamed(db):
    """Replace the texts of a ledger, each row's by another of `NAMES`. How many rows."""
    rows = db.execute("SELECT id, kind, data FROM events WHERE kind IN ('proposed', 'finished')").fetchall()
    for row, kind, text in rows:
        name, data = NAMES[row % len(NAMES)], json.loads(text)
        for field in ("key",) if kind == "proposed" else ("device", "worker", "fingerprint", "reason"):
            data[field] = name if field == "device" or data[field] else ""
        db.execute("UPDATE events SET data = ?, key = ? WHERE id = ?", (json.dumps(data), name, row))
        db.execute("UPDATE ranking SET device = ? WHERE number = ?", (name, data.get("number", -1)))
    return len(rows)

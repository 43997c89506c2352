"""What a person's config, module or run folder can have wrong: one line, exit status 2, nothing overwritten."""

import sqlite3
import sys

import pytest
import yaml

from normact.launch.export import find
from normact.launch.run_folder import known_fingerprints
from normact.search.history import History
from normact.search.ledger import Event, Ledger
from normact.search.rerank import Rerank
from normact.spaces import GraphSpace, InputError
from tests.launch.conftest import TINY, TINY_RERANK
from tests.toy import ToySpace

RAISES = "def __init__(self, *a, **kw): raise ArithmeticError('no\\nway')"
PARTS = f"""
from normact.search.anchors import PreActResNet
from normact.search.controllers import RandomSearch
from normact.search.data import Digits
from normact.search.gates import Pass, ScreenGate
from normact.search.task import Accuracy
from normact.spaces import GraphSpace, InputError

class Controller(RandomSearch):
    {RAISES}

class Gate(ScreenGate):
    name = "gate"
    {RAISES}
    def check(self, ctx): return Pass()

class Space(GraphSpace):
    {RAISES}

class Measured(Accuracy):
    def objective(self, data): raise ArithmeticError("no\\nway")

class Odd(Accuracy):
    def objective(self, data): return "speed"

class Unloadable(Digits):
    def load(self): raise ArithmeticError("no\\nway")

class Shapeless(Digits):
    @property
    def shape(self): raise ArithmeticError("no\\nway")

class Leaves(RandomSearch):
    def __init__(self, *a, **kw): raise SystemExit(0)

def net(make): raise ArithmeticError("no\\nway")

def anything(*a, **kw): return 7
"""
MODULES = {
    "parts_here.py": PARTS,
    "parts_syntax.py": "def broken(:\n",
    "parts_raise.py": "raise ArithmeticError('no\\nway')\n",
    "parts_leave.py": "import sys\nsys.exit(0)\n",
}
PARTIAL = "_partial_: true"


@pytest.fixture
def person(normact, tmp_path_factory, monkeypatch):
    """Runs a command with a config folder that holds the modules above."""
    folder = tmp_path_factory.mktemp("person")
    for name, text in MODULES.items():
        (folder / name).write_text(text)
        monkeypatch.delitem(sys.modules, name[:-3], raising=False)
    return folder


def check_one_line(normact, arguments, *words):
    status, _, err = normact(*arguments)
    assert status == 2
    assert all(word in err for word in words), err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("group", "text", "words"),
    [
        ("controller", f"{{_target_: parts_here.Controller, {PARTIAL}}}", ["controller", "ArithmeticError", "no way"]),
        ("controller", f"{{_target_: parts_here.Leaves, {PARTIAL}}}", ["controller", "SystemExit"]),
        ("controller", f"{{_target_: parts_here.anything, {PARTIAL}}}", ["a int, not a Controller"]),
        ("controller", "{_target_: parts_here.anything}", ["controller", "_partial_: true"]),
        ("space", "{_target_: parts_here.Space}", ["space", "ArithmeticError", "no way"]),
        ("space", "{_target_: parts_here.anything}", ["a int, not a Space"]),
        ("gates", "mine: {_target_: parts_here.Gate}", ["gate mine", "ArithmeticError", "no way"]),
        ("gates", "mine: {_target_: parts_here.anything}", ["a int, not a Gate"]),
        ("gates", "mine: {_target_: parts_syntax.Gate}", ["gate mine", "SyntaxError"]),
        ("gates", "mine: {_target_: parts_raise.Gate}", ["gate mine", "ArithmeticError"]),
        ("gates", "mine: {_target_: parts_leave.Gate}", ["gate mine", "SystemExit"]),
        ("gates", "mine: {_target_: parts_gone.Gate}", ["gate mine", "parts_gone"]),
        ("gates", "mine: 5", ["gates must be", "_target_"]),
        ("data", "{_target_: parts_here.anything}", ["a int, not a Data"]),
        ("data", "{_target_: parts_here.Shapeless}", ["data", "ArithmeticError", "no way"]),
        ("data", "{_target_: parts_here.Unloadable}", ["data", "ArithmeticError", "no way"]),
        ("anchor", "mine: {_target_: parts_here.anything}", ["anchor mine", "cannot be called"]),
        ("anchor", f"mine: {{_target_: parts_here.net, {PARTIAL}}}", ["anchor", "ArithmeticError", "no way"]),
        ("objective", "mine: {_target_: parts_here.Measured}", ["objective mine", "ArithmeticError", "no way"]),
        ("objective", "mine: {_target_: parts_here.Odd}", ["objective mine", "a str, not a Objective"]),
        ("objective", "mine: {_target_: parts_here.anything}", ["objective mine", "a int, not a Measure"]),
        ("pool", f"{{_target_: parts_here.net, {PARTIAL}}}", ["pool", "ArithmeticError"]),
        ("pool", f"{{_target_: parts_here.anything, {PARTIAL}}}", ["a int, not a Pool"]),
        ("space", "{a: [1", ["--config-dir", "while parsing"]),
        ("space", "[1, 2]", ["space"]),
    ],
)
def test_a_part_of_their_own_that_is_broken(normact, person, tmp_path, group, text, words):
    (person / group).mkdir()
    (person / group / "mine.yaml").write_text(text + "\n")
    chosen = f"{group}=[mine]" if group in ("anchor", "objective") else f"{group}=mine"
    others = [o for o in TINY if not o.startswith((f"{group}=", f"{group}.", f"~{group}."))]
    if group == "anchor":
        others = [o for o in others if not o.startswith("anchor")]
    check_one_line(normact, ["search", *others, chosen, "--config-dir", person, "run_dir=run"], *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget.minutes=soon"], "budget.minutes must be a finite number, or null, got 'soon'"),
        (["budget.proposals=2.5"], "budget.proposals must be a whole number"),
        (["+budget.hours=1"], "no setting budget.hours"),
        (["budget=5"], "budget"),
        (["run_dir=null"], "run_dir must be a text"),
        (["start_from=[5]"], "start_from must be a list of texts"),
        (["pool=ray", "pool.workers=two"], "pool.workers must be a whole number of at least 1, got 'two'"),
        (["seed=-1"], "seed must be a whole number of at least 0, got '-1'"),
        (["seed=abc"], "seed must be a whole number"),
        (["seed=null"], "seed must be a whole number"),
        (["limits.batch=0"], "limits.batch must be"),
        (["+limits.wait=1"], "no setting limits.wait"),
        (["rerank.seeds=1"], "rerank.seeds must be a whole number of at least 2, got '1'"),
        (["rerank.finalists=-1"], "rerank.finalists must be a whole number of at least 0"),
        (["rerank.finalists=1", "rerank.baselines=[]"], "rerank.baselines"),
        (["rerank.finalists=3", "rerank.longlist=2"], "rerank.longlist=2 is shorter than rerank.finalists=3"),
        (["pool=ray", "pool.gpus_per_worker=0.5"], "task.device=cpu trains without"),
        (["~data"], "data"),
    ],
)
@pytest.mark.parametrize("option", [[], ["--dry-run"]], ids=["search", "dry-run"])
def test_a_setting_of_a_wrong_form(normact, tmp_path, overrides, message, option):
    base = [o for o in TINY if o.split("=")[0] not in {p.split("=")[0] for p in overrides}]
    run_dir = [] if overrides[0].startswith("run_dir") else ["run_dir=run"]
    check_one_line(normact, ["search", *option, *base, *overrides, *run_dir], message)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run(normact, tmp_path):
    assert normact("search", *TINY, "budget.proposals=5", "start_from=[bn_relu]", "run_dir=run")[0] == 0
    return tmp_path / "run"


COMMANDS = (["resume", "run"], ["show", "run"], ["rerank", "run"], ["export", "run", "--out", "x.py"])


def test_a_config_of_a_run_that_has_another_form(normact, run):
    whole = yaml.safe_load((run / "config.yaml").read_text())
    cases = [({k: v for k, v in whole.items() if k != name}, f"no {name}") for name in ("gates", "space", "rerank")]
    cases += [({**whole, "data": None}, "data must be"), ({k: v for k, v in whole.items() if k != "data"}, "no data")]
    cases += [({**whole, "limits": {**whole["limits"], "wait": 1}}, "no setting limits.wait")]
    for config, message in cases:
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        for command in COMMANDS:
            check_one_line(normact, command, "config.yaml", message)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE events SET data = '{' WHERE kind = 'finished' AND number = 2", ["ledger.sqlite"]),
        (
            "UPDATE events SET data = '{}' WHERE kind = 'finished' AND number = 2",
            ["'finished' of 2", "lacks its number"],
        ),
        ("UPDATE events SET data = '7' WHERE kind = 'proposed' AND number = 2", ["'proposed' of 2", "lacks candidate"]),
        ("DELETE FROM events WHERE kind = 'proposed' AND number = 2", ["ledger.sqlite is damaged"]),
        ("DELETE FROM events WHERE kind = 'proposed' AND number = 4", ["never proposed"]),
        (
            "UPDATE events SET data = json_set(data, '$.parents', json('[9]')) WHERE kind = 'proposed' AND number = 2",
            ["has the parents [9]"],
        ),
    ],
)
def test_a_ledger_with_a_damaged_event(normact, run, statement, words):
    db = sqlite3.connect(run / "ledger.sqlite")
    with db:
        assert db.execute(statement).rowcount == 1
    db.close()
    for command in (c for c in COMMANDS if c[0] != "show"):  # which reads what it shows alone
        check_one_line(normact, command, *words)


def test_a_ledger_with_a_damaged_page(normact, run):
    db = sqlite3.connect(run / "ledger.sqlite")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    path = run / "ledger.sqlite"
    pages = bytearray(path.read_bytes())
    pages[4096:] = b"\xa5" * (len(pages) - 4096)
    path.write_bytes(pages)
    for command in COMMANDS:
        check_one_line(normact, command, "ledger.sqlite")


def test_a_source_that_raises_is_no_traceback(normact, tmp_path, monkeypatch):
    """After search and rerank are paid for, a person's `Space.source` costs the export alone."""

    def source(self, candidate, name, note=""):
        raise ArithmeticError("no\nway")

    monkeypatch.setattr(GraphSpace, "source", source)
    status, out, err = normact("search", *[o for o in TINY if not o.startswith("rerank")], *TINY_RERANK, "run_dir=run")
    assert (status, err) == (0, "")
    assert "not exported: GraphSpace.source: ArithmeticError: no way\n" in out
    check_one_line(normact, ["export", "run", "--out", "x.py"], "GraphSpace.source: ArithmeticError: no way")
    monkeypatch.setattr(GraphSpace, "source", lambda self, candidate, name, note="": "raise SystemExit(0)\n")
    check_one_line(normact, ["export", "run", "--out", "x.py"], "the source of x: SystemExit")
    assert not (tmp_path / "x.py").exists()


def test_starts_of_a_run_that_measured_something_else(normact):
    assert normact("search", *TINY, "objective=[accuracy]", "run_dir=one")[0] == 0
    words = ["run:one", "never measured validation_loss", "only accuracy"]
    check_one_line(normact, ["search", *TINY, "start_from=[run:one]", "run_dir=two"], *words)
    assert (
        normact(
            "search", *TINY, "budget.proposals=3", "gates.stall_30.low=-1e9", "gates.stall_30.high=1e9", "run_dir=none"
        )[0]
        == 0
    )
    check_one_line(normact, ["search", *TINY, "start_from=[run:none]", "run_dir=two"], "nothing passed every gate")


def test_one_more_seed_trains_and_reads_that_seed_alone(normact, tmp_path):
    assert normact("search", *TINY, *TINY_RERANK, "run_dir=run")[0] == 0
    assert normact("rerank", "run", "rerank.seeds=3")[0] == 0
    with Ledger(tmp_path / "run/ledger.sqlite", write=False) as ledger:
        assert ledger.count("reranked") == 6
        assert [event.data["trainings"] for event in ledger.events("test_read")] == [4, 2]


def test_show_prints_the_table_of_the_rerank(normact):
    out = normact("search", *TINY, *TINY_RERANK, "run_dir=run")[1]
    table = out[out.index("Rerank: test") : out.index("\n", out.index("Preliminary: 2 seeds"))]
    assert table in normact("show", "run")[1]


def test_finds_that_are_all_baselines_are_no_error(normact):
    known = ["controller=random", "budget.proposals=1", "start_from=[bn_relu]"]
    status, out, _ = normact("search", *TINY, *TINY_RERANK, *known, "run_dir=run")
    assert status == 0
    assert "no rerank: nothing computes something else than the baselines" in out
    assert normact("rerank", "run")[0] == 0


def test_ctrl_c_in_a_rerank_is_130(normact, monkeypatch):
    def interrupted(self, on_progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(Rerank, "run", interrupted)
    status, out, _ = normact("search", *TINY, *TINY_RERANK, "run_dir=run")
    assert status == 130
    assert "Go on with: normact rerank run" in out
    assert normact("rerank", "run")[0] == 130


def test_overrides_may_follow_options(normact):
    first, *rest = TINY
    status, out, _ = normact("search", first, "--dry-run", *rest, "seed=7", "run_dir=run")
    assert status == 0
    assert yaml.safe_load("\n".join(line for line in out.splitlines() if line[:1] != "#"))["seed"] == 7
    assert normact("check", "exp(square(x))", "--config-dir", ".", *TINY)[0] == 1
    for stray in ("--bogus=1", "bogus"):
        with pytest.raises(SystemExit) as caught:
            normact("show", "run", stray)
        assert caught.value.code == 2


@pytest.mark.parametrize("top", ["0", "-1", "many"])
def test_show_of_no_layer(normact, top):
    with pytest.raises(SystemExit) as caught:
        normact("show", "run", "--top", top)
    assert caught.value.code == 2


def test_baselines_that_are_named_twice(normact):
    twice = ["rerank.finalists=1", "rerank.baselines=[bn_relu,bn_relu]"]
    check_one_line(normact, ["search", *TINY, *twice, "run_dir=run"], "names one twice")


class TestFind:
    """What `export --candidate` means, in a run of four candidates with these keys; #3 repeats #0."""

    KEYS = ("ab12", "ab34", "1f00", "ab12")

    @pytest.fixture
    def find(self, tmp_path):
        with Ledger(tmp_path / "ledger.sqlite", create=True) as ledger:
            ledger.append([Event("proposed", n, {"key": key}) for n, key in enumerate(self.KEYS)])
            yield lambda key: find(History(ledger), None, key)

    @pytest.mark.parametrize(("key", "number"), [("ab12", 0), ("ab1", 0), ("ab3", 1), ("#2", 2), ("#3", 3), ("2", 2)])
    def test_one_that_is_meant(self, find, key, number):
        assert find(key) == number

    def test_none_is_preferred(self, find):
        with pytest.raises(InputError, match=r"'ab' may be any of 2 candidates: ab12 \(#0\), ab34 \(#1\)"):
            find("ab")
        with pytest.raises(InputError, match=r"'1' may be any of 2 candidates: 1f00 \(#2\), #1;"):
            find("1")
        with pytest.raises(InputError, match="no candidate '#7'"):
            find("#7")


def test_a_baseline_that_raises_is_one_line():
    class Broken(ToySpace):
        def build(self, candidate, site):
            raise ArithmeticError("no such layer")

    with pytest.raises(InputError, match="the space's baseline plain_square: ArithmeticError: no such layer"):
        known_fingerprints(Broken())

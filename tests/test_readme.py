"""The README's own examples run as written; only the budget is cut down."""

import re
import shlex
from pathlib import Path

import pytest

from normact.launch.main import main
from normact.search.history import History
from normact.search.ledger import Ledger
from normact.spaces import OPS
from normact.spaces.kan import BASES

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
FILES = {
    match[1]: text
    for kind, text in BLOCKS
    if kind in ("python", "yaml") and (match := re.match(r"# (mine/\S+)\n", text))
}
COMMANDS = [
    line[2:].split("  #")[0].strip()
    for kind, text in BLOCKS
    if kind == "console"
    for line in text.splitlines()
    if line.startswith("$ normact search --config-dir")
]
CUT = ["pool=local", "budget.minutes=null", "budget.proposals=15", "recipe.steps=12", "rerank.finalists=0"]
CUT_GRAPHS = [
    "recipe.warmup=2", "~gates.stall_30", "~gates.quality_50", "~gates.quality_100", "gates.stability.at=0",
]  # fmt: skip


def test_there_are_four_examples_of_your_own():
    assert len(COMMANDS) == 4
    assert {"mine/my_ops.py", "mine/my_task.py", "mine/my_space.py", "mine/my_basis.py"} < set(FILES)
    assert "@@" not in README


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    known = dict(OPS), dict(BASES)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    arguments = shlex.split(command)[1:]
    kept = [a for a in arguments if not a.startswith(("budget.minutes", "rerank.finalists"))]
    try:
        cut = CUT if "my_kan" in command else [*CUT, *CUT_GRAPHS]
        assert main([*kept, *cut, "run_dir=run"]) == 0, capsys.readouterr().err
    finally:
        for table, before in zip((OPS, BASES), known, strict=True):
            table.clear()
            table.update(before)
    with Ledger(tmp_path / "run/ledger.sqlite", write=False) as ledger:
        outcomes = History(ledger).outcomes.values()
    assert len(outcomes) == 15
    assert not [o.reason for o in outcomes if o.gate == "error"]


def test_every_command_of_the_readme_exists():
    named = set(re.findall(r"^\$ normact (\w+)", README, re.MULTILINE))
    for name in named:
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0


def test_the_layers_in_the_readme_are_made_as_written():
    (snippet,) = [text for kind, text in BLOCKS if kind == "python" and "KANConv2d" in text]
    made = {}
    exec(snippet, made)
    assert made["y"].shape == (32, 64)
    assert made["conv"](made["torch"].zeros(2, 3, 8, 8)).shape == (2, 16, 8, 8)


def test_the_tutorial_swaps_trains_and_compares(monkeypatch, capsys):
    text = FILES["mine/swap.py"]
    for long, short in (("EPOCHS, BATCH, SEEDS = 4, 128, 3", "EPOCHS, BATCH, SEEDS = 1, 64, 1"), ("20_000", "256")):
        assert text.count(long) == 1
        text = text.replace(long, short)
    monkeypatch.setattr("sys.argv", ["swap.py", "evonorm_s0"])
    exec(compile(text, "swap.py", "exec"), {"__name__": "__main__"})
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(":")[0] for line in lines[:2]] == ["seed 0, as it is", "seed 0, evonorm_s0"]
    assert "replaced 37 norms with the activation behind them" in lines[2]
    assert lines[3].startswith("as it is: mean 0.") and lines[4].startswith("evonorm_s0: mean 0.")

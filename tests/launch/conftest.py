"""Small, fast searches for the tests of the command line."""

import pytest

from normact.launch.exports import checks
from normact.launch.exports.checks import COMPILE, ONNXRUNTIME, PROGRAM
from normact.launch.main import main

TINY = [
    "pool=local",
    "rerank.finalists=0",
    "budget.minutes=null",
    "budget.proposals=40",
    "anchor=[preact_resnet]",
    "anchor.preact_resnet.width=4",
    "recipe.steps=12",
    "recipe.warmup=2",
    "gates.stall_30.at=10",
    "~gates.quality_50",
    "~gates.quality_100",
    "gates.stability.at=0",
    "gates.stability.ascent_steps=2",
]
"""Overrides that make a search take seconds: one narrow anchor, 12 steps, in this process."""

TINY_RERANK = [
    "rerank.finalists=1",
    "rerank.seeds=2",
    "rerank.lr_factors=[]",
    "rerank.baselines=[bn_relu]",
    "anchor@rerank.anchor=[deep_resnet]",
    "rerank.anchor.deep_resnet.width=4",
    "rerank.recipe.steps=12",
    "rerank.recipe.warmup=2",
]


COSTLY = {COMPILE, PROGRAM, ONNXRUNTIME}
"""Checks of an export that take seconds each."""


def without_checks(monkeypatch, names):
    """Have exports checked without these checks."""
    left = {name: check for name, check in checks.CHECKS.items() if name not in names}
    monkeypatch.setattr(checks, "CHECKS", left)


@pytest.fixture
def normact(capsys, monkeypatch, tmp_path):
    """Runs a command line in an empty folder; gives status, standard output and standard error.

    Exports are compiled and translated in `test_checks` and in the processes of `test_processes`, not here.
    """
    without_checks(monkeypatch, COSTLY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))

    def run(*arguments):
        status = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run

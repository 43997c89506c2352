"""The installed command in processes of its own, and what must be true of a ledger afterwards."""

import contextlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from normact.search.history import History
from normact.search.ledger import Ledger
from tests.judges import scored

NORMACT = [sys.executable, "-m", "normact.launch.main"]
SELF_KILLING = [sys.executable, str(Path(__file__).parent / "self_killing.py")]


def run(*arguments, cwd, status=0, **options):
    """Run `normact`; its standard output. Another exit status than expected fails the test."""
    command = [*NORMACT, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def check_nothing_lost_or_doubled(folder, proposals):
    """Every proposal is there once and has one outcome; the history."""
    with Ledger(folder / "ledger.sqlite", write=False) as ledger:
        assert [e.number for e in ledger.events("proposed")] == list(range(proposals))
        assert sorted(e.number for e in ledger.events("finished")) == list(range(proposals))
        history = History(ledger)
        assert history.proposals.keys() == history.outcomes.keys()  # read now, while it is open
        return history


def check_same_finds(one, other, at_least=30):
    """Two runs of one seed and a random controller on several workers agree in all that may not differ.

    Which of two equal functions came first may differ with the order of workers; what was found may not.
    """
    assert one.proposals == other.proposals
    trained = [scored({n: o for n, o in h.outcomes.items() if o.same_as is None}) for h in (one, other)]
    common = trained[0].keys() & trained[1].keys()
    assert len(common) > at_least
    assert {n: trained[0][n] for n in common} == {n: trained[1][n] for n in common}
    prints = [{o.fingerprint for o in h.outcomes.values() if o.accepted} for h in (one, other)]
    assert prints[0] == prints[1]


def finished(path):
    """The records of a ledger that may be being written: outcomes as they were stored, by number."""
    try:
        with Ledger(path, write=False) as ledger:
            return {e.number: e.data for e in ledger.events("finished")}
    except ValueError:  # not made whole yet
        return {}


def count_finished(path):
    """How many outcomes there are."""
    return len(finished(path))


def kill_when(command, cwd, is_time):
    """Start a command, and kill its driver with signal 9 once `is_time()`."""
    with subprocess.Popen(list(map(str, command)), cwd=cwd, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if is_time():
                process.send_signal(signal.SIGKILL)
                break
            wait_a_little(process)
        out = process.stdout.read()
    assert process.returncode == -signal.SIGKILL, f"it ended before it could be killed: {out}"


def wait_a_little(process, seconds=0.02):
    """Look again soon, or when the process ends."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)


def make_toy_config(folder):
    """A config folder with a space and an anchor of kind `linear`."""
    (folder / "space").mkdir(parents=True)
    (folder / "anchor").mkdir()
    shutil.copy(Path(__file__).parents[1] / "toy.py", folder / "toy_parts.py")
    (folder / "space/toy.yaml").write_text("_target_: toy_parts.ToySpace\nmost: 50\n")
    (folder / "anchor/toy.yaml").write_text("toy: {_target_: toy_parts.ToyNet}\n")
    return folder


def toy_command(folder, pool, space="toy"):
    """A search of that space: 60 proposals, no gates but those of form, finite numbers and duplicates."""
    gates = ["~gates.propagation", "~gates.stability", "~gates.stall_30", "~gates.quality_100", "~gates.quality_50"]
    rerank = ["rerank.finalists=2", "rerank.seeds=2", "rerank.baselines=[plain_square]", "anchor@rerank.anchor=[toy]"]
    rerank.append("rerank.lr_factors=[]")
    return [
        "search", "--config-dir", folder, f"space={space}", "anchor=[toy]", f"pool={pool}", "recipe.steps=20",
        "recipe.lr=0.001", *gates, *rerank, "rerank.recipe.steps=30", "budget.minutes=null", "budget.proposals=60",
    ]  # fmt: skip

"""Progress of a search and a rerank: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from normact.search.budget import Budget
from normact.search.engine import Progress
from normact.search.funnel import UNFINISHED
from normact.search.objective import Objective
from normact.search.outcome import Outcome

PLAIN_EVERY = 10.0
LIVE_EVERY = 0.25


@contextmanager
def search_progress(
    console: Console,
    gates: Sequence[str],
    budget: Budget,
    objective: Objective,
    describe: Callable[[int], str],
) -> Iterator[Callable[[Progress], None]]:
    """A display to hand to `Engine.run`."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            last = 0.0

            def show(progress: Progress) -> None:
                nonlocal last
                if time.monotonic() - last >= LIVE_EVERY:
                    live.update(_panel(progress, gates, budget, objective, describe))
                    last = time.monotonic()

            yield show
        return
    last_line = time.monotonic()

    def write(progress: Progress) -> None:
        nonlocal last_line
        if time.monotonic() - last_line >= PLAIN_EVERY:
            console.print(_line(progress, objective, describe), markup=False, highlight=False, soft_wrap=True)
            last_line = time.monotonic()

    yield write


def _panel(
    progress: Progress,
    gates: Sequence[str],
    budget: Budget,
    objective: Objective,
    describe: Callable[[int], str],
) -> Group:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=True, header_style="bold")
    for column in ("ended at", "candidates", "left"):
        table.add_column(column, justify="left" if column == "ended at" else "right")
    table.add_row("proposed", "", str(progress.funnel.proposals))
    for name, count, left in progress.funnel.rows(gates):
        table.add_row("in flight" if name == UNFINISHED else name, str(count), str(left))
    done = _share_done(progress, budget)
    return Group(
        Text(_rates(progress)),
        ProgressBar(total=1.0, completed=done, width=60),
        table,
        Text(_best(progress.best, objective, describe)),
    )


def _share_done(progress: Progress, budget: Budget) -> float:
    shares = [0.0]
    if budget.minutes is not None:
        shares.append(progress.seconds / (60 * budget.minutes))
    if budget.proposals is not None:
        shares.append((progress.funnel.proposals - progress.funnel.unfinished) / budget.proposals)
    return min(1.0, max(shares))


def _rates(progress: Progress) -> str:
    judged = progress.funnel.proposals - progress.funnel.unfinished
    left = "" if progress.remaining is None else f", {progress.remaining:.0f} s left"
    rate = judged / max(progress.seconds, 1e-9)
    return (
        f"{progress.seconds:.0f} s{left}: {judged} judged ({rate:.1f}/s), "
        f"{progress.funnel.trained} distinct functions trained past step 10"
    )


def _best(best: Outcome | None, objective: Objective, describe: Callable[[int], str]) -> str:
    if best is None:
        return "best so far: none has passed every gate yet"
    values = ", ".join(f"{anchor} {value:.3f}" for anchor, value in best.final(objective.name).items())
    return f"best so far: #{best.number} {objective.name} {values}: {describe(best.number)}"


def _line(progress: Progress, objective: Objective, describe: Callable[[int], str]) -> str:
    return f"{_rates(progress)}; {_best(progress.best, objective, describe)}"


@contextmanager
def trainings_progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A display to hand to `Trainings.run` or `Rerank.run`."""
    start = time.monotonic()
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:

            def show(done: int, total: int) -> None:
                text = Text(f"{what}: {done} of {total} trainings, {time.monotonic() - start:.0f} s")
                live.update(Group(text, ProgressBar(total=total, completed=done, width=60)))

            yield show
        return
    last = time.monotonic()

    def write(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= PLAIN_EVERY:
            console.print(f"{what}: {done} of {total} trainings, {time.monotonic() - start:.0f} s", highlight=False)
            last = time.monotonic()

    yield write

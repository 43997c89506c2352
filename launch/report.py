"""What `normact show` prints: the best layers, the funnel with its costs, the rerank."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from normact.launch.standings import Conditions, Standings
from normact.search.funnel import Funnel
from normact.search.history import History
from normact.search.objective import Objective
from normact.search.outcome import Outcome, mean_skill
from normact.search.rerank import ENOUGH_SEEDS, Standing
from normact.spaces.graph import LayerGraph
from normact.spaces.space import Space
from normact.spaces.text import formula


def top_rows(
    history: History, space: Space, objective: Objective, known: Mapping[str, str], count: int
) -> dict[str, list[dict[str, Any]]]:
    """The best candidates per kind of device, as plain data."""

    def row(outcome: Outcome) -> dict[str, Any]:
        scores = {"skill": mean_skill(objective, outcome), "scores": outcome.final(objective.name)}
        return _row(history, space, known, outcome, scores)

    return {device: [row(o) for o in ranked] for device, ranked in history.ranked(objective, count).items()}


def front_rows(
    history: History, space: Space, objectives: Sequence[Objective], known: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """The Pareto front per kind of device, as plain data: means over anchors by objective."""

    def row(outcome: Outcome) -> dict[str, Any]:
        means = outcome.means()
        return _row(history, space, known, outcome, {"means": {o.name: means[o.name] for o in objectives}})

    return {device: [row(o) for o in front] for device, front in history.front(objectives).items()}


def _row(
    history: History, space: Space, known: Mapping[str, str], outcome: Outcome, values: Mapping[str, Any]
) -> dict[str, Any]:
    """A candidate with some values; `known` are fingerprints by name."""
    candidate = space.from_json(history.record(outcome.number).candidate)
    names = {fingerprint: name for name, fingerprint in known.items()}
    return {
        "number": outcome.number,
        "key": space.key(candidate),
        **values,
        "layer": readable(space, candidate),
        "expression": space.describe(candidate),
        "same_as": names.get(outcome.fingerprint, ""),
        "origin": history.origin(outcome.number),
    }


def readable(space: Space, candidate: Any) -> str:
    """A candidate as people write it: a formula where it is a graph."""
    return formula(candidate.canonical) if isinstance(candidate, LayerGraph) else space.describe(candidate)


def print_top(console: Console, rows: Mapping[str, Sequence[Mapping[str, Any]]], objective: Objective) -> None:
    """A table per kind of device."""
    if not rows:
        console.print("No candidate has passed every gate yet.")
    for device, best in rows.items():
        columns = {"skill": [row["skill"] for row in best]}
        columns |= {anchor: [row["scores"][anchor] for row in best] for anchor in sorted(best[0]["scores"])}
        _print_layers(console, f"Best by mean skill of {objective.name} ({device}, one seed)", best, columns)


def print_front(console: Console, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """A table per kind of device."""
    for device, front in rows.items():
        columns = {name: [row["means"][name] for row in front] for name in front[0]["means"]}
        _print_layers(console, f"Pareto front, means over anchors ({device}, one seed)", front, columns)


def _print_layers(
    console: Console, title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Sequence[float]]
) -> None:
    """A table of layers with columns of numbers, and below it what they are."""
    table = Table(title=title, title_justify="left")
    table.add_column("#", justify="right")
    table.add_column("key")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("from")
    for row, *values in zip(rows, *columns.values(), strict=True):
        table.add_row(str(row["number"]), row["key"][:8], *(f"{value:.4f}" for value in values), row["origin"])
    console.print(table)
    for row in rows:
        known = f"  (computes the same as {row['same_as']})" if row["same_as"] else ""
        _line(console, f"  #{row['number']}: {row['layer']}{known}")


def _line(console: Console, text: str) -> None:
    """Plain text, not wrapped: what is copied from it stays whole."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_funnel(console: Console, funnel: Funnel, gates: Sequence[str], seconds: float) -> None:
    """Where proposals ended, and the worker time that each gate took."""
    table = Table(title=f"Funnel: {funnel.proposals} proposals in {seconds:.0f} s", title_justify="left")
    for column in ("ended at", "candidates", "left", "worker s"):
        table.add_column(column, justify="left" if column == "ended at" else "right")
    for name, count, left in funnel.rows(gates):
        cost = funnel.seconds.get(name, 0.0)
        table.add_row(name, str(count), str(left), f"{cost:.1f}" if cost else "")
    table.add_section()
    table.add_row("accepted", str(funnel.ended["accepted"]), "", "")
    for name in ("build", "train", "measure"):
        table.add_row(f"({name})", "", "", f"{funnel.seconds.get(name, 0.0):.1f}")
    console.print(table)
    _line(console, f"{funnel.trained} distinct functions were trained past step 10.")
    _line(
        console,
        f"Duplicates: {_rate(funnel.same_key, funnel.proposals)} proposals by key, "
        f"{_rate(funnel.same_fingerprint, funnel.fingerprinted)} fingerprinted by fingerprint.",
    )


def _rate(count: int, of: int) -> str:
    return f"{count} of {of} ({count / max(of, 1):.0%})"


def print_standings(console: Console, standings: Standings) -> None:
    """The rerank's table, and what may be said of it."""
    rows = standings.rows
    anchors = sorted({anchor for row in rows for anchor in row.by_anchor})
    table = Table(title=title_of(standings.conditions, rows[0].seeds), title_justify="left")
    table.add_column("layer")
    for column in (*anchors, "mean", "sd", "difference", "95% interval", "p (Holm)"):
        table.add_column(column, justify="right")
    tuned = any(row.lr is not None for row in rows)
    if tuned:
        table.add_column("lr", justify="right")
    table.add_column("verdict")
    for row in rows:
        difference = "" if row.difference is None else f"{row.difference:+.4f}"
        interval = "" if row.low is None else f"{row.low:+.4f} to {row.high:+.4f}"
        failed = f" ({row.failed} failed)" if row.failed else ""
        table.add_row(
            row.entrant.name,
            *(f"{row.by_anchor[a]:.4f}" if a in row.by_anchor else "-" for a in anchors),
            f"{row.test:.4f}",
            f"{row.deviation:.4f}",
            difference,
            interval,
            "" if row.p is None else f"{row.p:.2g}",
            *([f"{row.lr:.3g}"] if tuned and row.lr is not None else [""] * tuned),
            row.verdict + failed,
        )
    console.print(table)
    for row in rows:
        if row.entrant.role == "finalist":
            _line(console, f"  {row.entrant.name}: {row.entrant.text}")
    _line(console, conclusion(rows))


def title_of(conditions: Conditions, seeds: int) -> str:
    """What a rerank judged, on what."""
    held_out = "held-out " if conditions.held_out else ""
    data = f" on {held_out}{conditions.data}" if conditions.data else ""
    steps = "" if conditions.steps is None else f", {conditions.steps} steps"
    further = " further" if conditions.first_seed else ""
    return f"Rerank: test {conditions.objective}{data}, mean of {seeds}{further} fresh seeds{steps}"


def conclusion(rows: Sequence[Standing]) -> str:
    """One sentence that says no more than the numbers do."""
    seeds = rows[0].seeds
    best = next(row for row in rows if row.verdict == "best baseline")
    if seeds < ENOUGH_SEEDS:
        return f"Preliminary: {seeds} seeds cannot support a claim; give rerank.seeds={ENOUGH_SEEDS} or more."
    better = [row.entrant.name for row in rows if row.verdict == "better"]
    if better:
        return f"Better than {best.entrant.name}, the best baseline by validation: {', '.join(better)}."
    return f"No finalist is shown to be better than {best.entrant.name}, the best baseline by validation."


def print_json(console: Console, data: Any) -> None:
    """Data as JSON on standard output, not wrapped and not coloured."""
    console.file.write(json.dumps(data, indent=2) + "\n")

"""Commands that look at one thing: an expression, the catalogue, the op table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from normact.launch.commands import checked_evaluator
from normact.launch.config import Config
from normact.launch.report import readable
from normact.launch.setting import Setting
from normact.search.pool import Job
from normact.spaces.catalogue import CATALOGUE
from normact.spaces.constraints import relative_cost
from normact.spaces.moments import AXES, LAYOUTS
from normact.spaces.ops import EVONORM_MOMENTS, EVONORM_POINTWISE, OPS
from normact.spaces.text import formula


def check(setting: Setting, config: Config, text: str) -> int:
    """`normact check`: one layer through all gates and a training. Status 1 where a gate rejects it."""
    console = setting.console
    evaluator = checked_evaluator(setting, config)
    space = evaluator.space
    candidate = space.parse(text)
    data = space.to_json(candidate)
    console.print(f"{readable(space, candidate)}  (key {space.key(candidate)})", highlight=False, markup=False)
    screened = evaluator(Job(0, "screen", ((0, data),), config["seed"]))[0]
    outcomes = [screened] if screened.gate else [screened, evaluator(Job(1, "train", ((0, data),), config["seed"]))[0]]
    table = Table(title="Gates and figures", title_justify="left")
    for column in ("figure", "value"):
        table.add_column(column)
    for outcome in outcomes:
        for name, value in outcome.figures.items():
            table.add_row(name, f"{value:.4g}")
    console.print(table)
    last = outcomes[-1]
    for objective in evaluator.task.objectives:
        for anchor, value in last.final(objective).items():
            console.print(f"{objective} on {anchor}: {value:.4f} after {last.steps} steps", highlight=False)
    seconds = sum(sum(o.seconds.values()) for o in outcomes)
    verdict = f"rejected by gate {last.gate}: {last.reason}" if last.gate else "passes every gate"
    console.print(f"{verdict} ({seconds:.1f} s)", highlight=False, markup=False, soft_wrap=True)
    return 1 if last.gate else 0


def layers(console: Console) -> int:
    """`normact layers`: the catalogue."""
    table = Table(title="Catalogue", title_justify="left")
    for column in ("name", "formula", "parameters", "relative cost", "source"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for name, layer in CATALOGUE.items():
        graph = layer.graph
        vectors = len(graph.trainables) + 2 * graph.affine
        table.add_row(name, formula(graph), f"{vectors} C", f"{relative_cost(graph):.2f}", layer.source)
    console.print(table, markup=False)
    return 0


def ops(console: Console) -> int:
    """`normact ops`: every op, and what each index set reduces per layout."""
    axes = Table(title="Index sets: the axes that a moment reduces (g: groups)", title_justify="left")
    for column in ("index set", *LAYOUTS, "at causal NLC sites"):
        axes.add_column(column)
    for index_set, by_layout in AXES.items():
        causal = "allowed" if by_layout["NLC"] == "C" else "left out"
        axes.add_row(index_set, *(by_layout[layout] or "left out (empty)" for layout in LAYOUTS), causal)
    console.print(axes)
    table = Table(title="Ops", title_justify="left")
    for column in ("name", "arity", "commutative", "kind", "in EvoNorm's space"):
        table.add_column(column)
    evonorm = {*EVONORM_POINTWISE, *EVONORM_MOMENTS}
    for name, op in OPS.items():
        kind = f"moment: {op.moment.statistic} over {op.moment.index_set}" if op.moment else "pointwise"
        commutative = "yes" if op.commutative else ""
        table.add_row(name, str(op.arity), commutative, kind, "yes" if name in evonorm else "")
    console.print(table)
    return 0

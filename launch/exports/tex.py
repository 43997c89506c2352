"""A layer's formula as a LaTeX file, to be taken into a document by `\\input`."""

from __future__ import annotations

from normact.spaces.graph import LayerGraph
from normact.spaces.ops import OPS
from normact.spaces.text import equations

LETTERS = {
    "mean": (r"\mu", "mean"),
    "rms": (r"\rho", r"root mean square ($\epsilon$ under the root)"),
    "std": (r"\sigma", r"standard deviation ($\epsilon$ under the root)"),
}
"""How a statistic is written, and what it is."""

SETS = {
    "batch": "the batch and all positions, for each channel",
    "instance": "the positions, for each example and channel",
    "layer": "the positions and channels, for each example",
    "group": "the positions and a group's channels, for each example",
    "channel": "the channels, for each example and position",
}
"""What a moment is over."""

GUARDED = {
    "div": r"quotients: a divisor within $10^{-5}$ of 0 counts as $\pm 10^{-5}$",
    "log": r"$\mathrm{sln}(x) = \mathrm{sign}(x) \ln |x|$, for $|x|$ of at least $10^{-5}$",
    "sqrt": r"$\mathrm{ssqrt}(x) = \mathrm{sign}(x) \sqrt{|x|}$, linear for $|x|$ below $10^{-6}$",
}
"""Ops that are not what their usual notation says."""


def tex(graph: LayerGraph, note: str) -> str:
    """Equations and a legend; the expression and the note as comments. It needs the package amsmath."""
    graph = graph.canonical
    found = equations(graph)
    rows = [f"  {name} &= {value}" for name, value in found]
    comments = [f"% expression: {graph}", *(f"% {line}".rstrip() for line in note.splitlines())]
    body = [r"\begin{align*}", " \\\\\n".join(rows), r"\end{align*}"]
    return "\n".join([*comments, "% \\usepackage{amsmath}", *body, *_legend(graph)]) + "\n"


def _legend(graph: LayerGraph) -> list[str]:
    names = sorted({node.op for node in graph.nodes})
    rows = []
    for moment in sorted({m for name in names if (m := OPS[name].moment)}, key=str):
        letter, statistic = LETTERS[moment.statistic]
        rows.append(f"${letter}_{{{moment.index_set[0].upper()}}}$: the {statistic} over {SETS[moment.index_set]}")
    kinds = {name[0] for name in graph.trainables}
    vectors = [r"$\gamma$", r"$\beta$"] * graph.affine + ["$v$"] * ("v" in kinds)
    rows += [f"{', '.join(vectors)}: trained, an entry for each channel"] if vectors else []
    rows += ["$s$: trained, one number"] if "s" in kinds else []
    rows += ["an index of $v$ or $s$: where it starts"] if kinds else []
    rows += [GUARDED[name] for name in names if name in GUARDED]
    return [";\n".join(rows) + "."] if rows else []

"""A KAN candidate as one Python file: the layers' own sources, cut down to what the candidate uses, and a factory."""

from __future__ import annotations

import json
import keyword
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from normact.spaces.emit import emit
from normact.spaces.errors import InputError
from normact.spaces.kan import af, layer, node, selectable
from normact.spaces.kan.bases.graph import Graph
from normact.spaces.kan.combine import FORMS
from normact.spaces.kan.genes import KanCandidate, LayerGene
from normact.spaces.kan.normalizers import BOUNDED
from normact.spaces.kan.packed import pack
from normact.spaces.kan.text import write
from normact.spaces.site import Site
from normact.spaces.text import parse
from normact.spaces.vendor import LONGEST, vendored

CLASSES: dict[tuple[str, str], type[nn.Module]] = {
    ("kan", "linear"): layer.KANLinear,
    ("kan", "conv"): layer.KANConv2d,
    ("af", "linear"): af.AFKANLinear,
    ("af", "conv"): af.AFKANConv2d,
    ("selectable", "linear"): selectable.SelectableKANLinear,
    ("selectable", "conv"): selectable.SelectableKANConv2d,
    ("node", "linear"): node.NodeLinear,
    ("node", "conv"): node.NodeConv2d,
    ("node", "norm_act"): node.NormActivation,
}
"""What fills a site, by kind of gene and of site."""

PARAMETERS = {
    "linear": ["in_features: int", "out_features: int"],
    "conv": [
        "in_channels: int",
        "out_channels: int",
        "kernel_size: int",
        "stride: int = 1",
        "padding: int = 0",
        "groups: int = 1",
    ],
    "norm_act": ["num_features: int", 'layout: Layout = "{layout}"', "activation: bool = True"],
}
"""Of the factory function, by kind of site."""

WIDTH = 100
"""Longest line of a docstring."""

TABLES = {
    "BASE_ACTIVATIONS": ("base", "start"),
    "COMBINATIONS": ("combine",),
    "FORMS": ("combine",),
    "NORMALIZERS": ("normalizer", "post"),
    "BOUNDED": ("normalizer",),
    "POST_NORMS": ("post",),
    "AF_ACTIVATIONS": ("activation",),
    "AF_FUNCTIONS": ("function",),
    "AF_REDUCTIONS": ("reduction",),
    "SHARING": ("sharing",),
    "GRANULARITIES": ("granularity",),
}
"""Tables of parts, and the options that name their entries."""


def source(candidate: KanCandidate, layers: int, site: str, layout: str, name: str, note: str = "") -> str:
    """Source of a module with the factory function `name`, which makes the candidate's layers by their place.

    Args:
        candidate: the layers.
        layers: how many places there are for different ones.
        site: the kind of site that they fill: `linear`, `conv` or `norm_act`.
        layout: of a `norm_act` site, unless the factory is told otherwise.
        name: of the factory function.
        note: text for the docstring.

    Raises:
        InputError: `name` is no identifier in lower case or has a meaning already, or a part of a person's own has
            no source or needs more than torch.
    """
    genes = [candidate.at(index) for index in range(layers)]
    while len(genes) > 1 and genes[-1] == genes[-2]:
        genes.pop()
    classes = list(dict.fromkeys(CLASSES[gene.kind, site] for gene in genes))
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise InputError(f"a layer's name must be a Python identifier in lower case, got {name!r}")
    body = vendored(
        classes,
        keep=_tables(genes),
        settled=_settled(genes, site),
        replace=_graphs(genes) | {pack: PACK},
        without=["vjp"],
        text=_factory(genes, site, layout, name),
    )
    return _docstring(candidate, name, note) + "\n\n" + body


def source_arguments(site: Site) -> dict[str, Any]:
    """Arguments of the printed factory function that make the layer of a site."""
    if site.kind in ("norm_act", "act"):
        arguments = {"num_features": site.in_features, "layout": site.layout}
        return arguments | {"activation": site.activation or site.kind == "act", "index": site.index}
    if site.conv is None:
        return {"in_features": site.in_features, "out_features": site.features_out, "index": site.index}
    return {"in_channels": site.in_features, "out_channels": site.features_out, **vars(site.conv), "index": site.index}


def _tables(genes: Sequence[LayerGene]) -> dict[str, set[str]]:
    """The entries of each table that some gene uses."""
    kept = {table: {str(v) for gene in genes for v in _values(gene, names)} for table, names in TABLES.items()}
    kept["BASES"] = {family.name for gene in genes for family in gene.families}
    kept["BASE_ACTIVATIONS"] -= {"none"}
    kept["FORMS"] &= set(FORMS)
    kept["BOUNDED"] &= BOUNDED
    kept["NORMALIZERS"] |= {node.NORM_ALONE.get(name, name) for name in kept["NORMALIZERS"]}
    return kept


def _values(gene: LayerGene, names: Sequence[str]) -> list[object]:
    return [value for name, value in gene.options if name in names]


def _settled(genes: Sequence[LayerGene], site: str) -> dict[str, set[object]]:
    """Options of which few values occur: code for the others is not printed."""
    found: dict[str, set[object]] = {}
    for name in ("combine", "base"):
        if values := {value for gene in genes for value in _values(gene, [name])}:
            found[name] = values
    if "concat" in found.get("combine", ()):
        found["combine"] |= {"sum"}  # which it is where outputs cannot be shared out
    return found | ({"conv": {None}} if site == "linear" else {})


def _graphs(genes: Sequence[LayerGene]) -> dict[object, str]:
    """Family `graph` interprets a graph; in a file the graph is printed."""
    settings = [dict(family.settings) for gene in genes for family in gene.families if family.name == Graph.name]
    expressions = sorted({str(found["expression"]) for found in settings})
    if not expressions:
        return {}
    names = [f"activation{number}" for number in range(1, len(expressions) + 1)]
    printed = [emit(parse(text), name) for text, name in zip(expressions, names, strict=True)]
    table = ", ".join(f"{_literal(text)}: {name}" for text, name in zip(expressions, names, strict=True))
    return {Graph: "\n\n\n".join([*printed, GRAPH.format(table=table)])}


PACK = '''
from collections.abc import Sequence

import torch
from torch import Tensor

from normact.spaces.kan.basis import Basis


def pack(bases: Sequence[Basis], x: Tensor, base: Tensor | None) -> Tensor:
    """The planes of bases at x (..., I), one after the other, and of the base branch (..., I): (..., planes, I)."""
    planes = [basis.planes(x) for basis in bases]
    return torch.cat(planes if base is None else [*planes, base.unsqueeze(-2)], -2)
'''
"""In a file gradients are autograd's: shorter, and slower by what the families' own formulas gain."""

GRAPH = '''
from normact.spaces.kan.basis import WIDE, Basis

EXPRESSIONS = {{{table}}}


class Graph(Basis):
    """One function: a graph of ops, its trainable inputs included."""

    name = "graph"
    choices = {{"expression": tuple(EXPRESSIONS)}}

    def __init__(self, features: int, reach: float = WIDE, expression: str = next(iter(EXPRESSIONS))) -> None:
        super().__init__(features, 1, reach)
        self.graph = EXPRESSIONS[expression](features, layout="NC")

    def planes(self, x: Tensor) -> Tensor:
        return self.graph(x.reshape(-1, self.features)).view(*x.shape[:-1], 1, self.features)
'''


def _factory(genes: Sequence[LayerGene], site: str, layout: str, name: str) -> str:
    parameters = [text.format(layout=layout) for text in PARAMETERS[site]] + ["index: int = 0"]
    lines = [_bracketed(f"def {name}(", parameters, ") -> nn.Module:", LONGEST)]
    last = len(genes) - 1
    if last:
        lines.append(
            f'    """The layer for place `index` of a network, counted from 0; from {last} on, the last one."""'
        )
    else:
        lines.append('    """The layer; `index`, which place it is for, does not matter."""')
    for index, gene in enumerate(genes):
        indent = 8 if index < last else 4
        call = _bracketed(
            f"{CLASSES[gene.kind, site].__name__}(", _arguments(gene, site, indent), ")", LONGEST - indent - 7
        )
        lines += [f"    if index == {index}:"] * (index < last) + [textwrap.indent(f"return {call}", " " * indent)]
    return "\n".join(lines)


def _arguments(gene: LayerGene, site: str, indent: int) -> list[str]:
    """Of a layer's constructor, as source."""
    options = dict(gene.options)
    given = [text.partition(":")[0] for text in PARAMETERS[site]]
    widths, others = given[: 1 if site == "norm_act" else 2], [f"{name}={name}" for name in given[2:]]
    families = [f"({_literal(family.name)}, {_literal(dict(family.settings))})" for family in gene.families]
    if gene.kind == "node" and site == "conv":
        others = ["conv=Conv(kernel_size, stride, padding, groups)"]
    if site == "norm_act":
        others = [f"{name}={name}" for name in given[1:]]
        del options["post"]
    if gene.kind == "node":
        others.append(f"family={families[0]}")
    elif families:
        others.append(_bracketed("families=[", families, "]", LONGEST - indent - 5))
    return [*widths, *others, *(f"{name}={_literal(value)}" for name, value in options.items())]


def _bracketed(opening: str, items: Sequence[str], closing: str, width: int) -> str:
    """On one line where that fits, else an item a line."""
    line = f"{opening}{', '.join(items)}{closing}"
    if len(line) <= width and "\n" not in line:
        return line
    return f"{opening}\n" + "".join(textwrap.indent(f"{item},\n", "    ") for item in items) + closing


def _literal(value: Any) -> str:
    """As source, with double quotes."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def _docstring(candidate: KanCandidate, name: str, note: str) -> str:
    lines = textwrap.wrap(f"{name}: {write(candidate)}", WIDTH, break_long_words=False, break_on_hyphens=False)
    if note.strip():
        lines += ["", *(line.rstrip() for line in note.strip().splitlines())]
    text = "\n".join(lines).replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{text}\n"""' if "\n" in text else f'"""{text}"""'

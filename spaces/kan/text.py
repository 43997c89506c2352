"""KAN candidates as text and as JSON: `kan(bspline(grid=5, order=3), combine=sum, ...); node(...)`."""

from __future__ import annotations

import ast
from typing import Any

from normact.spaces.errors import InputError
from normact.spaces.kan.genes import FamilyGene, KanCandidate, LayerGene, Settings

MOST_TEXT = 10_000
"""Characters that a candidate's text may have."""


def write(candidate: KanCandidate) -> str:
    """One line that `read` reads."""
    return "; ".join(_layer_text(gene) for gene in candidate.layers)


def _layer_text(gene: LayerGene) -> str:
    families = [f"{family.name}({_settings_text(family.settings)})" for family in gene.families]
    return f"{gene.kind}({', '.join([*families, *filter(None, [_settings_text(gene.options)])])})"


def _settings_text(settings: Settings) -> str:
    return ", ".join(f"{name}={_value_text(value)}" for name, value in settings)


def _value_text(value: Any) -> str:
    plain = isinstance(value, str) and value.isidentifier() and value not in ("True", "False", "None")
    return value if plain else repr(value)


def read(text: str) -> KanCandidate:
    """The candidate of a text: layers as calls, one after the other with `;`, families as calls in them.

    Words need no quotes. What is left out has no value yet; a space fills in defaults.

    Raises:
        InputError: the text is none of that form, with what was found.
    """
    if len(text) > MOST_TEXT:
        raise InputError(f"a KAN layer's text has at most {MOST_TEXT} characters, got {len(text)}")
    try:
        module = ast.parse(text.strip().rstrip(";"))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as problem:
        raise InputError(f"cannot read {text[:60]!r} as KAN layers such as kan(gaussian(grid=8)): {problem}") from None
    if not module.body:
        raise InputError("the text has no layer; write one such as kan(gaussian(grid=8))")
    return KanCandidate(tuple(_read_layer(statement) for statement in module.body))


def _read_layer(statement: ast.stmt) -> LayerGene:
    name, arguments, options = _call(statement.value if isinstance(statement, ast.Expr) else statement)
    families = []
    for argument in arguments:
        family, inner, settings = _call(ast.Call(argument, [], []) if isinstance(argument, ast.Name) else argument)
        if inner:
            raise InputError(f"{family} takes settings alone, such as grid=8, got {ast.unparse(inner[0])[:40]!r}")
        families.append(FamilyGene(family, settings))
    return LayerGene(name, tuple(families), options)


def _call(node: ast.AST) -> tuple[str, list[ast.expr], Settings]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise InputError(f"expected a call such as kan(...) or gaussian(grid=8), got {ast.unparse(node)[:60]!r}")
    settings = []
    for keyword in node.keywords:
        if keyword.arg is None:
            raise InputError(f"expected name=value in {node.func.id}(...), got {ast.unparse(keyword)[:40]!r}")
        settings.append((keyword.arg, _value(keyword.value)))
    return node.func.id, node.args, tuple(settings)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, str | int | float | bool):
        raise InputError(f"expected a word, number, True or False, got {ast.unparse(node)[:40]!r}")
    return value


def to_json(candidate: KanCandidate) -> list[dict[str, Any]]:
    """Plain JSON that `from_json` reads."""
    return [
        {
            "kind": gene.kind,
            "families": [[family.name, dict(family.settings)] for family in gene.families],
            "options": dict(gene.options),
        }
        for gene in candidate.layers
    ]


def from_json(data: Any) -> KanCandidate:
    """The candidate of `to_json`'s data, its form checked.

    Raises:
        InputError: the data are of another form.
    """
    if not isinstance(data, list) or not data:
        raise InputError(f"a KAN candidate is a list of layers, got {str(data)[:60]}")
    return KanCandidate(tuple(_layer_of(row) for row in data))


def _layer_of(row: Any) -> LayerGene:
    if not isinstance(row, dict) or set(row) != {"kind", "families", "options"} or not isinstance(row["kind"], str):
        raise InputError(f"a KAN layer has kind, families and options, got {str(row)[:80]}")
    if not isinstance(row["families"], list):
        raise InputError(f"families is a list, got {str(row['families'])[:60]}")
    families = []
    for family in row["families"]:
        if not isinstance(family, list) or len(family) != 2 or not isinstance(family[0], str):
            raise InputError(f"a family is [name, settings], got {str(family)[:60]}")
        families.append(FamilyGene(family[0], _settings_of(family[1])))
    return LayerGene(row["kind"], tuple(families), _settings_of(row["options"]))


def _settings_of(data: Any) -> Settings:
    if not isinstance(data, dict) or not all(
        isinstance(name, str) and isinstance(value, str | int | float | bool) for name, value in data.items()
    ):
        raise InputError(f"settings are names with words, numbers, true or false, got {str(data)[:80]}")
    return tuple(data.items())

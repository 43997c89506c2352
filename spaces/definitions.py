"""What a module's source defines and imports, and which names a definition uses."""

from __future__ import annotations

import ast
import inspect
import symtable
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from normact.spaces.errors import InputError

INNER = ("lambda", "genexpr", "listcomp", "setcomp", "dictcomp")
"""Scopes that are entered where they stand."""


class Imported(NamedTuple):
    """An import: of which module, which name in it (empty for the module itself), and as a statement."""

    module: str
    name: str
    statement: str


class Module:
    """A module's source, and what its top level defines and imports, by name.

    Args:
        name: of the module, or of a text that stands for a part of it.
        live: the module, for the values of its tables.
        text: its source.
    """

    def __init__(self, name: str, live: ModuleType, text: str) -> None:
        self.name = name
        self.live = live
        self.text = text
        self.lines = text.split("\n")
        self.body = ast.parse(text).body
        self.places: dict[str, int] = {}
        self.first_name: dict[str, str] = {}
        self.imports: dict[str, Imported] = {}
        for place, statement in enumerate(self.body):
            names = list(_defined(statement))
            self.places |= dict.fromkeys(names, place)
            self.first_name |= dict.fromkeys(names, names[0] if names else "")  # `A, B = 1, 2` is one definition
            for node in ast.walk(statement) if isinstance(statement, ast.If) else [statement]:
                self.imports |= dict(_imported(node))

    def statement(self, name: str) -> ast.stmt:
        """What defines a name."""
        return self.body[self.places[name]]

    def source(self, name: str) -> str:
        """The source of a definition, with the comments above it and, for a value, the docstring below."""
        place = self.places[name]
        statement = self.body[place]
        decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
        start = min([statement.lineno, *(decorator.lineno for decorator in decorators)]) - 1
        while start and self.lines[start - 1].startswith("#"):
            start -= 1
        end = statement.end_lineno
        below = self.body[place + 1] if place + 1 < len(self.body) else None
        if isinstance(statement, ast.Assign | ast.AnnAssign) and below is not None and is_text(below):
            end = below.end_lineno
        return "\n".join(self.lines[start:end])


@lru_cache(maxsize=256)
def read_module(name: str) -> Module:
    """An imported module.

    Raises:
        InputError: it is not imported, or has no source.
    """
    if name not in sys.modules:
        raise InputError(f"cannot export from module {name}, which is not imported; import it first")
    try:
        return Module(name, sys.modules[name], inspect.getsource(sys.modules[name]))
    except (OSError, TypeError) as problem:
        reason = str(problem).splitlines()[0]
        raise InputError(f"cannot export from {name}, which has no source ({reason}); write it as a file") from None


def is_library(name: str) -> bool:
    """Whether a top-level module is of the standard library or installed; ours is neither, wherever it lies."""
    if name == __name__.split(".")[0]:
        return False
    if name in sys.stdlib_module_names or name not in sys.modules:
        return True
    places = [getattr(sys.modules[name], "__file__", None) or "", *getattr(sys.modules[name], "__path__", [])]
    return any(part in Path(place).parts for place in places for part in ("site-packages", "dist-packages"))


@lru_cache(maxsize=1024)
def names_in(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Global names that a definition needs when it is made, and those that it needs later or in annotations."""
    annotations: set[str] = set()
    tree = _WithoutAnnotations(annotations).visit(ast.parse(text))
    table = symtable.symtable(ast.unparse(ast.fix_missing_locations(tree)), "<definition>", "exec")
    at_once = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    later: set[str] = set()
    waiting = [(child, True) for child in table.get_children()]
    while waiting:
        table, now = waiting.pop()
        now = now and (table.get_type() == "class" or table.get_name() in INNER)
        used = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() and symbol.is_referenced()}
        (at_once if now else later).update(used)
        waiting += [(child, now) for child in table.get_children()]
    return frozenset(at_once), frozenset((later | annotations) - at_once)


def is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _defined(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement at the top of a module defines."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        yield statement.name
    elif isinstance(statement, ast.Assign):
        targets = [node for target in statement.targets for node in ast.walk(target)]
        yield from (node.id for node in targets if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        yield statement.target.id


def _imported(node: ast.AST) -> Iterator[tuple[str, Imported]]:
    """What an import statement brings, by the name that it gets."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or alias.name.split(".")[0], Imported(alias.name, "", f"import {_called(alias)}")
    elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        for alias in node.names:
            statement = f"from {node.module} import {_called(alias)}"
            yield alias.asname or alias.name, Imported(node.module, alias.name, statement)


def _called(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


class _WithoutAnnotations(ast.NodeTransformer):
    """Takes annotations out, which are not evaluated; keeps the names in them."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def _keep(self, node: ast.expr | None) -> None:
        if node is not None:
            self.names |= {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}

    def visit_arg(self, node: ast.arg) -> ast.arg:
        self._keep(node.annotation)
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self._keep(node.returns)
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        self._keep(node.annotation)
        self.generic_visit(node)
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return ast.copy_location(ast.Assign([node.target], node.value), node)

"""The source of an op's function, as an exported file needs it."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from normact.spaces.errors import InputError


@dataclass(frozen=True)
class OpSource:
    """A function's source, and its one returned expression where it can be written in place of a call."""

    name: str
    text: str
    parameters: tuple[str, ...]
    expression: str

    def renamed(self, name: str) -> str:
        return re.sub(rf"\bdef {self.name}\b", f"def {name}", self.text, count=1)

    def inlined(self, args: list[str]) -> str:
        names = dict(zip(self.parameters, args, strict=True))
        tree = ast.parse(self.expression, mode="eval")
        found = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in names]
        text = self.expression
        for node in sorted(found, key=lambda node: -node.col_offset):
            text = text[: node.col_offset] + names[node.id] + text[node.end_col_offset :]
        return text


@lru_cache(maxsize=512)
def read_source(op: str, function: Callable[..., object]) -> OpSource:
    """The source of an op's function, or, for an empty `op`, of one of ours.

    Raises:
        InputError: there is none, it is no plain `def`, or it uses names that an exported file would lack.
    """
    try:
        text = textwrap.dedent(inspect.getsource(function)).strip()
        definition = ast.parse(text).body[0]
    except (OSError, TypeError, SyntaxError) as problem:
        reason = str(problem).splitlines()[0]
        raise InputError(f"op {op!r} has no source to export ({reason}): write it as a `def`") from None
    if not isinstance(definition, ast.FunctionDef):
        raise InputError(f"op {op!r} is no plain function, so it cannot be exported: write it as a `def`")
    if op and (foreign := sorted(_foreign_names(definition))):
        names = ", ".join(foreign)
        raise InputError(f"op {op!r} uses {names}, which an exported file would lack: use torch and numbers alone")
    parameters = tuple(argument.arg for argument in definition.args.args)
    return OpSource(definition.name, text, parameters, _expression(text, definition))


def _expression(text: str, definition: ast.FunctionDef) -> str:
    """What a function returns, where that is all it does; empty otherwise."""
    args = definition.args
    has_more = args.defaults or args.kwonlyargs or args.posonlyargs or args.vararg or args.kwarg
    body = definition.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    if has_more or definition.decorator_list or len(body) != 1 or not isinstance(body[0], ast.Return):
        return ""
    value = ast.get_source_segment(text, body[0].value) if body[0].value else ""
    return value if value and value.isascii() and "\n" not in value else ""


def _foreign_names(definition: ast.FunctionDef) -> set[str]:
    names = [node for node in ast.walk(definition) if isinstance(node, ast.Name)]
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in ast.walk(definition) if isinstance(node, ast.arg)}
    inner = (node for statement in definition.body for node in ast.walk(statement))
    own |= {node.name for node in inner if isinstance(node, ast.FunctionDef)}
    return {node.id for node in names if not hasattr(builtins, node.id)} - own - {"torch", "Tensor"}

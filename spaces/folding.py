"""Take out of a definition's source what is never reached when some of its names have known values.

Edits the text, so that comments, names and line breaks stay as they were written.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from typing import TypeGuard

Settled = Mapping[str, Collection[object]]
"""For a variable or attribute of that name: the values that it can have."""

Lookup = Callable[[str], Container[object] | None]
"""The table of a name, for tests such as `x in TABLE`; None for what is no table."""


def folded(text: str, settled: Settled, table: Lookup) -> str:
    """The source of one definition, without branches that the settled names never take.

    Decided are comparisons of a settled name with a literal (or None) of a type that it can have, its membership in a
    table, its truth where it can be None or a bool, and what `not`, `and`, `or`, `if`, `... if ... else ...` and
    private methods that return it make of these. A guard, `if x not in TABLE: raise ...`, stays: it says what else the
    caller could have meant.
    """
    if not settled.keys() & set(re.findall(r"\w+", text)):
        return text
    folder = _Folder(settled, table)
    before = text
    while (changed := folder.step(text)) is not None:
        text = changed
    return _without_lost_values(text, before)


class _Folder:
    def __init__(self, settled: Settled, table: Lookup) -> None:
        self.settled = settled
        self.table = table
        self.methods: dict[str, bool] = {}
        self.tests: set[ast.expr] = set()

    def step(self, text: str) -> str | None:
        """The text after the first edit that there is to make; None where there is none."""
        tree = ast.parse(text)
        self.methods = dict(_constant_methods(tree))
        guards = {node.test for node in ast.walk(tree) if _is_guard(node)}
        self.tests = {node.test for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp)}
        for block in _blocks(tree):
            for position, statement in enumerate(block):
                if isinstance(statement, ast.Return | ast.Raise) and position + 1 < len(block):
                    return _cut(text, block[position + 1], block[-1])
                if not isinstance(statement, ast.If) or statement.test in guards:
                    continue
                if (truth := self.truth(statement.test)) is not None:
                    return _branch_taken(text, statement, truth, len(block) == 1)
        edits: list[tuple[ast.expr, str]] = []
        for node in _placed(tree):
            if any(_within(node, other) for other, _ in edits) or node in guards:
                continue
            if (new := self.simpler(text, node)) is not None:
                edits.append((node, new))
        return _all_replaced(text, edits) if edits else None

    def simpler(self, text: str, node: ast.expr) -> str | None:
        """The shorter source of an expression, if any."""
        if isinstance(node, ast.IfExp) and (truth := self.truth(node.test)) is not None:
            return _source(text, node.body if truth else node.orelse)
        if isinstance(node, ast.Call) and _is_int_of_bool(node):
            return str(int(node.args[0].value))  # type: ignore[attr-defined]
        if isinstance(node, ast.Compare | ast.BoolOp) or (
            isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
        ):
            if (truth := self.truth(node)) is not None:
                return str(truth)
            if isinstance(node, ast.BoolOp):
                return self.fewer_operands(text, node)
        return None

    def fewer_operands(self, text: str, node: ast.BoolOp) -> str | None:
        """`a and b` is b where a is true; the last operand may be the value, and so stays where that matters."""
        neutral = isinstance(node.op, ast.And)
        last = [] if node in self.tests else node.values[-1:]
        kept = [value for value in node.values if value in last or self.truth(value) is not neutral]
        if len(kept) == len(node.values):
            return None
        return (" and " if neutral else " or ").join(_source(text, value) for value in kept)

    def truth(self, node: ast.expr) -> bool | None:
        """Whether an expression is true or false whatever happens; None where that is open."""
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            truth = self.truth(node.operand)
            return None if truth is None else not truth
        if isinstance(node, ast.BoolOp):
            truths = [self.truth(value) for value in node.values]
            stops = isinstance(node.op, ast.Or)
            if stops in truths:
                return stops
            return None if None in truths else not stops
        if isinstance(node, ast.Compare):
            return self.compared(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            return self.methods.get(node.func.attr)
        values = self.values(node)
        if values is None or not any(value is None or isinstance(value, bool) for value in values):
            return None
        return _agreed(bool(value) for value in values)

    def compared(self, node: ast.Compare) -> bool | None:
        values, right = self.values(node.left), node.comparators[0]
        if values is None or len(node.ops) > 1:
            return None
        op = node.ops[0]
        if isinstance(op, ast.Eq | ast.NotEq | ast.Is | ast.IsNot) and isinstance(right, ast.Constant):
            if not any(type(value) is type(right.value) for value in values):
                return None  # another variable of that name
            wanted = not isinstance(op, ast.NotEq | ast.IsNot)
            return _agreed((value == right.value) is wanted for value in values)
        if isinstance(op, ast.In | ast.NotIn) and isinstance(right, ast.Name):
            table = self.table(right.id)
            if table is not None:
                return _agreed((value in table) is isinstance(op, ast.In) for value in values)
        return None

    def values(self, node: ast.expr) -> Collection[object] | None:
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        return self.settled.get(name)


def without_methods(text: str, names: Container[str]) -> str:
    """A class's source without its methods of those names."""
    definition = ast.parse(text).body[0]
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    methods = [node for node in body if isinstance(node, ast.FunctionDef) and node.name in names]
    for method in reversed(methods):
        text = _cut(text, method, method)
    return f"{text}\n    pass" if body and len(methods) == len(body) else text


def without_decorators(text: str, unwanted: Callable[[ast.expr], bool]) -> str:
    """A definition's source without decorators that are not wanted."""
    definition = ast.parse(text).body[0]
    lines = text.split("\n")
    for decorator in reversed(getattr(definition, "decorator_list", [])):
        if unwanted(decorator):
            del lines[decorator.lineno - 1 : decorator.end_lineno]
    return "\n".join(lines)


def renamed(text: str, names: Mapping[str, str]) -> str:
    """A definition's source with other names for what it defines and uses; plain strings and comments as they are."""
    definition = ast.parse(text).body[0]
    if isinstance(definition, ast.ClassDef | ast.FunctionDef) and definition.name in names:
        head = "class" if isinstance(definition, ast.ClassDef) else "def"
        text = text.replace(f"{head} {definition.name}", f"{head} {names[definition.name]}", 1)
    return _all_replaced(
        text, [(node, new) for node in _placed(ast.parse(text)) if (new := _renaming(text, node, names))]
    )


def _renaming(text: str, node: ast.AST, names: Mapping[str, str]) -> str:
    """What stands for a node under other names; empty where it stays."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if not isinstance(node, ast.JoinedStr):
        return ""
    old = _source(text, node)
    new = re.sub(r"\{[^{}]*\}", lambda held: re.sub(r"\w+", lambda word: names.get(word[0], word[0]), held[0]), old)
    return new if new != old else ""


def _placed(tree: ast.AST) -> Iterator[ast.expr]:
    """Every expression whose place in the text is known: Python 3.11 does not tell it for those in an f-string."""
    waiting: list[ast.AST] = [tree]
    for node in waiting:
        if isinstance(node, ast.expr):
            yield node
        if not isinstance(node, ast.JoinedStr):
            waiting += ast.iter_child_nodes(node)


def _is_guard(node: ast.AST) -> TypeGuard[ast.If]:
    """`if x not in TABLE: raise ...`."""
    if not isinstance(node, ast.If) or not isinstance(node.test, ast.Compare):
        return False
    return isinstance(node.test.ops[0], ast.NotIn) and isinstance(node.body[0], ast.Raise)


def _constant_methods(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Private methods that do nothing but return True or False."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("_") or node.decorator_list:
            continue
        body = node.body[1:] if isinstance(node.body[0], ast.Expr) else node.body
        value = body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, bool):
            yield node.name, value.value


def _without_lost_values(text: str, before: str) -> str:
    """The source without assignments to variables that were read before, and are not any more."""
    if text == before:
        return text
    read, still = _variables(before), _variables(text)
    for function in _functions(text):
        for node in ast.walk(function):
            target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
            if isinstance(target, ast.Name) and (function.name, target.id) in read - still:
                assert isinstance(node, ast.Assign)
                return _without_lost_values(_cut(text, node, node), before)
    return text


def _functions(text: str) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]


def _variables(text: str) -> set[tuple[str, str]]:
    """Function and name, for each variable that is read in it."""
    found = [(function.name, node) for function in _functions(text) for node in ast.walk(function)]
    return {(name, node.id) for name, node in found if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _agreed(truths: Iterator[bool]) -> bool | None:
    found = set(truths)
    return found.pop() if len(found) == 1 else None


def _is_int_of_bool(node: ast.Call) -> bool:
    if not (isinstance(node.func, ast.Name) and node.func.id == "int" and len(node.args) == 1):
        return False
    return isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, bool)


def _blocks(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    """Every list of statements, outermost first."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and block:
                yield block


def _branch_taken(text: str, statement: ast.If, truth: bool, alone: bool) -> str:
    """The text with an `if` replaced by the one branch that is taken."""
    lines = text.split("\n")
    first, last = statement.lineno - 1, statement.end_lineno
    indent = lines[first][: statement.col_offset]
    branch = statement.body if truth else statement.orelse
    below = lines[first].strip().startswith("elif ")  # then the branches before it stay
    if not branch:
        new = [f"{indent}pass"] if alone and not below else []
    elif lines[branch[0].lineno - 1].strip().startswith("elif "):
        new = lines[branch[0].lineno - 1 : branch[-1].end_lineno]
        new[0] = new[0] if below else new[0].replace("elif ", "if ", 1)
    else:
        start, deeper = _first_line(lines, branch[0], statement), branch[0].col_offset - statement.col_offset
        body = lines[start : branch[-1].end_lineno]
        shallower = [line[deeper:] if line[:deeper].isspace() else line for line in body]
        new = [f"{indent}else:", *body] if below else shallower
    return "\n".join([*lines[:first], *new, *lines[last:]])


def _first_line(lines: list[str], statement: ast.stmt, within: ast.If) -> int:
    """Where a statement begins, with the comments above it."""
    start = statement.lineno - 1
    while start > within.lineno and lines[start - 1].strip().startswith("#"):
        start -= 1
    return start


def _cut(text: str, first: ast.stmt, last: ast.stmt) -> str:
    """The text without some statements, the comments and blank lines above them."""
    lines = text.split("\n")
    decorators: list[ast.expr] = getattr(first, "decorator_list", [])
    start = min([first.lineno, *(decorator.lineno for decorator in decorators)]) - 1
    while start and (not lines[start - 1].strip() or lines[start - 1].strip().startswith("#")):
        start -= 1
    return "\n".join([*lines[:start], *lines[last.end_lineno :]])


def _source(text: str, node: ast.expr) -> str:
    start, end = _span(text, node)
    return text.encode()[start:end].decode()


def _span(text: str, node: ast.expr) -> tuple[int, int]:
    """First byte and last of an expression; its columns count bytes."""
    assert node.end_lineno is not None and node.end_col_offset is not None
    starts = [0]
    for line in text.encode().split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset


def _within(inner: ast.expr, outer: ast.expr) -> bool:
    begins = (outer.lineno, outer.col_offset) <= (inner.lineno, inner.col_offset)
    return begins and _end(inner) <= _end(outer)


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0


def _all_replaced(text: str, edits: list[tuple[ast.expr, str]]) -> str:
    """The text with several expressions replaced, none of them within another; the last first, which moves no other."""
    for node, new in sorted(edits, key=lambda edit: (edit[0].lineno, edit[0].col_offset), reverse=True):
        text = _replaced(text, node, new)
    return text


def _replaced(text: str, node: ast.expr, new: str) -> str:
    """The text with an expression replaced; parentheses around a single word go too."""
    data, (start, end) = text.encode(), _span(text, node)
    before, after = data[:start].decode(), data[end:].decode()
    atom = re.fullmatch(r"[\w.]+", new)
    opened, closed = before.rstrip(), after.lstrip()
    called = opened[:-1][-1:]
    if atom and opened.endswith("(") and closed.startswith(")") and not (called.isalnum() or called in "_)]"):
        before, after = opened[:-1], closed[1:]
    return before + new + after

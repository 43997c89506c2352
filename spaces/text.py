"""Expressions in and out, formulas and LaTeX. Reading never evaluates anything."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

from normact.spaces.errors import InputError, unknown_name
from normact.spaces.graph import MAX_NODES, Arg, LayerGraph, Node
from normact.spaces.inputs import is_input
from normact.spaces.ops import OPS, Op

MAX_TEXT = 100_000
MAX_DEPTH = 100
_TOKEN = re.compile(r"\s*(?:([A-Za-z_][A-Za-z_0-9]*(?:\.\d+)?(?:_\d+)?)|([(),]))")


def to_text(graph: LayerGraph, names: Mapping[str, str] | None = None) -> str:
    """The expression that `parse` reads, such as `mul(x, sigmoid(mul(v1, x)))`; `affine(...)` outermost.

    Where that would pass 100,000 characters (shared subexpressions are written out), the nodes are listed one
    by one instead; such text is for people, and only JSON brings the graph back.

    Args:
        graph: what to write.
        names: what to call the graph's ops instead of their names in the table; an op that it lacks keeps its name.
    """
    names = names or {}
    text = _print(graph, lambda op, args: f"{names.get(op.name, op.name)}({', '.join(args)})")
    return f"affine({text})" if graph.affine else text


def parse(text: str, names: Mapping[str, str] | None = None) -> LayerGraph:
    """Read an expression.

    Equal subexpressions become one node, dead nodes cannot be written: `parse(str(g))` is `g`'s canonical
    form up to the order of commutative arguments.

    Args:
        text: the expression.
        names: for another notation: what may stand there for an op, and which op of the table it is. Then x is
            the only input, and there is no affine. None for our own notation.

    Raises:
        InputError: naming the position (from 0) of the first thing that is wrong.
    """
    return _Reader(text, names).read()


class _Reader:
    def __init__(self, text: str, names: Mapping[str, str] | None = None) -> None:
        if len(text) > MAX_TEXT:
            raise InputError(f"the expression has {len(text)} characters; at most {MAX_TEXT} are read")
        self.text = text
        self.names = names
        self.at = 0
        self.nodes: list[Node] = []
        self.places: dict[Node, int] = {}

    def read(self) -> LayerGraph:
        start = self.at
        name, position = self.name("an op")
        affine = name == "affine" and self.names is None
        if affine:
            self.expect("(")
        else:
            self.at = start
        output = self.argument(0)
        if affine:
            self.expect(")")
        if rest := self.text[self.at :].strip():
            raise self.error(f"the expression ends here, but {rest[:20]!r} follows", self.at)
        if isinstance(output, str):
            raise self.error(f"{output!r} alone is no layer: apply at least one op", position)
        if output != len(self.nodes) - 1:  # pragma: no cover - the output is always made last
            raise AssertionError("the output must be the last node")
        return LayerGraph(tuple(self.nodes), affine)

    def argument(self, depth: int) -> Arg:
        if depth > MAX_DEPTH:
            raise self.error(f"nested deeper than {MAX_DEPTH}", self.at)
        name, position = self.name("an op or an input")
        if self.input(name):
            return name
        op = self.op(name, position)
        args = self.arguments(op, name, position, depth)
        node = Node(op.name, args)
        if node not in self.places:
            if len(self.nodes) == MAX_NODES:
                raise self.error(f"more than {MAX_NODES} distinct operations", position)
            self.places[node] = len(self.nodes)
            self.nodes.append(node)
        return self.places[node]

    def input(self, name: str) -> bool:
        return is_input(name) if self.names is None else name == "x"

    def op(self, name: str, position: int) -> Op:
        if self.names is not None:
            if name not in self.names:
                raise unknown_name("op or input", name, [*self.names, "x"], f" at position {position}")
            return OPS[self.names[name]]
        if name == "affine":
            raise self.error("affine(...) may only be outermost", position)
        if name not in OPS:
            raise unknown_name("op or input", name, [*OPS, "x", "zero", "v0", "v1"], f" at position {position}")
        return OPS[name]

    def arguments(self, op: Op, name: str, position: int, depth: int) -> tuple[Arg, ...]:
        self.expect("(")
        args = [self.argument(depth + 1)]
        while self.peek() == ",":
            self.expect(",")
            args.append(self.argument(depth + 1))
        self.expect(")")
        if len(args) != op.arity:
            raise self.error(f"op {name!r} takes {op.arity} argument(s), got {len(args)}", position)
        return tuple(args)

    def peek(self) -> str:
        match = _TOKEN.match(self.text, self.at)
        return match[0].strip() if match else ""

    def name(self, what: str) -> tuple[str, int]:
        match = _TOKEN.match(self.text, self.at)
        if not match or not match[1]:
            raise self.error(f"expected {what}, found {self.found()}", self.at)
        self.at = match.end()
        return match[1], match.start(1)

    def expect(self, symbol: str) -> None:
        if self.peek() != symbol:
            raise self.error(f"expected {symbol!r}, found {self.found()}", self.at)
        self.at = _TOKEN.match(self.text, self.at).end()  # type: ignore[union-attr]

    def found(self) -> str:
        rest = self.text[self.at :].lstrip()
        return repr(rest[:12]) if rest else "the end"

    def error(self, message: str, position: int) -> InputError:
        position += len(self.text[position:]) - len(self.text[position:].lstrip())
        around = self.text[max(0, position - 20) : position + 20]
        return InputError(f"at position {position}: {message}; in ...{around!r}...")


def formula(graph: LayerGraph) -> str:
    """The graph as people write it: `x * sigmoid(v1 * x) / group_std(x)`; the affine as `affine(...)`."""
    text = _print(graph, _infix, enclosed=_in_brackets)
    return f"affine({text})" if graph.affine else text


def latex(graph: LayerGraph) -> str:
    """The graph in LaTeX, with gamma and beta for the affine."""
    text = _print(graph, _latex, _latex_input, _in_latex_brackets)
    return _latex_affine(text) if graph.affine else text


def equations(graph: LayerGraph, widest: int = 100) -> list[tuple[str, str]]:
    """The graph in LaTeX as equations, each a name and what it stands for; the last one is y.

    One equation where the whole formula has at most `widest` characters of LaTeX. Otherwise what is used more than
    once gets a name (h_1, h_2...), and so does what is wider than half of that.
    """
    graph = graph.canonical
    if len(whole := latex(graph)) <= widest:
        return [("y", whole)]
    uses = Counter(arg for node in graph.nodes for arg in node.args if isinstance(arg, int))
    found: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    texts: list[str] = []
    for i, node in enumerate(graph.nodes):
        op, args = OPS[node.op], []
        for side, arg in enumerate(node.args):
            inner = OPS[graph.nodes[arg].op] if isinstance(arg, int) and arg not in names else None
            text = texts[arg] if isinstance(arg, int) else _latex_input(arg)
            args.append(_in_latex_brackets(op, inner, side, text) if inner else text)
        texts.append(_latex(op, args))
        if i < len(graph.nodes) - 1 and (uses[i] > 1 or len(texts[i]) > widest // 2):
            names[i] = f"h_{{{len(found) + 1}}}"
            found.append((names[i], texts[i]))
            texts[i] = names[i]
    return [*found, ("y", _latex_affine(texts[-1]) if graph.affine else texts[-1])]


def _print(
    graph: LayerGraph,
    write: Callable[[Op, list[str]], str],
    write_input: Callable[[str], str] = str,
    enclosed: Callable[[Op, Op, int, str], str] | None = None,
) -> str:
    done: dict[int, str] = {}
    for i in graph.live:
        op = OPS[graph.nodes[i].op]
        args = []
        for side, arg in enumerate(graph.nodes[i].args):
            text = done[arg] if isinstance(arg, int) else write_input(arg)
            if enclosed and isinstance(arg, int):
                text = enclosed(op, OPS[graph.nodes[arg].op], side, text)
            args.append(text)
        done[i] = write(op, args)
        if len(done[i]) > MAX_TEXT:
            return _listing(graph)
    return done[len(graph.nodes) - 1]


def _listing(graph: LayerGraph) -> str:
    """The nodes one by one: for a graph whose expression would be too long, subexpressions being shared."""
    rows = []
    for i in graph.live:
        args = (f"n{a}" if isinstance(a, int) else a for a in graph.nodes[i].args)
        rows.append(f"n{i} = {graph.nodes[i].op}({', '.join(args)})")
    return "; ".join(rows)


def _needs_brackets(op: Op, inner: Op, side: int) -> bool:
    if not op.symbol or not inner.symbol:
        return False
    if inner.precedence == op.precedence:
        return side == 1 or op.arity == 1
    return inner.precedence < op.precedence


def _in_brackets(op: Op, inner: Op, side: int, text: str) -> str:
    return f"({text})" if _needs_brackets(op, inner, side) else text


def _in_latex_brackets(op: Op, inner: Op, side: int, text: str) -> str:
    """In brackets where the template of `op` has none of its own: braces, bars and commas are as good."""
    fenced = not op.latex or re.search(rf"(\{{\{{|\(|\||, )\{{{side}\}}(\}}\}}|\\right|, )", op.latex)
    bare = not fenced and not op.symbol  # such as {0}^3
    fraction = inner.latex.startswith(r"\frac")
    needed = bare or (not fenced and not fraction and _needs_brackets(op, inner, side))
    return rf"\left({text}\right)" if needed else text


def _infix(op: Op, args: list[str]) -> str:
    if op.symbol and op.arity == 2:
        return f"{args[0]} {op.symbol} {args[1]}"
    if op.symbol:
        return f"{op.symbol}{args[0]}"
    return f"{op.name}({', '.join(args)})"


def _latex(op: Op, args: list[str]) -> str:
    if op.latex:
        return op.latex.format(*args)
    return rf"\mathrm{{{op.name}}}\left({', '.join(args)}\right)"


def _latex_affine(text: str) -> str:
    return rf"\gamma \left({text}\right) + \beta"


def _latex_input(name: str) -> str:
    if name in ("x", "zero"):
        return {"x": "x", "zero": "0"}[name]
    return f"{name[0]}_{{{name[1:].replace('_', ',')}}}"

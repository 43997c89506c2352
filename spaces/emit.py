"""Print a layer graph as Python source: one class and one factory function, needing torch alone.

The printed code is what `GraphLayer` interprets, line by line: pointwise ops are printed from the source of
their own functions, statistics from those in `moments`. Parameters and buffers carry the same names, so a
`state_dict` goes from one to the other.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable, Iterable
from functools import lru_cache

from normact.spaces import moments
from normact.spaces.errors import InputError
from normact.spaces.graph import Arg, LayerGraph
from normact.spaces.inputs import trainable
from normact.spaces.layer import RAW, LayerOptions, running_name
from normact.spaces.ops import OPS, Op
from normact.spaces.text import formula


def emit(
    graph: LayerGraph,
    name: str,
    options: LayerOptions | None = None,
    without_activation: LayerGraph | None = None,
    note: str = "",
) -> str:
    """Source of a module with a class and the factory function `name`.

    The class takes timm's constructor arguments (`num_features`, `apply_act`, `groups`, `group_size`, `eps`,
    `momentum`, `device`, `dtype`), `layout`, and swallows others.

    Args:
        graph: the layer.
        name: a Python identifier in lower case; the class gets its CamelCase form.
        options: defaults of `groups`, `eps` and `momentum`.
        without_activation: what `apply_act=False` computes; None for a per-channel affine.
        note: text for the docstring, such as scores, run and version.

    Raises:
        InputError: `name` is no identifier, or an op's source cannot stand alone.
    """
    if not name.isidentifier() or name != name.lower():
        raise InputError(f"a layer's name must be a Python identifier in lower case, got {name!r}")
    return _Emitter(graph.canonical, name, options or LayerOptions(), without_activation, note).module()


class _Emitter:
    def __init__(
        self, graph: LayerGraph, name: str, options: LayerOptions, plain: LayerGraph | None, note: str
    ) -> None:
        self.graph = graph
        self.plain = plain.canonical if plain else None
        self.name = name
        self.class_name = "".join(part.capitalize() for part in name.split("_"))
        self.options = options
        self.note = note
        self.helpers: dict[str, str] = {}

    def module(self) -> str:
        body = self.forward(self.graph)
        plain = self.forward(self.plain) if self.plain else []
        parts = [
            self.docstring(),
            "import torch\nfrom torch import Tensor, nn\n",
            self.class_source(body, plain),
            self.factory(),
        ]
        parts[2:2] = [self.helpers[key] for key in sorted(self.helpers)]
        return "\n\n".join(part.strip("\n") + "\n" for part in parts)

    def docstring(self) -> str:
        lines = [f"{self.name}: {formula(self.graph)}", "", f"expression: {self.graph}"]
        lines += ["", *self.note.strip().splitlines()] if self.note else []
        wrapped = "\n".join(lines).replace("\\", "\\\\").replace('"""', "'''")
        return f'"""{wrapped}\n"""\n'

    def class_source(self, body: list[str], plain: list[str]) -> str:
        graphs = [self.graph, self.plain] if self.plain else [self.graph]
        uses_groups = any(_moment_sets(g) & {"group"} for g in graphs if g)
        init = self.constructor(uses_groups)
        no_act = (
            ["        if not self.apply_act:", *("    " + line for line in plain)]
            if plain
            else [
                "        if not self.apply_act:",
                "            return x * self._along(self.weight, x) + self._along(self.bias, x)",
            ]
        )
        doc = textwrap.dedent(
            f'''
            """{formula(self.graph)}

            Args:
                num_features: channels.
                apply_act: False for a place with no activation{" (the norm alone)" if plain else " (a per-channel affine)"}.
                {"groups: groups of channels, lowered to a divisor; `group_size` wins." if uses_groups else ""}
                eps: added inside the roots.
                momentum: weight of the new value in running statistics.
                layout: NCHW (one or more spatial axes), NLC or NC.
            """
            '''
        ).strip()
        doc = "\n".join(line for line in doc.splitlines() if line.strip() or line == "")
        methods = [_ALONG]
        if any(_moment_sets(g) & {"batch"} for g in graphs if g):
            methods += [_RESET, _BATCH]
            self.helper(moments.at_least_float32)
            self.helper(moments.reduced_axes)
        lines = [
            f"class {self.class_name}(nn.Module):",
            textwrap.indent(doc, "    "),
            "",
            *init,
            "",
            *(textwrap.indent(textwrap.dedent(m).strip("\n"), "    ") + "\n" for m in methods),
            "    def forward(self, x: Tensor) -> Tensor:",
            "        axis = self.axis",
            "        if x.shape[axis] != self.num_features:",
            "            raise ValueError("
            'f"made for {self.num_features} channels on axis {axis}, got shape {tuple(x.shape)}")',
            *no_act,
            *body,
        ]
        return "\n".join(lines)

    def constructor(self, uses_groups: bool) -> list[str]:
        o = self.options
        groups = f"groups={o.groups}, group_size=None, " if uses_groups else ""
        lines = [
            f"    def __init__(self, num_features, apply_act=True, {groups}eps={o.eps!r}, momentum={o.momentum!r},",
            '                 layout="NCHW", device=None, dtype=None, **_):',
            "        super().__init__()",
            "        self.num_features = num_features",
            "        self.apply_act = apply_act",
            "        self.eps = eps",
            "        self.momentum = momentum",
            '        if layout not in ("NCHW", "NLC", "NC"):',
            '            raise ValueError(f"layout must be NCHW, NLC or NC, got {layout!r}")',
            '        self.axis = 2 if layout == "NLC" else 1',
        ]
        if uses_groups:
            lines += [
                "        if group_size:",
                "            if num_features % group_size:",
                '                raise ValueError(f"group_size={group_size} does not divide {num_features} channels")',
                "            groups = num_features // group_size",
                "        self.groups = max(g for g in range(1, min(groups, num_features) + 1) if num_features % g == 0)",
            ]
        lines += ['        kw = {"device": device, "dtype": dtype}']
        lines += ["        if apply_act:", *("    " + line for line in self.state(self.graph))]
        lines += ["        else:"]
        lines += [
            "    " + line for line in (self.state(self.plain) if self.plain else _affine_state())
        ]
        return lines

    def state(self, graph: LayerGraph) -> list[str]:
        lines = _affine_state() if graph.affine else []
        for name in graph.trainables:
            item = trainable(name)
            assert item is not None
            size = "num_features" if item.per_channel else "1"
            value = f"torch.full(({size},), {item.init!r}, **kw)"
            lines.append(f"        self.{item.attribute} = nn.Parameter({value})")
        for buffer in _buffers(graph).values():
            initial = "zeros" if _starts_at_zero(buffer) else "ones"
            lines.append(f'        self.register_buffer("{buffer}", torch.{initial}(num_features, **kw))')
        return lines or ["        pass"]

    def forward(self, graph: LayerGraph) -> list[str]:
        """The lines that compute a graph. `full` tracks which values have the input's shape already."""
        lines = []
        if "zero" in graph.inputs:
            lines.append("zero = x.new_zeros((1,) * x.dim())")
        for name in graph.trainables:
            item = trainable(name)
            assert item is not None
            lines.append(f"{item.attribute} = self._along(self.{item.attribute}, x)")
        buffers = _buffers(graph)
        names: dict[Arg, str] = {}
        full: dict[Arg, bool] = {"x": True}
        counts: dict[str, int] = {}
        for i, node in enumerate(graph.nodes):
            op = OPS[node.op]
            args = [names[a] if isinstance(a, int) else _input_name(a) for a in node.args]
            counts[node.op] = counts.get(node.op, 0) + 1
            names[i] = f"{node.op}_{counts[node.op]}"
            if op.moment:
                arg = args[0] if full.get(node.args[0], False) else f"{args[0]}.expand(x.shape)"
                lines.append(f"{names[i]} = {self.moment(op, arg, buffers.get(i, ''))}")
            else:
                full[i] = any(full.get(a, False) for a in node.args)
                lines.append(f"{names[i]} = {self.pointwise(op, args)}")
        last = len(graph.nodes) - 1
        y = names[last] if full.get(last, False) else f"{names[last]}.expand(x.shape)"
        if graph.affine:
            y = f"{y} * self._along(self.weight, x) + self._along(self.bias, x)"
        return ["        " + line for line in [*lines, f"return {y}"]]

    def moment(self, op: Op, arg: str, buffer: str) -> str:
        assert op.moment is not None
        index_set, statistic = op.moment.index_set, RAW[op.moment.statistic]
        self.helper(statistic)
        self.helper(moments.at_least_float32)
        if index_set == "batch":
            raw = f'self._batch({statistic.__name__}, {arg}, "{buffer}")'
        elif index_set == "group":
            self.helper(moments.per_group)
            raw = f"per_group(at_least_float32({arg}), {statistic.__name__}, self.groups, axis)"
        else:
            self.helper(moments.reduced_axes)
            axes = f'reduced_axes("{index_set}", axis, x.dim())'
            raw = f"{statistic.__name__}(at_least_float32({arg}), {axes})"
        rooted = raw if op.moment.statistic == "mean" else f"torch.sqrt({raw} + self.eps)"
        return f"{rooted}.to(x.dtype)"

    def pointwise(self, op: Op, args: list[str]) -> str:
        assert op.function is not None
        parameters, expression, source = _source(op.name, op.function)
        if expression is None:
            name = op.function.__name__
            self.helpers.setdefault(name, source)
            return f"{name}({', '.join(args)})"
        return ast.unparse(_Substitute(dict(zip(parameters, args, strict=True))).visit(ast.parse(expression)))

    def helper(self, function: Callable[..., object]) -> None:
        self.helpers.setdefault(function.__name__, _source(function.__name__, function)[2])

    def factory(self) -> str:
        return textwrap.dedent(
            f'''
            def {self.name}(num_features, apply_act=True, **kw):
                """A `{self.class_name}`; a function, since timm's `norm_layer=` takes functions as they are."""
                return {self.class_name}(num_features, apply_act=apply_act, **kw)
            '''
        )


class _Substitute(ast.NodeTransformer):
    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name(self.names.get(node.id, node.id), node.ctx)


@lru_cache(maxsize=512)
def _source(op: str, function: Callable[..., object]) -> tuple[list[str], str | None, str]:
    """A function's parameter names, its one returned expression (None if it has more), and its whole source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError) as problem:
        raise InputError(f"op {op!r} has no source that could be exported ({problem}): write it as a `def`") from None
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef):
        raise InputError(f"op {op!r} is no plain function, so it cannot be exported: write it as a `def`")
    parameters = [argument.arg for argument in definition.args.args]
    if foreign := sorted(_foreign_names(definition, parameters)):
        raise InputError(
            f"op {op!r} uses {', '.join(foreign)}, which an exported file would lack: use torch and numbers alone"
        )
    body = definition.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    single = body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None
    return parameters, ast.unparse(single) if single else None, ast.unparse(definition)


def _foreign_names(definition: ast.FunctionDef, parameters: Iterable[str]) -> set[str]:
    names = {node.id: node for node in ast.walk(definition) if isinstance(node, ast.Name)}
    stored = {
        node.id for node in ast.walk(definition) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return {n for n in names if n not in stored and not hasattr(builtins, n)} - set(parameters) - {"torch", "Tensor"}


def _input_name(name: str) -> str:
    item = trainable(name)
    return item.attribute if item else name


def _moment_sets(graph: LayerGraph) -> set[str]:
    return {moment.index_set for node in graph.nodes if (moment := OPS[node.op].moment)}


def _buffers(graph: LayerGraph) -> dict[int, str]:
    buffers: dict[int, str] = {}
    for i, node in enumerate(graph.nodes):
        moment = OPS[node.op].moment
        if moment and moment.index_set == "batch":
            buffers[i] = running_name(moment, list(buffers.values()))
    return buffers


def _starts_at_zero(buffer: str) -> bool:
    return buffer.startswith("running_mean") and "square" not in buffer


def _affine_state() -> list[str]:
    return [
        "        self.weight = nn.Parameter(torch.ones(num_features, **kw))",
        "        self.bias = nn.Parameter(torch.zeros(num_features, **kw))",
    ]


_ALONG = '''
def _along(self, vector, x):
    """A vector of one entry per channel (or one in all), shaped to broadcast along x's channels."""
    shape = [1] * x.dim()
    shape[self.axis] = vector.numel()
    return vector.to(x.dtype).view(shape)
'''

_RESET = '''
def reset_running_stats(self):
    """Running means to 0, running mean squares and variances to 1."""
    for name, buffer in self.named_buffers():
        buffer.fill_(0.0 if name.startswith("running_mean") and "square" not in name else 1.0)
'''

_BATCH = '''
def _batch(self, statistic, value, name):
    """A statistic over all but the channels: of this batch in training, the running one in evaluation."""
    running = getattr(self, name)
    if not self.training:
        return self._along(running, value)
    raw = statistic(at_least_float32(value), reduced_axes("batch", self.axis, value.dim()))
    with torch.no_grad():
        count = value.numel() // self.num_features
        unbiased = count / max(count - 1, 1) if name.startswith("running_var") else 1.0
        running.lerp_((raw * unbiased).flatten().to(running.dtype), self.momentum)
    return raw
'''

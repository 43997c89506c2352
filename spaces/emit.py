"""Print a layer graph as Python source: one class and one factory function, needing torch alone.

The printed code is what `GraphLayer` interprets, line by line: pointwise ops are printed from the source of
their own functions, statistics from those in `moments`. Parameters and buffers carry the same names, so a
`state_dict` goes from one to the other.
"""

from __future__ import annotations

import builtins
import keyword
import re
import textwrap
from collections.abc import Callable, Sequence

from normact.spaces import moments
from normact.spaces.errors import InputError
from normact.spaces.graph import Arg, LayerGraph
from normact.spaces.inputs import trainable
from normact.spaces.layer import RAW, LayerOptions, running_name, running_start
from normact.spaces.moments import LAYOUTS, Moment, unusable
from normact.spaces.ops import OPS, Op
from normact.spaces.source import read_source
from normact.spaces.text import formula

WIDTH = 100
"""Longest line of a docstring."""

_RESERVED = frozenset({"torch", "nn", "Tensor", "Callable", "x", "zero", "self", *dir(builtins), *keyword.kwlist})

_OURS = frozenset({"mean", "mean_square", "var", "at_least_float32", "reduced_axes", "per_group"})
"""Functions of `moments` that a file may contain, under these names."""


def emit(
    graph: LayerGraph,
    name: str,
    options: LayerOptions | None = None,
    without_activation: LayerGraph | None = None,
    note: str = "",
) -> str:
    """Source of a module with a class and the factory function `name`.

    The class takes those of timm's constructor arguments that matter to the layer (`num_features`,
    `apply_act`, `groups`, `group_size`, `eps`, `momentum`, `device`, `dtype`), `layout`, and swallows others.

    Args:
        graph: the layer.
        name: of the factory function, such as `my_layer`; the class gets the CamelCase form.
        options: defaults of `groups`, `eps` and `momentum`.
        without_activation: what `apply_act=False` computes; None for a per-channel affine.
        note: text for the docstring, such as scores, run and version.

    Raises:
        InputError: `name` is no identifier in lower case or has a meaning already; an op's source cannot
            stand alone.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"a layer's name must be a Python identifier in lower case, got {name!r}")
    if name in _RESERVED | _OURS:
        raise InputError(f"a layer cannot be called {name!r}: the name has a meaning in Python or in the file")
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
        self.helper_names: dict[Callable[..., object], str] = {}
        graphs = [self.graph, self.plain] if self.plain else [self.graph]
        self.moments = sorted(
            {moment for g in graphs for node in g.nodes if (moment := OPS[node.op].moment)},
            key=lambda moment: (moment.index_set, moment.statistic),
        )
        self.layouts = [layout for layout in LAYOUTS if not any(unusable(m.index_set, layout) for m in self.moments)]

    def module(self) -> str:
        body = [*self.guard(), *self.forward_plain(), *self.forward(self.graph)]
        methods = [*self.methods(), _method("forward(self, x: Tensor)", "", body)]
        cls = "\n\n".join([self.class_head(), self.constructor(), _ALONG, *methods])
        helpers = [self.helpers[key] for key in sorted(self.helpers)]
        imports = "import torch\nfrom torch import Tensor, nn"
        if any("Callable[" in part for part in (cls, *helpers)):
            imports = "from collections.abc import Callable\n\n" + imports
        return f"{self.docstring()}\n\n" + "\n\n\n".join([imports, *helpers, cls, self.factory()]) + "\n"

    def docstring(self) -> str:
        lines = [*_wrapped(f"{self.name}: {formula(self.graph)}"), ""]
        lines += _wrapped(f"expression: {self.graph}")
        if self.note.strip():
            lines += ["", *(line.rstrip() for line in self.note.strip().splitlines())]
        return _quoted("\n".join(lines))

    def class_head(self) -> str:
        lines = [*_wrapped(formula(self.graph), WIDTH - 4), "", "Args:"]
        for argument, _, meaning in self.arguments():
            lines.append(f"    {argument}: {meaning}")
        return f"class {self.class_name}(nn.Module):\n" + textwrap.indent(_quoted("\n".join(lines)), "    ")

    def arguments(self) -> list[tuple[str, str, str]]:
        """The constructor's arguments that matter to this layer: name, annotation with default, meaning."""
        o = self.options
        otherwise = "then the norm alone" if self.plain else "then a per-channel affine alone"
        sets = {moment.index_set for moment in self.moments}
        rows = [
            ("num_features", "int", "channels."),
            ("apply_act", "bool = True", f"False for a place with no activation: {otherwise}."),
        ]
        if "group" in sets:
            rows += [
                ("groups", f"int = {o.groups}", "groups of channels, lowered to a divisor of the channels."),
                ("group_size", "int | None = None", "channels in a group; wins over `groups`."),
            ]
        if any(moment.statistic != "mean" for moment in self.moments):
            rows.append(("eps", f"float = {_number(o.eps)}", "added inside the roots."))
        if "batch" in sets:
            rows.append(
                (
                    "momentum",
                    f"float = {_number(o.momentum)}",
                    "weight of the new value in running statistics.",
                )
            )
        axes = {"NCHW": "NCHW (one or more spatial axes)"}
        return [
            *rows,
            (
                "layout",
                f'str = "{self.layouts[0]}"',
                f"{_list([axes.get(name, name) for name in self.layouts])}.",
            ),
            ("device", "torch.device | str | None = None", "of parameters and buffers."),
            ("dtype", "torch.dtype | None = None", "of parameters and buffers."),
        ]

    def constructor(self) -> str:
        arguments = self.arguments()
        names = [name for name, _, _ in arguments]
        signature = "\n".join(
            f"    {line}," for line in ["self", *(f"{n}: {how}" for n, how, _ in arguments), "**_: object"]
        )
        layouts = ", ".join(f'"{layout}"' for layout in self.layouts)
        lines = [
            "super().__init__()",
            f"if layout not in ({layouts}{',' if len(self.layouts) == 1 else ''}):",
            f'    raise ValueError(f"layout must be {_list(self.layouts)}, got {{layout!r}}")',
            *(_GROUPS if "groups" in names else []),
            "self.num_features = num_features",
            "self.apply_act = apply_act",
            "self.layout = layout",
            'self.axis = 2 if layout == "NLC" else 1  # of the channels',
        ]
        lines += [f"self.{name} = {name}" for name in ("eps", "momentum") if name in names]
        lines += self.all_state()
        return textwrap.indent(f"def __init__(\n{signature}\n) -> None:\n" + _indented(lines), "    ")

    def all_state(self) -> list[str]:
        with_act = _state(self.graph)
        without = _state(self.plain) if self.plain else _AFFINE_STATE
        lines = [line for line in with_act if line in without]
        rest = [line for line in with_act if line not in without]
        rest_without = [line for line in without if line not in with_act]
        if rest:
            lines += ["if apply_act:", *("    " + line for line in rest)]
        if rest_without:
            lines += ["else:" if rest else "if not apply_act:", *("    " + line for line in rest_without)]
        return ['kw = {"device": device, "dtype": dtype}', *lines] if lines else []

    def methods(self) -> list[str]:
        """The methods that take statistics."""
        methods = []
        if any(moment.index_set == "batch" for moment in self.moments):
            self.helper(moments.at_least_float32)
            self.helper(moments.reduced_axes)
            methods += [_RESET, _BATCH]
        return methods + [self.moment_method(moment) for moment in self.moments]

    def moment_method(self, moment: Moment) -> str:
        raw = self.helper(RAW[moment.statistic])
        signature = f"_{moment.index_set}_{moment.statistic}(self, x: Tensor)"
        if moment.index_set == "batch":
            signature = signature.replace(")", ", name: str)")
            value = f"self._batch({raw}, x, name)"
        else:
            wide = f"{self.helper(moments.at_least_float32)}(x)"
            if moment.index_set == "group":
                value = f"{self.helper(moments.per_group)}({wide}, {raw}, self.groups, self.axis)"
            else:
                axes = f'{self.helper(moments.reduced_axes)}("{moment.index_set}", self.axis, x.dim())'
                value = f"{raw}({wide}, {axes})"
        if moment.statistic == "mean":
            lines = [f"return {value}.to(x.dtype)"]
        else:
            lines = [f"raw = {value}", "return torch.sqrt(raw + self.eps).to(x.dtype)"]
        return _method(signature, f"{_STATISTIC[moment.statistic]} {_OVER[moment.index_set]}.", lines)

    def guard(self) -> list[str]:
        return [
            'fits = x.dim() > 2 if self.layout == "NCHW" else x.dim() == len(self.layout)',
            "if not fits or x.shape[self.axis] != self.num_features:",
            '    made_for = f"made for {self.layout} with C = {self.num_features}"',
            '    raise ValueError(f"{made_for}, got shape {tuple(x.shape)}")',
        ]

    def forward_plain(self) -> list[str]:
        lines = self.forward(self.plain) if self.plain else ["return " + _with_affine("x")]
        return ["if not self.apply_act:", *("    " + line for line in lines)]

    def forward(self, graph: LayerGraph) -> list[str]:
        """The lines that compute a graph. `full` tracks which values have the input's shape already."""
        lines = []
        if "zero" in graph.inputs:
            lines.append("zero = x.new_zeros((1,) * x.dim())")
        for name in graph.trainables:
            lines.append(f"{_input_name(name)} = self._along(self.{_input_name(name)}, x)")
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
                buffer = f', "{buffers[i]}"' if i in buffers else ""
                lines.append(f"{names[i]} = self._{op.name}({arg}{buffer})")
            else:
                full[i] = any(full.get(a, False) for a in node.args)
                lines.append(f"{names[i]} = {self.pointwise(op, args)}")
        last = len(graph.nodes) - 1
        y = names[last] if full.get(last, False) else f"{names[last]}.expand(x.shape)"
        return [*lines, f"return {_with_affine(y)}" if graph.affine else f"return {y}.to(x.dtype)"]

    def pointwise(self, op: Op, args: list[str]) -> str:
        assert op.function is not None
        source = read_source(op.name, op.function)
        if source.expression and len(inlined := source.inlined(args)) < 60:
            return inlined
        return f"{self.helper(op.function, op.name)}({', '.join(args)})"

    def helper(self, function: Callable[..., object], op: str = "") -> str:
        """Put a function into the file, once; returns its name there."""
        if function not in self.helper_names:
            name = function.__name__
            taken = _RESERVED | {self.name, self.class_name} | set(self.helpers) | (_OURS if op else set())
            while name in taken or _like_a_local(name):
                name += "_op"
            self.helper_names[function] = name
            self.helpers[name] = read_source(op, function).renamed(name)
        return self.helper_names[function]

    def factory(self) -> str:
        return textwrap.dedent(
            f'''
            def {self.name}(num_features: int, apply_act: bool = True, **kw: object) -> {self.class_name}:
                """The layer, from a function: timm's `norm_layer=` takes a function as it is."""
                return {self.class_name}(num_features, apply_act=apply_act, **kw)
            '''
        ).strip()


def _like_a_local(name: str) -> bool:
    """Whether `forward` might use that name for a value: `mul_1`, or a trainable's."""
    return bool(re.search(r"_[0-9]+$|^[vs][0-9]", name))


def _input_name(name: str) -> str:
    item = trainable(name)
    return item.attribute if item else name


def _buffers(graph: LayerGraph) -> dict[int, str]:
    buffers: dict[int, str] = {}
    for i, node in enumerate(graph.nodes):
        moment = OPS[node.op].moment
        if moment and moment.index_set == "batch":
            buffers[i] = running_name(moment, list(buffers.values()))
    return buffers


_AFFINE_STATE = [
    "self.weight = nn.Parameter(torch.ones(num_features, **kw))",
    "self.bias = nn.Parameter(torch.zeros(num_features, **kw))",
]


def _state(graph: LayerGraph) -> list[str]:
    """The lines that make a graph's parameters and buffers."""
    lines = list(_AFFINE_STATE) if graph.affine else []
    for name in graph.trainables:
        item = trainable(name)
        assert item is not None
        size = "num_features" if item.per_channel else "1"
        lines.append(f"self.{item.attribute} = nn.Parameter({_filled(size, item.init)})")
    for buffer in _buffers(graph).values():
        lines.append(f'self.register_buffer("{buffer}", {_filled("num_features", running_start(buffer))})')
    return lines


def _filled(size: str, value: float) -> str:
    if value in (0.0, 1.0):
        return f"torch.{'ones' if value else 'zeros'}({size}, **kw)"
    return f"torch.full(({size},), {_number(value)}, **kw)"


def _with_affine(value: str) -> str:
    return f"({value} * self._along(self.weight, x) + self._along(self.bias, x)).to(x.dtype)"


def _number(value: float) -> str:
    return re.sub(r"e([-+]?)0*", r"e\1", repr(value))


def _list(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _wrapped(text: str, width: int = WIDTH) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _quoted(text: str) -> str:
    """A docstring; on several lines it ends on a line of its own."""
    safe = text.replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{safe}\n"""' if "\n" in safe else f'"""{safe}"""'


def _indented(lines: list[str]) -> str:
    return textwrap.indent("\n".join(lines), "    ")


def _method(signature: str, doc: str, lines: list[str]) -> str:
    body = [f'"""{doc}"""', *lines] if doc else lines
    return textwrap.indent(f"def {signature} -> Tensor:\n" + _indented(body), "    ")


_STATISTIC = {
    "mean": "The mean",
    "rms": "The root of the mean square",
    "std": "The root of the variance",
}

_OVER = {
    "batch": "over all axes but the channels: `name` is its running buffer",
    "instance": "over the positions of each sample and channel",
    "layer": "over each sample",
    "group": "over each sample's groups of channels",
    "channel": "over the channels of each sample and position",
}

_GROUPS = [
    "if group_size:",
    "    if num_features % group_size:",
    '        raise ValueError(f"group_size={group_size} does not divide {num_features} channels")',
    "    groups = num_features // group_size",
    "while num_features % groups:",
    "    groups -= 1",
    "self.groups = groups",
]

_ALONG = '''
    def _along(self, vector: Tensor, x: Tensor) -> Tensor:
        """A vector of one entry per channel, or of one, shaped to broadcast along x's channels."""
        shape = [1] * x.dim()
        shape[self.axis] = vector.numel()
        return vector.to(x.dtype).view(shape)
'''.strip("\n")

_RESET = '''
    def reset_running_stats(self) -> None:
        """Running means to 0, running mean squares and variances to 1."""
        for name, buffer in self.named_buffers():
            is_mean = name.startswith("running_mean") and "square" not in name
            buffer.fill_(0.0 if is_mean else 1.0)
'''.strip("\n")

_BATCH = '''
    def _batch(self, statistic: Callable[[Tensor, tuple[int, ...]], Tensor], x: Tensor, name: str) -> Tensor:
        """A statistic over all axes but the channels: the batch's in training, else the running one."""
        running = getattr(self, name)
        x = at_least_float32(x)
        if not self.training:
            return self._along(running, x)
        raw = statistic(x, reduced_axes("batch", self.axis, x.dim()))
        with torch.no_grad():
            count = x.numel() // self.num_features
            unbiased = count / max(count - 1, 1) if name.startswith("running_var") else 1.0
            running.lerp_((raw * unbiased).flatten().to(running.dtype), self.momentum)
        return raw
'''.strip("\n")

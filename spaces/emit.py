"""Print a layer graph as Python source: one class and one factory function, needing torch alone.

The printed code computes what `GraphLayer` interprets, arranged for speed (see `lowering`): one pass over x for the
moments, a few numbers per channel, and one pass for the rest. Where the derivatives of that last pass are known
(`reverse`), they are printed too, and the layer keeps x alone for the backward pass. Pointwise ops are printed from
the source of their own functions. Parameters and buffers carry `GraphLayer`'s names, so a `state_dict` goes from one to
the other.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from normact.spaces.body import OURS, RESERVED, Body, Computation, as_tuple, method
from normact.spaces.errors import InputError
from normact.spaces.graph import LayerGraph
from normact.spaces.inputs import trainable
from normact.spaces.layer import LayerOptions, running_start
from normact.spaces.lowering import lower
from normact.spaces.moments import LAYOUTS, unusable
from normact.spaces.ops import OPS
from normact.spaces.printed import GROUPS
from normact.spaces.text import formula

WIDTH = 100
"""Longest line of a docstring."""


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
    if name in RESERVED | OURS:
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
        self.body = Body({self.name, self.class_name, f"{self.class_name}Function"})
        parts = (self.body, self.name, self.class_name)
        self.computation = Computation(self.graph, *parts, "", self.guards())
        self.without = Computation(self.plain, *parts, "_without_act", self.guards()) if self.plain else None
        graphs = [self.graph, self.plain] if self.plain else [self.graph]
        self.moments = {moment for g in graphs for node in g.nodes if (moment := OPS[node.op].moment)}
        self.layouts = [layout for layout in LAYOUTS if not any(unusable(m.index_set, layout) for m in self.moments)]

    def module(self) -> str:
        methods = [*self.small_methods(), *self.computation.methods(), *self.methods_without()]
        cls = "\n\n".join([self.class_head(), self.constructor(), *methods, self.forward()])
        around = [*self.computation.functions(), self.computation.autograd_function()]
        helpers = [self.body.helpers[key] for key in sorted(self.body.helpers, key=str.lower)]
        parts = [*helpers, *around, cls, self.factory()]
        imports = "import torch\nfrom torch import Tensor, nn"
        if any(re.search(r"\bAny\b", part) for part in parts):
            imports = "from typing import Any\n\n" + imports
        if any("Callable[" in part for part in parts):
            imports = "from collections.abc import Callable\n" + imports
        return f"{self.docstring()}\n\n" + "\n\n\n".join([imports, *parts]) + "\n"

    def small_methods(self) -> list[str]:
        """Those that both graphs use, once."""
        found = self.computation.small_methods()
        found += self.without.small_methods() if self.without else self.body.along()
        return list(dict.fromkeys(found))

    def methods_without(self) -> list[str]:
        if self.without:
            return [self.without.compute_mixed()]
        lines = [
            "weight, bias = self._along(weight, x), self._along(bias, x)",
            "return (x * weight + bias).to(x.dtype)",
        ]
        signature = "_compute_without_act(self, x: Tensor, weight: Tensor, bias: Tensor)"
        return [method(signature, "Tensor", "What stands where no activation follows.", lines)]

    def docstring(self) -> str:
        lines = [*_wrapped(f"{self.name}: {formula(self.graph)}"), ""]
        lines += _wrapped(f"expression: {self.graph}")
        if self.note.strip():
            lines += ["", *(line.rstrip() for line in self.note.strip().splitlines())]
        return _quoted("\n".join(lines))

    def class_head(self) -> str:
        lines = [*_wrapped(formula(self.graph), WIDTH - 4), "", "Args:"]
        for argument, _, meaning in self.arguments():
            lines += _wrapped(f"{argument}: {meaning}", WIDTH - 8, "    ")
        return f"class {self.class_name}(nn.Module):\n" + textwrap.indent(_quoted("\n".join(lines)), "    ")

    def arguments(self) -> list[tuple[str, str, str]]:
        """The constructor's arguments that matter to this layer: name, annotation with default, meaning."""
        o = self.options
        otherwise = "then the norm alone" if self.plain else "then a per-channel affine alone"
        sets = {moment.index_set for moment in self.moments}
        above = "" if self.guards() else "; above 1e-10, so that no divisor needs a guard"
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
            rows.append(("eps", f"float = {_number(o.eps)}", f"added inside the roots{above}."))
        if "batch" in sets:
            rows.append(
                (
                    "momentum",
                    f"float = {_number(o.momentum)}",
                    "weight of the new value in running statistics.",
                )
            )
        axes = {"NCHW": "NCHW (one or more spatial axes)"}
        kept = "keep x alone for the backward pass, and compute the rest again" + (
            "; this layer does, unless it is compiled" if self.computation.written else ""
        )
        return [
            *rows,
            ("checkpoint", "bool = False", f"{kept}."),
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
            *(_EPS if "eps" in names and not self.guards() else []),
            *(GROUPS if "groups" in names else []),
            "self.num_features = num_features",
            "self.apply_act = apply_act",
            "self.checkpoint = checkpoint",
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

    def guards(self) -> bool:
        """Whether a small eps is allowed: then every division keeps its guard."""
        return self.options.eps <= 1e-10

    def forward(self) -> str:
        lines = [
            'fits = x.dim() > 2 if self.layout == "NCHW" else x.dim() == len(self.layout)',
            "if not fits or x.shape[self.axis] != self.num_features:",
            '    made_for = f"made for {self.layout} with C = {self.num_features}"',
            '    raise ValueError(f"{made_for}, got shape {tuple(x.shape)}")',
            "if not self.apply_act:",
            f"    return {self.without_call()}",
        ]
        c = self.computation
        names = c.lowered.vectors
        if names:
            lines.append(f"vectors = {as_tuple([f'self.{name}' for name in names])}")
        given, mode = ("x, *vectors", "x, self.training, self.training, *vectors")
        if not names:
            given, mode = "x", "x, self.training, self.training"
        tensors = "(x, *vectors)" if names else "(x,)"
        mode = mode if c.batch else given
        needed = f"torch.is_grad_enabled() and any(t.requires_grad for t in {tensors})"
        plain = "torch.compiler.is_compiling() or torch.jit.is_tracing() or not x.numel()"
        call = f"{self.class_name}Function.apply(self, {'self.training, ' if c.batch else ''}{given})"
        if c.written:
            lines += [f"if {plain}:", f"    return self._compute({mode})"]
            lines += [f"if {needed}:", f"    return {call}", *c.without_grad()]
        else:
            lines += [
                f"again = self.checkpoint and {needed}",
                f"if {plain} or not again:",
                f"    return self._compute({mode})",
                f"return {call}",
            ]
        return method("forward(self, x: Tensor)", "Tensor", "", lines)

    def without_call(self) -> str:
        if not self.without:
            return "self._compute_without_act(x, self.weight, self.bias)"
        mode = ", self.training, self.training" if self.without.batch else ""
        return f"self._compute_without_act(x{mode}{''.join(f', self.{n}' for n in self.without.lowered.vectors)})"

    def factory(self) -> str:
        return textwrap.dedent(
            f'''
            def {self.name}(num_features: int, apply_act: bool = True, **kw: object) -> {self.class_name}:
                """The layer, from a function: timm's `norm_layer=` takes a function as it is."""
                return {self.class_name}(num_features, apply_act=apply_act, **kw)
            '''
        ).strip()


_AFFINE_STATE = [
    "self.weight = nn.Parameter(torch.ones(num_features, **kw))",
    "self.bias = nn.Parameter(torch.zeros(num_features, **kw))",
]


def _buffers(graph: LayerGraph) -> list[str]:
    return [s.buffer for s in lower(graph).moments if s.buffer]


def _state(graph: LayerGraph) -> list[str]:
    """The lines that make a graph's parameters and buffers."""
    lines = list(_AFFINE_STATE) if graph.affine else []
    for name in graph.trainables:
        item = trainable(name)
        assert item is not None
        size = "num_features" if item.per_channel else "1"
        lines.append(f"self.{item.attribute} = nn.Parameter({_filled(size, item.init)})")
    for buffer in _buffers(graph):
        lines.append(f'self.register_buffer("{buffer}", {_filled("num_features", running_start(buffer))})')
    return lines


def _filled(size: str, value: float) -> str:
    if value in (0.0, 1.0):
        return f"torch.{'ones' if value else 'zeros'}({size}, **kw)"
    return f"torch.full(({size},), {_number(value)}, **kw)"


def _number(value: float) -> str:
    return re.sub(r"e([-+]?)0*", r"e\1", repr(value))


def _list(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _wrapped(text: str, width: int = WIDTH, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=2 * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _quoted(text: str) -> str:
    """A docstring; on several lines it ends on a line of its own."""
    safe = text.replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{safe}\n"""' if "\n" in safe else f'"""{safe}"""'


def _indented(lines: list[str]) -> str:
    return textwrap.indent("\n".join(lines), "    ")


_EPS = [
    "if not eps > 1e-10:",
    '    raise ValueError(f"eps must be above 1e-10, got {eps}")',
]

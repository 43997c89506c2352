"""The computing part of a printed layer: its methods, and the functions around the class."""

from __future__ import annotations

import builtins
import keyword
import re
import textwrap
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from normact.spaces.graph import LayerGraph
from normact.spaces.lowering import SCALED, Lowered, Statistic, Step, Value, lower
from normact.spaces.ops import OPS
from normact.spaces.printed import AGAIN, ALONG, BATCH, FUNCTION, GROUP, HELPERS, KEEP, LAYER, RESET
from normact.spaces.reverse import Reverse, can_be_written, over_memory
from normact.spaces.source import read_source

OURS = frozenset(HELPERS)
"""Functions that a file may contain, under these names."""

RESERVED = frozenset({"torch", "nn", "Tensor", "Any", "Callable", "x", "zero", "self", *dir(builtins), *keyword.kwlist})

ENDINGS = ("_pointwise", "_in_place", "_gradients")
"""Of the functions of a layer's second pass, after its name."""

LOCALS = frozenset({"y", "axis", "grad", "wide", "dtype", "keep", "planes", "training", "vectors"})

BEFORE_ROOT = {"mean": "mean", "rms": "square", "std": "var"}
"""What each statistic is before its root, as names go in a file."""

SMALL = {"batch": "_batch", "group": "_group", "layer": "_layer"}
"""Methods that average over planes."""

OF_PLANES = {
    "mean": "plane_mean({0}, self.axis)",
    "square": "plane_square({0}, self.axis)",
    "var": "plane_mean_var({0}, self.axis)",
}
"""Calls for the statistics of planes; the last one gives the mean too."""

OF_CONSTANT_PLANES = {
    "mean": "constant_plane({0}, self.axis)[0]",
    "square": "constant_plane({0}, self.axis)[0].square()",
    "var": "constant_plane({0}, self.axis)",
}
"""The same where each plane has one value."""

LONGEST = 120
"""Columns of a line."""

INLINE = 60
"""Longest expression that is printed in place of a call."""


@dataclass
class Body:
    """What has been printed so far, and the functions that it needs.

    Args:
        taken: names that no function may have.
    """

    taken: Collection[str]
    helpers: dict[str, str] = field(default_factory=dict)
    names: dict[Callable[..., object], str] = field(default_factory=dict)

    def ours(self, name: str) -> str:
        """A function of `HELPERS`, put into the file with those that it calls."""
        if name not in self.helpers:
            self.helpers[name] = HELPERS[name].strip()
            for other in HELPERS:
                if other != name and re.search(rf"\b{other}\b", self.helpers[name]):
                    self.ours(other)
        return name

    def theirs(self, function: Callable[..., object], op: str) -> str:
        """An op's function, put into the file once; returns its name there."""
        if function not in self.names:
            name = function.__name__
            closed = RESERVED | OURS | LOCALS | set(self.taken)
            while name in closed | set(self.helpers) or like_a_local(name):
                name += "_op"
            self.names[function] = name
            self.helpers[name] = read_source(op, function).renamed(name)
        return self.names[function]

    def along(self) -> list[str]:
        """The method that shapes vectors."""
        return [ALONG]

    def method(self, text: str) -> str:
        """A method's text; the functions that it calls go into the file."""
        for name in HELPERS:
            if re.search(rf"\b{name}\b", text):
                self.ours(name)
        return text

    def expression(self, step: Step) -> str:
        """A step as an expression that makes a new tensor."""
        args = [arg.name for arg in step.args]
        if step.op == SCALED:
            core, scale, shift = args
            if scale and shift:
                return f"torch.addcmul({shift}, {core}, {scale})"
            return f"{core} * {scale}" if scale else f"{core} + {shift}"
        if step.op == "whole":
            return f"{args[0]}.expand(x.shape)"
        if step.op == "inverse":
            one = f"torch.ones_like({args[0]})"
            return f"{self.call('div', [one, args[0]])}" if step.guarded else f"1 / {args[0]}"
        if step.op == "div" and not step.guarded:
            return f"{args[0]} / {args[1]}"
        return self.call(step.op, args)

    def call(self, op: str, args: list[str]) -> str:
        """An op of the table, in place where it is one short expression."""
        function = OPS[op].function
        assert function is not None
        source = read_source(op, function)
        if source.expression and len(inlined := source.inlined(args)) < INLINE:
            return inlined
        return f"{self.theirs(function, op)}({', '.join(args)})"


def like_a_local(name: str) -> bool:
    """Whether a printed function might use that name for a value: `mul_1`, a trainable's, a statistic's."""
    return name.endswith(ENDINGS) or bool(re.search(r"_[0-9]+$|^[vs][0-9]|_(mean|var|square)$|^(d|part)_", name))


class Computation:
    """The methods and functions that compute one graph.

    Args:
        graph: the layer.
        body: of the file.
        name: of the layer.
        cls: the class's name.
        suffix: of the names of methods, for the second graph of a file.
        guards: whether all divisions keep their guards.
    """

    def __init__(
        self, graph: LayerGraph, body: Body, name: str, cls: str, suffix: str = "", guards: bool = False
    ) -> None:
        self.body = body
        self.name = name
        self.cls = cls
        self.suffix = suffix
        self.lowered = lower(graph, guards)
        self.written = can_be_written(self.lowered)
        self.batch = any(s.moment.index_set == "batch" for s in self.lowered.moments)
        wholes = [s for s in self.lowered.steps if isinstance(s, Step) and s.op == "whole"]
        self.constant = {step.target.name for step in wholes if step.args[0].kind == "plane"}

    # -- the numbers per channel ----------------------------------------------------------------------------

    def small_methods(self) -> list[str]:
        """Methods that average over planes, and those for vectors and running statistics."""
        sets = {s.moment.index_set for s in self.lowered.moments}
        methods = [ALONG] if self.lowered.vectors or "batch" in sets else []
        if "batch" in sets:
            methods += [RESET, BATCH, KEEP]
        methods += [text for name, text in (("group", GROUP), ("layer", LAYER)) if name in sets]
        return [self.body.method(text) for text in methods]

    def planes(self, of: str) -> tuple[list[str], list[str], bool]:
        """Calls for the statistics of a value's planes, their names, and whether evaluation needs them too."""
        found = [s for s in self.lowered.moments if s.of.name == of and s.moment.index_set != "channel"]
        needs = {BEFORE_ROOT[s.moment.statistic] for s in found}
        forms = OF_CONSTANT_PLANES if of in self.constant else OF_PLANES
        call = {base: self.body.method(forms[base].format(of)) for base in needs}
        calls, names = [], []
        if "var" in needs:
            calls, names = ["*" + call["var"]], [f"{of}_mean", f"{of}_var"]
        elif "mean" in needs:
            calls, names = [call["mean"]], [f"{of}_mean"]
        if "square" in needs:
            calls.append(call["square"])
            names.append(f"{of}_square")
        return calls, names, any(s.moment.index_set != "batch" for s in found)

    def statistics(self, of: str, given: str = "") -> list[str]:
        """The lines that take all statistics of a value. `given`: where the planes' are, if not taken here."""
        calls, names, always = self.planes(of)
        take = []
        if given and names:
            take = [f"{as_tuple(names)} = {given}"]
        elif not given:
            left = list(names)
            for call in calls:
                own, left = (left[:2], left[2:]) if call.startswith("*") else (left[:1], left[1:])
                take.append(f"{', '.join(own)} = {call.lstrip('*')}")
        found = [s for s in self.lowered.moments if s.of.name == of]
        training, evaluation = [] if always else take, []
        for s in found:
            if s.moment.index_set == "batch":
                lines, value = self.over_set(of, "batch", s.moment.statistic, training)
                training += lines
                training += ["if keep:", f'    self._keep("{s.buffer}", {value}, x)']
                evaluation.append(f"{value} = self._along(self.{s.buffer}, x)")
        lines = list(take) if always else []
        if training:
            lines += ["if training:", *("    " + t for t in training), "else:", *("    " + e for e in evaluation)]
        for s in found:
            if s.moment.index_set not in ("batch", "instance"):
                lines += self.over_set(of, s.moment.index_set, s.moment.statistic, lines)[0]
        return lines

    def over_set(self, of: str, index_set: str, statistic: str, so_far: list[str]) -> tuple[list[str], str]:
        """Lines that take a statistic over a set, and its name; without those that there are already."""
        prefix = "" if of == "x" else f"{of}_"
        base = BEFORE_ROOT[statistic]
        name = f"{prefix}{index_set}_{base}"
        if index_set == "channel":
            lines = self.over_channels(of, f"{prefix}channel", base)
        else:
            over = f"self.{SMALL[index_set]}"
            mean = f"{prefix}{index_set}_mean"
            lines = {
                "mean": [f"{name} = {over}({of}_mean)"],
                "square": [f"{name} = {over}({of}_square)"],
                "var": [
                    f"{mean} = {over}({of}_mean)",
                    f"{name} = {over}({of}_var + ({of}_mean - {mean}).square())",
                ],
            }[base]
        return [line for line in lines if line not in so_far], name

    def over_channels(self, of: str, name: str, base: str) -> list[str]:
        mean = f"{name}_mean = {of}.mean(self.axis, keepdim=True)"
        return {
            "mean": [mean],
            "square": [f"{name}_square = {of}.square().mean(self.axis, keepdim=True)"],
            "var": [mean, f"{name}_var = ({of} - {name}_mean).square().mean(self.axis, keepdim=True)"],
        }[base]

    def rooted(self, s: Statistic) -> list[str]:
        """A statistic under its own name: the root is taken here."""
        of, index_set, base = s.of.name, s.moment.index_set, BEFORE_ROOT[s.moment.statistic]
        prefix = "" if of == "x" else f"{of}_"
        name = f"{of}_{base}" if index_set == "instance" else f"{prefix}{index_set}_{base}"
        if base == "mean":
            return [f"{s.target.name} = {name}"]
        return [f"{s.target.name} = torch.sqrt({name} + self.eps)"]

    def lines(self, steps: list[Step | Statistic], given: str = "") -> list[str]:
        """Steps as lines, in order."""
        lines, seen = [], set()
        for step in steps:
            if isinstance(step, Statistic):
                if step.of.name not in seen:
                    seen.add(step.of.name)
                    lines += self.statistics(step.of.name, given)
                lines += self.rooted(step)
            else:
                lines.append(f"{step.target.name} = {self.body.expression(step)}")
        return [unused_as_underscore(line, lines) for line in lines]

    def inputs(self) -> list[str]:
        """The lines that shape vectors and `zero`."""
        lines = [f"{name} = self._along({name}, x)" for name in self.lowered.vectors]
        if self.lowered.zero:
            lines.append("zero = x.new_zeros((1,) * x.dim())")
        return lines

    # -- what is printed --------------------------------------------------------------------------------------

    @property
    def vectors(self) -> str:
        """The vectors as parameters of a function, after others."""
        return "".join(f", {name}: Tensor" for name in self.lowered.vectors)

    @property
    def mode(self) -> str:
        return ", training: bool, keep: bool" if self.batch else ""

    def methods(self) -> list[str]:
        """The methods, indented."""
        if not self.written:
            return [self.compute_mixed()]
        return [self.planes_method(), self.coefficients(), self.compute_written()]

    def compute_mixed(self) -> str:
        output = self.lowered.output
        y = output.name if output.kind == "full" else f"{output.name}.expand(x.shape)"
        lines = ["dtype, x = x.dtype, " + self.body.ours("at_least_float32") + "(x)", *self.inputs()]
        lines += self.lines(self.lowered.steps)
        signature = f"_compute{self.suffix}(self, x: Tensor{self.mode}{self.vectors})"
        return method(
            signature, "Tensor", "The layer, for autograd and the compiler.", [*lines, f"return {y}.to(dtype)"]
        )

    def planes_method(self) -> str:
        calls, _, always = self.planes("x")
        training = ", training: bool" if self.batch else ""
        value = f"({', '.join(calls)}{',' * (len(calls) == 1)})"
        if len(calls) == 1 and calls[0].startswith("*"):
            value = calls[0][1:]
        if not always and calls:
            value += " if training else ()"
        return method(
            f"_planes(self, x: Tensor{training})",
            "tuple[Tensor, ...]",
            "The first pass: moments of each plane, that is of each sample's channels.",
            [f"return {value if calls else '()'}"],
        )

    def coefficients(self) -> str:
        steps = [s for s in self.lowered.steps if isinstance(s, Statistic) or s.target.kind != "full"]
        names = [value.name for value in self.lowered.coefficients()]
        lines = [*self.inputs(), *self.lines(steps, "planes"), f"return {as_tuple(names)}"]
        return method(
            f"_coefficients(self, x: Tensor, planes: tuple[Tensor, ...]{self.mode}{self.vectors})",
            "tuple[Tensor, ...]",
            "What the second pass needs: a few numbers for each sample and channel.",
            lines,
        )

    def compute_written(self) -> str:
        training, mode = (", training", ", training, keep") if self.batch else ("", "")
        vectors = "".join(f", {name}" for name in self.lowered.vectors)
        lines = [
            f"wide = {self.body.ours('at_least_float32')}(x)",
            f"coefficients = self._coefficients(wide, self._planes(wide{training}){mode}{vectors})",
            f"return {self.name}_pointwise(wide, *coefficients).to(x.dtype)",
        ]
        signature = f"_compute(self, x: Tensor{self.mode}{self.vectors})"
        return method(signature, "Tensor", "The layer, for the compiler, which fuses its passes.", lines)

    def without_grad(self) -> list[str]:
        """The lines of a forward pass that nothing has to go back through."""
        training, mode = (", self.training", ", self.training, self.training") if self.batch else ("", "")
        vectors = ", *vectors" if self.lowered.vectors else ""
        return [
            "with torch.no_grad():",
            f"    wide = {self.body.ours('at_least_float32')}(x)",
            f"    planes = self._planes(wide{training})",
            f"    coefficients = self._coefficients(wide, planes{mode}{vectors})",
            f"    return {self.name}_in_place(wide, *coefficients).to(x.dtype)",
        ]

    def functions(self) -> list[str]:
        """The functions of the second pass, forward, over memory, and back; none where autograd goes back."""
        if not self.written:
            return []
        lowered, full = self.lowered, self.lowered.full()
        names = [value.name for value in lowered.coefficients()]
        arguments = "x: Tensor" + "".join(f", {name}: Tensor" for name in names)
        reverse = Reverse(lowered, self.body.expression)
        if reverse.shares:
            self.body.ours("share")
        if any("over_positions" in line for line in reverse.lines):
            self.body.ours("over_positions")
        plain = [f"{step.target.name} = {self.body.expression(step)}" for step in full]
        over = over_memory(full, (), self.body.expression)
        return [
            function(f"{self.name}_pointwise({arguments})", "Tensor", "The second pass.", returned(plain)),
            function(
                f"{self.name}_in_place({arguments})",
                "Tensor",
                "The same without autograd, in less memory.",
                returned(over),
            ),
            function(
                f"{self.name}_gradients(grad: Tensor, {arguments}, axis: int)",
                "tuple[Tensor | None, ...]",
                "The second pass backwards: gradients of its arguments from that of its value.",
                reverse.lines,
            ),
        ]

    def autograd_function(self) -> str:
        """The class that stands between the layer and autograd."""
        text = (FUNCTION if self.written else AGAIN).replace("{cls}", self.cls).replace("{name}", self.name)
        text = self.modes(text)
        skip = 2 if self.batch else 1
        text = text.replace("{skip}", str(skip)).replace("{nones}", "None, " * skip)
        if self.written:
            indent = "\n        "
            text = text.replace("{planes}", indent.join(self.planes_back()))
        for name in HELPERS:
            if re.search(rf"\b{name}\b", text):
                self.body.ours(name)
        return text

    def modes(self, text: str) -> str:
        lines = []
        for line in text.split("\n"):
            if line.strip().startswith("[ctx") and line.endswith("]"):
                if self.batch:
                    lines.append(line.replace("[", "", 1)[:-1])
                continue
            lines.append(re.sub(r"<([^<>]*)>", r"\1" if self.batch else "", line))
        return "\n".join(lines)

    def planes_back(self) -> list[str]:
        """The lines that add what goes back through the moments."""
        _, names, always = self.planes("x")
        if not names:
            return ["d_vectors = d_leaves"]
        d = [f"d_{name}" for name in names]
        lines = [f"{', '.join(d)}, *d_vectors = d_leaves"]
        lines += self.moments_back(names, d)
        if always:
            return lines
        inner = ["    " + line for line in lines]
        return ["if ctx.training:", *inner, "else:", "    d_vectors = d_leaves"]

    def moments_back(self, names: list[str], d: list[str]) -> list[str]:
        count = "count = x.numel() / d_{0}.numel()"
        lines = [count.format(names[0])]
        mean, var, square = (f"d_x_{n}" if f"x_{n}" in names else "" for n in ("mean", "var", "square"))
        if var:
            lines.append("x_mean = ctx.leaves[0].detach()")
            lines.append(f"d_x.addcmul_(wide - x_mean, 2 / count * {var})")
        if square:
            lines.append(f"d_x.addcmul_(wide, 2 / count * {square})")
        if mean:
            lines.append(f"d_x.add_({mean} / count)")
        return lines


def unused_as_underscore(line: str, lines: list[str]) -> str:
    """The line without the name of a mean that no line uses."""
    found = re.match(r"( *)(\w+_mean), (\w+_var\b.*)", line)
    if found is None or any(re.search(rf"\b{found[2]}\b", other) for other in lines if other != line):
        return line
    return f"{found[1]}_, {found[3]}"


def as_tuple(names: list[str]) -> str:
    """Names as a tuple, as it is usually written."""
    return ", ".join(names) if len(names) > 1 else f"({names[0]},)" if names else "()"


def returned(lines: list[str]) -> list[str]:
    """The last line's value is returned."""
    return [*lines[:-1], "return " + lines[-1].partition(" = ")[2]]


def method(signature: str, returns: str, doc: str, lines: list[str]) -> str:
    """A method, indented as in its class."""
    return textwrap.indent(function(signature, returns, doc, lines, LONGEST - 4), "    ")


def function(signature: str, returns: str, doc: str, lines: list[str], width: int = LONGEST) -> str:
    """A function; its arguments on one line, on one of their own, or a line each."""
    head = f"def {signature} -> {returns}:"
    if len(head) > width:
        name, rest = signature.split("(", 1)
        arguments = split_arguments(rest[:-1])
        one = ", ".join(arguments)
        inner = f"    {one}\n" if len(one) + 4 <= width else "".join(f"    {a},\n" for a in arguments)
        head = f"def {name}(\n{inner}) -> {returns}:"
    body = [f'"""{doc}"""'] * bool(doc) + lines
    return head + "\n" + textwrap.indent("\n".join(body), "    ")


def split_arguments(text: str) -> list[str]:
    """At commas outside of brackets."""
    found, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "[(") - (c in ")]")
        if c == "," and not depth:
            found.append(text[start:i].strip())
            start = i + 1
    return [*found, text[start:].strip()]


__all__ = ["OURS", "RESERVED", "Body", "Computation", "Lowered", "Value", "function", "method"]

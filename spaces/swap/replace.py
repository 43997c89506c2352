"""Put a layer into a model in place of its norm-then-activation pairs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normact.spaces.errors import InputError, unknown_name
from normact.spaces.layer import LayerOptions
from normact.spaces.swap.calls import Reading
from normact.spaces.swap.carry import carry_over
from normact.spaces.swap.kinds import NORMS
from normact.spaces.swap.make import ChannelsLast, Layer, Maker, graph_of_factory, maker_of
from normact.spaces.swap.pairs import Found, Pair, find
from normact.spaces.swap.plan import Plan, plan_for
from normact.spaces.swap.record import record
from normact.spaces.swap.report import PostActivationWarning, Report
from normact.spaces.swap.rewrite import first_line
from normact.spaces.swap.trace import trace

Lone = Literal["affine", "keep", "layer"]
AfterAdd = Literal["keep", "pointwise"]


def replace_layers(
    model: nn.Module,
    layer: Layer,
    *,
    lone: Lone = "affine",
    after_add: AfterAdd = "keep",
    carry: bool = True,
    example_inputs: Tensor | Sequence[Any] | None = None,
    options: LayerOptions | None = None,
    group_size: int | None = None,
) -> Report:
    """Replace, in place, each norm together with the activation right behind it, and each norm that has none.

    What follows what is read from the flow of data, in training and in evaluation: by `torch.fx`, or, with
    `example_inputs`, from a run of a copy of the model, which needs no tracing and tells layouts for certain
    (`BatchNorm1d` on (N, C) or (N, C, L), `LayerNorm` on any number of axes). Activations may be modules,
    functions, tensor methods or x * sigmoid(x). One that also serves elsewhere, as the one `relu` of torchvision's
    residual blocks, or that is no module, is taken out of the `forward` that calls it: the module gets a class
    derived from its own with that forward written out. All else is a plain replacement of children.

    The new layer has the norm's channels, device, dtype and mode; where all parameters of the norm are frozen, so
    are the layer's.

    Args:
        model: changed in place; after an error it is as it was.
        layer: a graph, an expression or a name of the catalogue; a function f(num_features, apply_act=True, **kw),
            such as an exported file's, called with `layout=` where that is not NCHW; or a function of a `Site`.
        lone: what becomes of a norm with no activation behind it: "affine" (a function decides by apply_act=False, or
            by the site's `activation`), "keep", or "layer", the layer as it is.
        after_add: whether an activation behind an addition stays, or becomes the layer's pointwise part: the
            formula with every mean 0 and every rms and std 1.
        carry: whether scale, shift, running statistics, eps and momentum go over where they mean the same. A batch
            norm alone then gives an affine with the same output in evaluation.
        example_inputs: positional arguments of the forward; a tensor alone is one.
        options: groups, eps and momentum, for graphs.
        group_size: channels in a group; each norm's channels must be a multiple.

    Returns:
        What was replaced, what was left and why.

    Raises:
        InputError: nothing to replace; a forward that cannot be traced, or fails on the example; a layer that
            cannot serve a norm's layout or channels; an unknown `lone` or `after_add`.

    Warns:
        PostActivationWarning: the model activates a sum that a norm without activation goes into.
    """
    for name, value, known in (
        ("lone", lone, ("affine", "keep", "layer")),
        ("after_add", after_add, ("keep", "pointwise")),
    ):
        if value not in known:
            raise unknown_name(f"{name}=", value, known)
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise InputError(f"a {type(model).__name__} is compiled already and cannot be changed; swap before compiling")
    maker = maker_of(layer, options, group_size)
    with _as_it_was(model, always=True):
        reading = _read(model, example_inputs)
        found = find(reading, model)
        plan = plan_for(found, reading, after_add == "pointwise")
    _check(found, model, lone)
    with _as_it_was(model):
        swap = _Swap(model, maker, None if isinstance(layer, str) or not callable(layer) else graph_of_factory(layer))
        swap.norms(found, reading, lone, carry)
        swap.activations(plan)
        swap.apply()
    return _report(swap, reading, found, plan, lone, after_add)


def _check(found: Found, model: nn.Module, lone: Lone) -> None:
    """Raise where there is nothing to replace."""
    if found.pairs or (lone == "layer" and found.alone):
        return
    start = f"{type(model).__name__} has nothing to replace: "
    if found.left:
        name, why = next(iter(found.left.items()))
        more = f" (and {len(found.left) - 1} more)" if len(found.left) > 1 else ""
        raise InputError(f"{start}{name!r} was left, {why}{more}")
    if found.alone:
        raise InputError(
            f"{start}no activation right behind any of its {len(found.alone)} norms, such as {found.alone[0].name!r}; "
            "lone='layer' puts the layer in place of norms alone"
        )
    raise InputError(f"{start}no {', '.join(norm.__name__ for norm in NORMS)} in it")


class _Swap:
    """Makes all modules first, then puts them in."""

    def __init__(self, model: nn.Module, maker: Maker, graph: Any) -> None:
        self.model, self.maker, self.graph = model, maker, graph
        self.new: dict[nn.Module, nn.Module] = {}
        self.places: dict[tuple[nn.Module, str], nn.Module] = {}
        self.classes: dict[nn.Module, type[nn.Module]] = {}
        self.carried: list[str] = []

    def norms(self, found: Found, reading: Reading, lone: Lone, carry: bool) -> None:
        alone = [] if lone == "keep" else found.alone
        chosen = {pair.module: pair for pair in (*found.pairs, *alone)}
        for module in dict.fromkeys(call.module for call in reading.calls):
            if module not in chosen or module is None:
                continue
            pair = chosen[module]
            activation = bool(pair.act) or lone == "layer"
            new = self.maker.layer(pair.norm.features, pair.layout, activation, pair.name)
            new = _placed(new, module, self.model)
            if carry and carry_over(module, new, self.graph, activation):
                self.carried.append(pair.name)
            self.new[module] = _reshaped(new, pair)

    def activations(self, plan: Plan) -> None:
        self.classes = plan.classes
        for module, like in plan.modules.items():
            self.new[module] = self._instead(module, like)
        for (owner, slot), like in plan.slots.items():
            self.places[owner, slot] = self._instead(owner, like)
        for (owner, name), like in plan.children.items():
            self.places[owner, name] = self._instead(owner, like)

    def _instead(self, old: nn.Module, like: Pair | None) -> nn.Module:
        if like is None:
            return nn.Identity().train(old.training)
        new = self.maker.pointwise(like.norm.features, like.layout, like.name)
        return _reshaped(_placed(new, like.module, self.model).train(old.training), like)

    def apply(self) -> None:
        for (owner, name), new in self.places.items():
            owner._modules[name] = new
        for parent in _plain(self.model):
            for name, child in parent._modules.items():
                if child in self.new:
                    parent._modules[name] = self.new[child]
        for owner, cls in self.classes.items():
            owner.__class__ = cls


def _reshaped(new: nn.Module, pair: Pair) -> nn.Module:
    return ChannelsLast(new).train(new.training) if pair.reshaped else new


def _placed(new: nn.Module, norm: nn.Module, model: nn.Module) -> nn.Module:
    """The new module as the norm was: its device, dtype, mode and whether it is trained."""
    tensors = [*norm.parameters(), *norm.buffers(), *model.parameters()]
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    if (own := list(norm.parameters())) and not any(p.requires_grad for p in own):
        new.requires_grad_(False)
    return new.to(like.device, like.dtype).train(norm.training)


def _read(model: nn.Module, example: Tensor | Sequence[Any] | None) -> Reading:
    """What the model does in both modes.

    Raises:
        InputError: it cannot be read in evaluation.
    """
    reading = Reading("trace" if example is None else "run")
    twin = _copied(model) if example is not None else model
    for training in (False, True):
        part = Reading(reading.how)
        for module in (*_plain(model), *_plain(twin)):
            module.training = training
        try:
            if example is None:
                trace(model, part)
            else:
                with torch.random.fork_rng(_devices(model)):
                    record(twin, model, (example,) if isinstance(example, Tensor) else example, part)
        except Exception as problem:
            if training:
                reading.notes.append(f"read in evaluation alone: in training it fails with {first_line(problem)}")
                continue
            raise _unreadable(model, example is None, problem) from None
        reading.calls += part.calls
        reading.frames += part.frames
    return reading


def _unreadable(model: nn.Module, traced: bool, problem: Exception) -> InputError:
    what = f"the forward of {type(model).__name__}"
    if traced:
        return InputError(
            f"{what} cannot be traced ({first_line(problem)}), so what follows its norms is unknown; "
            "give example_inputs= to read it from a run"
        )
    return InputError(f"{what} fails on example_inputs ({first_line(problem)}); give inputs that it takes")


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as problem:
        raise InputError(
            f"{type(model).__name__} cannot be copied ({first_line(problem)}), and the run with example_inputs is "
            "made on a copy; swap it before its first run, or without example_inputs"
        ) from None


def _plain(model: nn.Module) -> list[nn.Module]:
    """The modules that are Python's; what is scripted cannot be changed anyway."""
    return [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]


def _devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


@contextmanager
def _as_it_was(model: nn.Module, always: bool = False) -> Iterator[None]:
    """Put back, after an error or `always`, every module's class, attributes, parameters, buffers and children."""
    inner = ("_parameters", "_buffers", "_modules")
    kept = [(m, type(m), dict(vars(m)), [dict(vars(m)[name]) for name in inner]) for m in _plain(model)]
    done = False
    try:
        yield
        done = True
    finally:
        for module, cls, attributes, tables in kept if always or not done else ():
            module.__class__ = cls
            vars(module).clear()
            vars(module).update(attributes)
            for name, table in zip(inner, tables, strict=True):
                vars(module)[name].clear()
                vars(module)[name].update(table)


def _lost_hooks(swap: _Swap) -> list[str]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = [module for module in swap.new if any(vars(module).get(kind) for kind in kinds)]
    return [f"the hooks of a {type(module).__name__} went with it; register them anew" for module in hooked]


def _report(swap: _Swap, reading: Reading, found: Found, plan: Plan, lone: Lone, after_add: AfterAdd) -> Report:
    names = {frame.module: frame.name for frame in reading.frames}
    alone = [] if lone == "keep" else found.alone
    left = dict(found.left)
    if lone == "keep":
        left |= {pair.name: "no activation is right behind it, and lone='keep'" for pair in found.alone}
    replaced = [a for a in found.added if after_add == "pointwise" and a.like is not None]
    for added in found.added:
        if added not in replaced:
            left[str(added.act)] = "it is behind an addition" + (
                ", and no norm tells its channels" if after_add == "pointwise" else ", and after_add='keep'"
            )
    notes = [*reading.notes, *_lost_hooks(swap)]
    if found.post_activation:
        notes.append(
            f"{type(swap.model).__name__} is a post-activation model: {found.post_activation[0]} activates a sum of "
            f"normalized terms ({len(found.post_activation)} such place(s)); layers that were searched in "
            "pre-activation models may train badly here"
        )
        warnings.warn(notes[-1], PostActivationWarning, stacklevel=3)
    return Report(
        reading.how,
        tuple((pair.name, pair.act) for pair in found.pairs),
        tuple(pair.name for pair in alone),
        tuple(dict.fromkeys(str(added.act) for added in replaced)),
        tuple(left.items()),
        tuple(names[owner] for owner in plan.classes),
        tuple(swap.carried),
        tuple(pair.name for pair in (*found.pairs, *alone) if pair.reshaped),
        tuple(notes),
    )

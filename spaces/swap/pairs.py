"""Find norm-then-activation pairs, norms alone and activations behind an addition in what a model does."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from torch import nn

from normact.spaces.moments import Layout
from normact.spaces.swap.calls import Call, Reading, Value
from normact.spaces.swap.kinds import Norm, read_norm


@dataclass(eq=False)
class Pair:
    """A norm with the activation behind it, which may differ from use to use; `acts` is empty for a norm alone.

    Args:
        name: of the norm.
        act: the activation, for people.
        layout: of the norm's input.
        reshaped: whether the channels are last on an input that may have any number of axes.
    """

    name: str
    module: nn.Module
    norm: Norm
    acts: list[Call]
    act: str
    layout: Layout
    reshaped: bool


@dataclass(eq=False)
class Added:
    """An activation behind an addition, with the channels and layout of a norm that the sum depends on."""

    act: Call
    like: Pair | None


@dataclass
class Found:
    """All that was found, by kind; `left` says of a name why it must stay."""

    pairs: list[Pair] = field(default_factory=list)
    alone: list[Pair] = field(default_factory=list)
    added: list[Added] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    post_activation: list[str] = field(default_factory=list)


def find(reading: Reading, model: nn.Module) -> Found:
    """Sort the norms and activations of a model."""
    found = Found()
    uses: dict[nn.Module, list[Call]] = defaultdict(list)
    for call in reading.calls:
        if call.kind == "norm" and call.module is not None:
            uses[call.module].append(call)
    for module, calls in uses.items():
        _sort(module, calls, found)
    _unused(model, uses, found)
    known = {pair.module: pair for pair in (*found.pairs, *found.alone)}
    taken = {act for pair in found.pairs for act in pair.acts}
    for call in reading.calls:
        if call.kind == "act" and call not in taken and (terms := _terms(call)) is not None:
            found.added.append(Added(call, _norm_above(call.inputs[0], known)))
            if any(_is_bare_norm(term, known) for term in terms):
                found.post_activation.append(str(call))
    found.post_activation = list(dict.fromkeys(found.post_activation))
    return found


def _sort(module: nn.Module, calls: list[Call], found: Found) -> None:
    norm = read_norm(module)
    assert isinstance(norm, Norm)
    acts = [None if norm.fused else _activation_behind(call) for call in calls]
    name = calls[0].name
    if len({_function_of(act) for act in acts}) > 1:
        found.left[name] = "it is used in two ways, with different activations behind it"
        return
    behind = [act for act in acts if act is not None]
    shapes = {len(call.shape) for call in calls if call.shape is not None}
    layout, reshaped = _layout(module, norm, shapes, calls[0])
    own = f"{name}.act" if isinstance(getattr(module, "act", None), nn.Module) else name
    act = str(behind[0]) if behind else own if norm.fused else ""
    pair = Pair(name, module, norm, behind, act, layout, reshaped)
    (found.pairs if act else found.alone).append(pair)


def _activation_behind(call: Call) -> Call | None:
    """The one use of a norm's output, where that is an activation, or x * sigmoid(x)."""
    users = call.output.users
    acts = [user for user in users if user.kind == "act" and user.inputs[0] is call.output]
    if len(acts) != 1 or len(users) > 2:
        return None
    if len(users) == 1 or is_gated(acts[0]):
        return acts[0]
    return None


def is_gated(act: Call) -> bool:
    """Whether a sigmoid is that of x * sigmoid(x)."""
    x, users = act.inputs[0], act.output.users
    if _function_of(act) != "sigmoid" or len(users) != 1 or users[0].kind != "mul":
        return False
    product = users[0]
    return set(product.inputs) == {x, act.output} and set(x.users) == {act, product}


def _function_of(act: Call | None) -> str:
    if act is None:
        return ""
    return (type(act.module).__name__ if act.module is not None else act.name).replace("_", "").lower()


def _layout(module: nn.Module, norm: Norm, ndims: set[int], call: Call) -> tuple[Layout, bool]:
    """The layout of a norm's input, from its shapes where they are known; and whether to reshape to it."""
    if norm.channels_last:
        exact: dict[int, Layout] = {2: "NC", 3: "NLC"}
        if len(ndims) == 1 and next(iter(ndims)) in exact:
            return exact[next(iter(ndims))], False
        return "NLC", True
    if ndims == {2} and norm.layout == "NCHW":
        return "NC", False
    if norm.layout == "NC" and (ndims == {3} or (not ndims and _behind_conv1d(call))):
        return "NCHW", False
    return norm.layout, False


def _behind_conv1d(call: Call) -> bool:
    """Whether a norm's input comes from a 1-D convolution or pooling, with only activations and the like between."""
    value = call.inputs[0] if call.inputs else None
    while value is not None and value.maker is not None:
        module = value.maker.module
        if module is not None and type(module).__name__.endswith("1d") and not isinstance(module, nn.BatchNorm1d):
            return True
        if isinstance(module, nn.Linear | nn.Flatten) or len(value.maker.inputs) != 1:
            return False
        value = value.maker.inputs[0]
    return False


def _terms(act: Call) -> list[Value] | None:
    """What is added up right before an activation; None where nothing is."""
    maker = act.inputs[0].maker if act.inputs else None
    return maker.inputs if maker is not None and maker.kind == "add" and len(maker.inputs) > 1 else None


def _is_bare_norm(value: Value, known: dict[nn.Module, Pair]) -> bool:
    maker = value.maker
    pair = known.get(maker.module) if maker is not None and maker.module is not None else None
    return pair is not None and not pair.act


def _norm_above(value: Value, known: dict[nn.Module, Pair]) -> Pair | None:
    """The nearest norm that a sum depends on, through additions and what keeps channels."""
    level, seen = [value], {value}
    while level:
        makers = [v.maker for v in level if v.maker is not None]
        for maker in makers:
            if maker.module in known:
                return known[maker.module]
        passing = [m for m in makers if m.kind in ("add", "mul", "act")]
        level = [v for m in passing for v in m.inputs if v not in seen]
        seen.update(level)
    return None


def _unused(model: nn.Module, uses: dict[nn.Module, list[Call]], found: Found) -> None:
    for name, module in model.named_modules():
        norm = read_norm(module)
        if isinstance(norm, str):
            found.left[name] = norm
        elif norm is not None and module not in uses:
            found.left[name] = "it is not used in the forward that was read"

"""Decide how each activation is taken out: by replacing its module, or by rewriting the forward that calls it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from normact.spaces.swap.calls import Call, Frame, Reading
from normact.spaces.swap.pairs import Found, Pair, is_gated
from normact.spaces.swap.rewrite import CannotRewriteError, Edits, rewritten_class


@dataclass
class Plan:
    """What happens to activations. A value of None stands for nothing in their place, a `Pair` for its like.

    Args:
        modules: modules that are replaced wherever they are.
        slots: children of an `nn.Sequential` that are replaced in that place alone.
        classes: modules whose forward is rewritten, with their new class.
        children: what those then call, by owner and name.
        failed: why an activation stays.
    """

    modules: dict[nn.Module, Pair | None] = field(default_factory=dict)
    slots: dict[tuple[nn.Module, str], Pair | None] = field(default_factory=dict)
    classes: dict[nn.Module, type[nn.Module]] = field(default_factory=dict)
    children: dict[tuple[nn.Module, str], Pair] = field(default_factory=dict)
    failed: dict[Call, str] = field(default_factory=dict)


def plan_for(found: Found, reading: Reading, pointwise: bool) -> Plan:
    """The plan for what was found. What cannot be taken out goes, with its norm, from `found` to what is left.

    Args:
        found: changed.
        reading: where it was found.
        pointwise: whether activations behind an addition are replaced too.
    """
    while True:
        wanted: dict[Call, Pair | None] = {act: None for pair in found.pairs for act in pair.acts}
        if pointwise:
            wanted |= {added.act: added.like for added in found.added if added.like is not None}
        plan = _attempt(wanted, reading)
        if not plan.failed:
            return plan
        _leave(found, plan.failed)


def _leave(found: Found, failed: dict[Call, str]) -> None:
    for pair in list(found.pairs):
        if why := next((failed[act] for act in pair.acts if act in failed), ""):
            found.pairs.remove(pair)
            found.left[pair.name] = f"its activation {pair.act} cannot be taken out: {why}"
    for added in list(found.added):
        if why := failed.get(added.act, ""):
            found.added.remove(added)
            found.left[str(added.act)] = why


def _attempt(wanted: dict[Call, Pair | None], reading: Reading) -> Plan:
    plan = Plan()
    rest: dict[Call, Pair | None] = {}
    for module in dict.fromkeys(call.module for call in wanted):
        calls = [call for call in reading.calls if call.kind == "act" and call.module is module]
        if module is None or any(is_gated(call) for call in calls):
            rest |= {call: wanted[call] for call in calls if call in wanted}
        elif _one(calls, wanted):
            plan.modules[module] = wanted[calls[0]]
        else:
            rest |= _to_slots(calls, wanted, plan)
    for owner in dict.fromkeys(call.frame.module for call in rest):
        _rewrite(owner, {call: like for call, like in rest.items() if call.frame.module is owner}, reading, plan)
    return plan


def _one(calls: Iterable[Call], wanted: dict[Call, Pair | None]) -> bool:
    """Whether all of the calls are to become the same."""
    calls = list(calls)
    return all(call in wanted for call in calls) and len({_form(wanted[call]) for call in calls}) == 1


def _form(like: Pair | None) -> tuple[object, ...]:
    return () if like is None else (like.norm.features, like.layout, like.reshaped)


def _to_slots(calls: list[Call], wanted: dict[Call, Pair | None], plan: Plan) -> dict[Call, Pair | None]:
    """Plan the calls whose place in an `nn.Sequential` is theirs alone; returns the others."""
    rest = {}
    for call in calls:
        if call not in wanted:
            continue
        place = (call.frame.module, call.slot)
        here = [other for other in calls if (other.frame.module, other.slot) == place]
        if call.slot and _one(here, wanted):
            plan.slots[place] = wanted[call]
        else:
            rest[call] = wanted[call]
    return rest


def _rewrite(owner: nn.Module, wanted: dict[Call, Pair | None], reading: Reading, plan: Plan) -> None:
    """Plan a new class for the owner of calls, or note why there is none."""
    frames = [frame for frame in reading.frames if frame.module is owner]
    likes: dict[str, Pair] = {}
    try:
        edits = _edits(owner, wanted, frames, likes)
        plan.classes[owner] = rewritten_class(owner, edits, frames)
        plan.children |= {(owner, name): like for name, like in likes.items()}
    except CannotRewriteError as problem:
        where = next(iter(wanted)).frame.name or type(owner).__name__
        why = f"it has to be taken out of the forward of {where}, and {problem}"
        plan.failed |= dict.fromkeys(wanted, why)


def _edits(
    owner: nn.Module, wanted: dict[Call, Pair | None], frames: list[Frame], likes: dict[str, Pair]
) -> dict[bool, Edits]:
    edits: dict[bool, Edits] = {}
    for frame in frames:
        here = {call.ordinal: like for call, like in wanted.items() if call.frame is frame}
        named = {ordinal: _child(owner, ordinal, like, likes) for ordinal, like in here.items()}
        if edits.setdefault(frame.training, named) != named:
            raise CannotRewriteError("it is used in two ways, with different norms")
    if any(len({frame.acts for frame in frames if frame.training is mode}) > 1 for mode in edits):
        raise CannotRewriteError("it takes different ways when it is used")
    return edits


def _child(owner: nn.Module, ordinal: int, like: Pair | None, likes: dict[str, Pair]) -> str:
    if like is None:
        return ""
    name = f"after_add_{ordinal}"
    while hasattr(owner, name):
        name += "_"
    if _form(likes.setdefault(name, like)) != _form(like):
        raise CannotRewriteError("it is used with different numbers of channels")
    return name

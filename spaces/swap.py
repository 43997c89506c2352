"""Put a layer into a model in place of its norm-then-activation pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn

from normact.spaces.errors import InputError
from normact.spaces.moments import Layout
from normact.spaces.site import Site

NORMS: dict[type[nn.Module], Layout] = {
    nn.BatchNorm1d: "NC",
    nn.BatchNorm2d: "NCHW",
    nn.BatchNorm3d: "NCHW",
    nn.GroupNorm: "NCHW",
    nn.InstanceNorm2d: "NCHW",
    nn.LayerNorm: "NLC",
}
"""The norms that are found, and the layout in which each is met."""

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.SiLU, nn.GELU, nn.Mish, nn.ELU, nn.CELU, nn.SELU,
    nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.Sigmoid, nn.LogSigmoid, nn.Tanh,
)  # fmt: skip

_FUNCTIONS = {kind.__name__.lower() for kind in (*ACTIVATIONS, nn.ReLU6)}
"""The same as functions and tensor methods, without underscores: behind a norm, they cannot be taken out."""


@dataclass(frozen=True)
class Replaced:
    """What a swap did: names of the norms replaced with their activation, and of those replaced alone."""

    pairs: tuple[tuple[str, str], ...]
    norms: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """A norm and the activation behind it, with their names; no activation for a norm alone."""

    name: str
    norm: nn.Module
    act_name: str = ""
    act: nn.Module | None = None


def replace_layers(model: nn.Module, make: Callable[[Site], nn.Module]) -> Replaced:
    """Replace, in place, each norm together with the activation right behind it, and each norm that has none.

    What follows what is read from the flow of data (`torch.fx`), not from the order of attributes. A norm alone
    gets a site with `activation=False`. An activation module that serves several norms, and nothing else, goes
    with each of them. Refused, because it would silently become another model: an activation module that is
    used behind a norm and elsewhere too (such as the one `relu` of torchvision's residual blocks, which also
    follows the addition); a norm that is used in two ways; an activation that is a function call behind a norm;
    a model whose `forward` cannot be traced.

    Args:
        model: changed in place; after an error it is as it was.
        make: gives the module for a site; called once per norm, in the order of the flow of data. The module
            goes to the norm's device, dtype and mode.

    Returns:
        What was replaced.

    Raises:
        InputError: one of the cases above, no norm that is known, no norm with an activation, or a layer norm
            over several axes.
    """
    found = _find(model)
    if not any(f.act for f in found):
        known = ", ".join(norm.__name__ for norm in NORMS)
        raise InputError(
            f"{type(model).__name__} has nothing to replace: no {known} with an activation module behind it"
        )
    new = {f.norm: _placed(make(_site(index, f)), f.norm, model) for index, f in enumerate(found)}
    new |= {f.act: nn.Identity().train(f.act.training) for f in found if f.act is not None}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                setattr(parent, name, new[child])
    pairs = tuple((f.name, f.act_name) for f in found if f.act)
    return Replaced(pairs, tuple(f.name for f in found if not f.act))


class _Tracer(fx.Tracer):
    """Goes into modules that hold norms or activations, and takes all others as they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = (*NORMS, *ACTIVATIONS)
        return isinstance(m, ours) or not any(isinstance(inner, ours) for inner in m.modules())


def _find(model: nn.Module) -> list[_Found]:
    try:
        graph = _Tracer().trace(model)
    except Exception as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise InputError(
            f"the forward of {type(model).__name__} cannot be traced ({reason[:200]}), so what follows its norms "
            "is unknown; write an anchor function that asks for its sites"
        ) from None
    modules = {node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    found: dict[nn.Module, _Found] = {}
    taken: Counter[nn.Module] = Counter()
    for node, norm in modules.items():
        if type(norm) not in NORMS:
            continue
        behind = _activation_behind(node, modules)
        act = modules[behind] if behind is not None else None
        here = _Found(str(node.target), norm, str(behind.target) if behind is not None else "", act)
        if found.setdefault(norm, here) != here:
            raise InputError(f"norm {here.name!r} is used in two ways; give each use a norm of its own")
        if act is not None:
            taken[act] += 1
    uses = Counter(modules.values())
    for f in found.values():
        if f.act is not None and uses[f.act] > taken[f.act]:
            raise InputError(
                f"activation {f.act_name!r} is used behind norm {f.name!r} and elsewhere too, so it can be neither "
                "kept nor taken out; give each use an activation module of its own"
            )
    return list(found.values())


def _activation_behind(node: fx.Node, modules: dict[fx.Node, nn.Module]) -> fx.Node | None:
    """The one use of a norm's output, where that is an activation module."""
    users = list(node.users)
    while len(users) == 1 and isinstance(modules.get(users[0]), nn.Identity):
        users = list(users[0].users)
    for user in users:
        called = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
        if user.op in ("call_function", "call_method") and called.replace("_", "") in _FUNCTIONS:
            raise InputError(
                f"norm {node.target!r} is followed by the function {called}, which cannot be taken out; "
                "use an activation module, such as nn.ReLU()"
            )
    return users[0] if len(users) == 1 and isinstance(modules.get(users[0]), ACTIVATIONS) else None


def _site(index: int, found: _Found) -> Site:
    norm = found.norm
    if isinstance(norm, nn.LayerNorm) and len(norm.normalized_shape) > 1:
        raise InputError(f"norm {found.name!r} is over several axes {norm.normalized_shape}: no site is like that")
    sizes = {name: getattr(norm, name, None) for name in ("num_features", "num_channels", "normalized_shape")}
    size = next(value for value in sizes.values() if value is not None)
    features = size[0] if isinstance(size, tuple) else size
    return Site("norm_act", index, features, layout=NORMS[type(norm)], activation=found.act is not None)


def _placed(new: nn.Module, norm: nn.Module, model: nn.Module) -> nn.Module:
    """The new module, where the norm was: its device, dtype and mode."""
    tensors = [*norm.parameters(), *norm.buffers(), *model.parameters()]
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    return new.to(like.device, like.dtype).train(norm.training)

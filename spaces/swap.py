"""Put a layer into a model in place of its norm-then-activation pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

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
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Mish, nn.ELU, nn.SELU, nn.Hardswish, nn.Softplus,
    nn.Sigmoid, nn.Tanh,
)  # fmt: skip


@dataclass(frozen=True)
class Replaced:
    """What a swap did: names of the norms replaced with their activation, and of those replaced alone."""

    pairs: tuple[tuple[str, str], ...]
    norms: tuple[str, ...]


def replace_layers(model: nn.Module, make: Callable[[Site], nn.Module]) -> Replaced:
    """Replace, in place, each norm that is directly followed by an activation, and each norm alone.

    "Followed" goes by the order in which modules were assigned, in a `nn.Sequential` or as attributes of one
    module. A norm alone gets a site with `activation=False`. An activation module that several norms share is
    replaced by nothing for each of them only if it is used for norms alone, which cannot be seen from here:
    models whose `forward` differs from the order of assignment need a factory of their own.

    Args:
        model: changed in place, unless there is nothing to replace.
        make: gives the module for a site; called once per norm, in the order of `named_modules`.

    Returns:
        What was replaced.

    Raises:
        InputError: the model has no norm that is known; it is left as it was.
    """
    found = _find(model)
    if not found:
        known = ", ".join(norm.__name__ for norm in NORMS)
        raise InputError(f"{type(model).__name__} has nothing to replace: none of {known} is in it")
    pairs, alone = [], []
    for index, (parent, path, norm_name, act_name) in enumerate(found):
        norm = getattr(parent, norm_name)
        features = _features(norm)
        site = Site("norm_act", index, features, layout=NORMS[type(norm)], activation=act_name is not None)
        setattr(parent, norm_name, make(site).train(norm.training))
        prefix = f"{path}." if path else ""
        if act_name is None:
            alone.append(prefix + norm_name)
        else:
            setattr(parent, act_name, nn.Identity())
            pairs.append((prefix + norm_name, prefix + act_name))
    return Replaced(tuple(pairs), tuple(alone))


def _find(model: nn.Module) -> list[tuple[nn.Module, str, str, str | None]]:
    found: list[tuple[nn.Module, str, str, str | None]] = []
    for path, parent in model.named_modules():
        children = list(parent.named_children())
        for place, (name, child) in enumerate(children):
            if type(child) not in NORMS:
                continue
            after = children[place + 1] if place + 1 < len(children) else None
            act = after[0] if after and isinstance(after[1], ACTIVATIONS) else None
            found.append((parent, path, name, act))
    return found


def _features(norm: nn.Module) -> int:
    for attribute in ("num_features", "num_channels"):
        if (features := getattr(norm, attribute, None)) is not None:
            return int(features)
    return int(norm.normalized_shape[-1])  # type: ignore[index]

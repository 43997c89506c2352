"""What makes the new modules: a layer graph, a factory function, or a callable that is asked for each site."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor, nn

from normact.spaces.catalogue import read_layer
from normact.spaces.errors import InputError
from normact.spaces.graph import LayerGraph
from normact.spaces.layer import ChannelAffine, GraphLayer, LayerOptions
from normact.spaces.moments import Layout
from normact.spaces.site import Site
from normact.spaces.swap.pointwise import pointwise_part
from normact.spaces.text import parse

Layer = LayerGraph | str | Callable[..., nn.Module]
"""What `replace_layers` takes."""


class Maker(Protocol):
    """Gives the modules of a swap; each may raise an `InputError`."""

    def layer(self, features: int, layout: Layout, activation: bool, name: str) -> nn.Module:
        """What stands in place of the norm of that name."""
        ...

    def pointwise(self, features: int, layout: Layout, name: str) -> nn.Module:
        """What stands in place of the activation of that name."""
        ...


def maker_of(layer: Layer, options: LayerOptions | None, group_size: int | None) -> Maker:
    """The maker for what a person gave.

    Raises:
        InputError: it is nothing that makes a layer, or comes with arguments that it has no use for.
    """
    if isinstance(layer, str):
        layer = read_layer(layer)
    if isinstance(layer, LayerGraph):
        return GraphMaker(layer, options or LayerOptions(), group_size)
    if not callable(layer) or isinstance(layer, nn.Module):
        raise InputError(
            f"a layer is a LayerGraph, an expression, a catalogue name or a function, got {type(layer).__name__}"
        )
    if options is not None:
        raise InputError("options= is for layer graphs; give a function its arguments with functools.partial")
    names = _parameters(layer)
    if "apply_act" in names:
        return FactoryMaker(layer, group_size)
    if names[:1] and names[0] in ("num_features", "num_channels", "normalized_shape"):
        raise InputError(
            f"{_name(layer)} takes {names[0]} but no apply_act: it is a norm or an activation alone; "
            "give a function f(num_features, apply_act=True, **kw), such as an exported file's"
        )
    if group_size is not None:
        raise InputError("group_size= is for layer graphs and factories; a function of a site decides by itself")
    return SiteMaker(layer)


def _parameters(layer: Callable[..., nn.Module]) -> list[str]:
    try:
        return list(inspect.signature(layer).parameters)
    except (TypeError, ValueError):
        return []


def _name(layer: object) -> str:
    while isinstance(layer, functools.partial):
        layer = layer.func
    return getattr(layer, "__name__", type(layer).__name__)


class GraphMaker:
    """Layers that interpret a graph; where no activation follows a norm, a per-channel affine."""

    def __init__(self, graph: LayerGraph, options: LayerOptions, group_size: int | None) -> None:
        self.graph, self.options, self.group_size = graph, options, group_size

    def layer(self, features: int, layout: Layout, activation: bool, name: str) -> nn.Module:
        if not activation:
            return ChannelAffine(features, layout)
        options = self.options
        if self.group_size is not None:
            if self.group_size < 1 or features % self.group_size:
                raise InputError(
                    f"group_size={self.group_size} does not divide the {features} channels of norm {name!r}; "
                    "choose a divisor, or give a number of groups"
                )
            options = replace(options, groups=features // self.group_size)
        try:
            return GraphLayer(self.graph, features, layout, options)
        except InputError as problem:
            raise InputError(f"the layer cannot stand at norm {name!r}: {problem}") from None

    def pointwise(self, features: int, layout: Layout, name: str) -> nn.Module:
        return GraphLayer(pointwise_part(self.graph), features, layout, self.options)


class FactoryMaker:
    """Layers from a function in timm's conventions: f(num_features, apply_act=True, **kw), also with layout=."""

    def __init__(self, factory: Callable[..., nn.Module], group_size: int | None) -> None:
        self.factory, self.group_size = factory, group_size

    def layer(self, features: int, layout: Layout, activation: bool, name: str) -> nn.Module:
        kw: dict[str, Any] = {} if layout == "NCHW" else {"layout": layout}
        if self.group_size is not None:
            kw["group_size"] = self.group_size
        where = f"{_name(self.factory)} cannot stand at norm {name!r} ({features} channels, {layout})"
        try:
            module = self.factory(features, apply_act=activation, **kw)
        except (ValueError, TypeError, AssertionError) as problem:
            message = (str(problem).splitlines() or [type(problem).__name__])[0]
            raise InputError(f"{where}: {message}") from problem
        if not isinstance(module, nn.Module):
            raise InputError(f"{where}: it gave a {type(module).__name__}, not a torch module")
        if getattr(module, "layout", "NCHW") != layout:
            raise InputError(f"{where}: it serves NCHW alone, for it knows no layout={layout!r}")
        return module

    def pointwise(self, features: int, layout: Layout, name: str) -> nn.Module:
        graph = graph_of_factory(self.factory)
        if graph is None:
            raise InputError(
                f"after_add='pointwise' needs the layer's formula, which {_name(self.factory)} does not tell; "
                "give the expression itself, or use after_add='keep'"
            )
        return GraphLayer(pointwise_part(graph), features, layout)


class SiteMaker:
    """Layers from a callable that is given a `Site`, as anchors use it; sites are numbered as they are asked for."""

    def __init__(self, make: Callable[[Site], nn.Module]) -> None:
        self.make, self.sites = make, 0

    def layer(self, features: int, layout: Layout, activation: bool, name: str) -> nn.Module:
        return self._next(Site("norm_act", self.sites, features, layout=layout, activation=activation))

    def pointwise(self, features: int, layout: Layout, name: str) -> nn.Module:
        return self._next(Site("act", self.sites, features, layout=layout))

    def _next(self, site: Site) -> nn.Module:
        self.sites += 1
        module = self.make(site)
        if not isinstance(module, nn.Module):
            raise InputError(f"for site {site.index} came a {type(module).__name__}, not a torch module")
        return module


def graph_of_factory(factory: Callable[..., nn.Module]) -> LayerGraph | None:
    """The graph of an exported file's function, from the expression in the file's docstring; None for others."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    doc = getattr(factory, "__globals__", {}).get("__doc__") or ""
    found = re.search(r"^expression: (.*?)(?:\n\s*\n|\Z)", doc, re.DOTALL | re.MULTILINE)
    try:
        return parse(" ".join(found[1].split())) if found else None
    except InputError:
        return None


class ChannelsLast(nn.Module):
    """A layer for tokens, (batch, length, channels), on an input (batch, ..., channels) of any number of axes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        y: Tensor = self.layer(x.reshape(shape[0], math.prod(shape[1:-1]), shape[-1]))
        return y.reshape(shape)

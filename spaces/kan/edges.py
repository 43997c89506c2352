"""The edges of KAN layers as curves: what each input adds to each output, and which add most."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normact.spaces.errors import InputError
from normact.spaces.kan.af import AFKANLayer
from normact.spaces.kan.basis import WIDE
from normact.spaces.kan.combine import FORMS
from normact.spaces.kan.elementary import Array
from normact.spaces.kan.layer import BASE_ACTIVATIONS, KANLayer
from normact.spaces.kan.node import NodeLayer
from normact.spaces.kan.pruned import PrunedKANLayer, Term
from normact.spaces.kan.selectable import SelectableKANLayer

POINTS = 257
"""Of a curve."""

MOST_ROWS = 512
"""Rows of a layer's input that its edges are measured on."""

Layer = KANLayer | AFKANLayer | SelectableKANLayer | PrunedKANLayer | NodeLayer
LAYERS = (KANLayer, AFKANLayer, SelectableKANLayer, PrunedKANLayer, NodeLayer)


@dataclass(frozen=True)
class EdgeCurve:
    """One edge on a grid.

    Args:
        input: number of the input.
        output: number of the output.
        variable: `x`, the input as it is, where the layer's normalizer treats each input apart; `u`, the input behind
            the normalizer, where that looks at the other inputs too (a layer norm).
        points: (N,) values of the variable.
        values: (N,) what the edge adds to the output, up to a constant that the bias takes.
        std: standard deviation of what it adds, base branch and all, over the inputs it was measured on; not a number
            where it was measured on none.
        base: where the variable is `u`, the base branch's part, which is a function of x and not in `values`, such as
            `0.5*silu(x)`; else empty.
    """

    input: int
    output: int
    variable: str
    points: Array
    values: Array
    std: float = float("nan")
    base: str = ""


@dataclass(frozen=True)
class LayerEdges:
    """The strongest edges of one layer of a model, or why there are none.

    Args:
        name: of the layer in the model.
        kind: its class.
        edges: strongest first.
        remark: why edges cannot be read, or that a norm follows them; else empty.
    """

    name: str
    kind: str
    edges: tuple[EdgeCurve, ...]
    remark: str = ""


@dataclass(frozen=True)
class Edges:
    """A layer as y_o = sum_i phi_oi + bias_o: phi_oi = sum_p C[o, p, i] planes_p(u_i) + W[o, i] act(x_i).

    Args:
        normalizer: gives u from x, both (..., I).
        planes: (N, I) to (N, P, I), each input apart.
        coefficients: (O, P, I).
        base: name of the base branch's activation; `none` where there is no such branch.
        base_weight: (O, I) of the base branch; 0 where there is none.
        reach: how far from 0 the grids of the layer's bases go.
    """

    normalizer: nn.Module
    planes: Callable[[Tensor], Tensor]
    coefficients: Tensor
    base: str
    base_weight: Tensor
    reach: float

    @property
    def apart(self) -> bool:
        """Whether u_i depends on x_i alone, so that an edge is a function of its input."""
        norms = [m for m in self.normalizer.modules() if isinstance(m, nn.LayerNorm)]
        return self.base_weight.shape[1] == 1 or not norms

    @torch.no_grad()
    def features(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """(N, P + 1, I): the planes at x (N, I), or at u where that is given, and the base branch at x."""
        planes = self.planes(self.normalizer(x) if u is None else u)
        base = torch.zeros_like(x) if self.base == "none" else BASE_ACTIVATIONS[self.base](x)
        return torch.cat([planes, base.unsqueeze(1)], 1)

    @property
    def weights(self) -> Tensor:
        """(O, P + 1, I), of the features."""
        return torch.cat([self.coefficients, self.base_weight.unsqueeze(1)], 1)

    @torch.no_grad()
    def std(self, x: Tensor) -> Tensor:
        """(O, I): the standard deviation of each edge over rows x (N, I)."""
        features = self.features(x)
        features = (features - features.mean(0)).permute(2, 1, 0)  # (I, P + 1, N)
        covariance = features @ features.transpose(1, 2) / features.shape[2]
        weights = self.weights.permute(2, 0, 1)  # (I, O, P + 1)
        return (weights @ covariance * weights).sum(2).clamp_min(0).sqrt().T

    @torch.no_grad()
    def curve(self, input: int, output: int, span: tuple[float, float] | None = None) -> EdgeCurve:
        """One edge over a range of its variable, by default where the layer expects it; see `EdgeCurve`.

        Raises:
            InputError: there is no such edge.
        """
        outputs, inputs = self.base_weight.shape
        if not 0 <= input < inputs or not 0 <= output < outputs:
            raise InputError(
                f"there is no edge from {input} to {output}: the layer has {inputs} inputs and {outputs} outputs"
            )
        reach = WIDE if self.apart else self.reach
        low, high = span or (-reach, reach)
        grid = torch.linspace(low, high, POINTS, dtype=torch.float64)
        rows = grid.unsqueeze(1).expand(-1, inputs)
        features = self.features(rows) if self.apart else self.features(rows, rows)
        weights = self.weights[output, :, input].clone()
        base = ""
        if not self.apart and self.base != "none":
            base, weights[-1] = f"{float(weights[-1])!r}*{self.base}(x)", 0.0
        values = features[:, :, input] @ weights
        return EdgeCurve(input, output, "x" if self.apart else "u", grid.numpy(), values.numpy(), base=base)


def edges_of(layer: nn.Module) -> Edges:
    """The edges of a `KANLinear`, a `NodeLinear`, a pruned S-KAN layer, or an S-KAN layer as it would be pruned.

    They are of a copy in float64 and in evaluation, before the layer's norm of the output, if it has one.

    Raises:
        InputError: the layer is no sum of functions of one input each, or is none of ours.
    """
    if not isinstance(layer, LAYERS):
        raise InputError(
            f"{type(layer).__name__} is no KAN layer; those whose edges are read are KANLinear, "
            "NodeLinear, SelectableKANLinear and what is pruned of it"
        )
    if reason := _unreadable(layer):
        raise InputError(f"the edges of {type(layer).__name__} cannot be read: {reason}")
    layer = copy.deepcopy(layer).to("cpu", torch.float64).eval()
    if isinstance(layer, SelectableKANLayer):
        layer = layer.prune().eval()
    if isinstance(layer, NodeLayer):
        return _of_node(layer)
    return _of_pruned(layer) if isinstance(layer, PrunedKANLayer) else _of_kan(layer)  # type: ignore[arg-type]


def _unreadable(layer: Layer) -> str:
    if layer.mixing.conv is not None:
        return "each of a convolution's is a kernel of functions"
    if isinstance(layer, AFKANLayer):
        return "AF-KAN normalizes and weighs all inputs together, so that no output is a sum of functions of one each"
    if isinstance(layer, KANLayer) and layer.combine in FORMS and layer.combine not in ("mean", "concat"):
        return f"with combine={layer.combine} no output is a sum of functions of one input each"
    return ""


def _of_kan(layer: KANLayer) -> Edges:
    bases: Sequence[Any] = list(layer.bases)
    inputs = layer.mixing.inputs
    weights = [weight.detach().unflatten(1, (-1, inputs)) for weight in layer.weights]
    if layer.combine in FORMS:
        own, rest = weights[: len(bases)], weights[len(bases) :]
        base = rest[0][:, 0] if rest else torch.zeros_like(weights[0][:, 0])
        if layer.combine == "mean":
            own = [weight / len(bases) for weight in own]
        else:
            own, outputs = _blocks(own), layer.mixing.outputs
            base = rest[0][:, 0] if rest else torch.zeros(outputs, inputs, dtype=torch.float64)
        coefficients = torch.cat(own, 1)
    else:
        has_base = layer.base != "none"
        coefficients = weights[0][:, :-1] if has_base else weights[0]
        base = weights[0][:, -1] if has_base else torch.zeros_like(weights[0][:, 0])

    def planes(u: Tensor) -> Tensor:
        found = [basis.planes(u) for basis in bases]
        return torch.stack(found).sum(0) if layer.combine == "shared" else torch.cat(found, -2)

    return Edges(layer.normalizer, planes, coefficients, layer.base, base, bases[0].reach)


def _blocks(weights: Sequence[Tensor]) -> list[Tensor]:
    """Each family's weights of its own outputs, with zeros for the others': in a concatenation."""
    outputs = sum(len(weight) for weight in weights)
    found, start = [], 0
    for weight in weights:
        block = weight.new_zeros(outputs, *weight.shape[1:])
        block[start : start + len(weight)] = weight
        found.append(block)
        start += len(weight)
    return found


def _of_pruned(layer: PrunedKANLayer) -> Edges:
    terms: Sequence[Term] = list(layer.terms)  # type: ignore[arg-type]
    inputs, outputs = layer.mixing.inputs, layer.mixing.outputs
    base = torch.zeros(outputs, inputs, dtype=torch.float64)
    blocks: list[Tensor] = []
    bases: list[Any] = []
    for term in terms:
        rows = torch.arange(outputs) if term.outputs is None else term.outputs
        own: Sequence[Any] = list(term.bases)
        picks = [term.inputs(number) for number in range(len(own))]
        places = [torch.arange(inputs) if pick is None else pick for pick in picks]
        widths = [basis.size * len(place) for basis, place in zip(own, places, strict=True)]
        parts = term.weight.detach().split([*widths, term.weight.shape[1] - sum(widths)], 1)
        for basis, place, part in zip(own, places, parts, strict=False):
            block = part.new_zeros(outputs, basis.size, inputs)
            block[rows[:, None, None], torch.arange(basis.size)[:, None], place] = part.unflatten(1, (basis.size, -1))
            blocks.append(block)
            bases.append(basis)
        if term.base:
            base[rows] += parts[-1]
    coefficients = torch.cat(blocks, 1) if blocks else base.new_zeros(outputs, 0, inputs)

    def planes(u: Tensor) -> Tensor:
        return torch.cat([basis.planes(u) for basis in bases] or [u.new_zeros(len(u), 0, inputs)], -2)

    reach = bases[0].reach if bases else WIDE
    return Edges(layer.normalizer, planes, coefficients, layer.base, base, reach)


def _of_node(layer: NodeLayer) -> Edges:
    def planes(u: Tensor) -> Tensor:
        return layer.activation(u).unsqueeze(-2)

    weight = layer.weight.detach()
    reach = layer.activation.basis.reach
    return Edges(layer.normalizer, planes, weight.unsqueeze(1), "none", torch.zeros_like(weight), reach)


def strongest_edges(model: nn.Module, count: int, x: Tensor) -> list[LayerEdges]:
    """Of each KAN layer of a model, in the order of its modules, the edges that move their output most.

    Measured where the data take them: over x, in evaluation, in float64; a curve runs from the 0.5% to the 99.5%
    quantile of its variable. The model is left as it is.

    Args:
        model: trained.
        count: edges of each layer, at least 1.
        x: inputs of the model.

    Raises:
        InputError: the model has no KAN layer.
    """
    model = copy.deepcopy(model).to("cpu", torch.float64).eval()
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LAYERS)]
    if not layers:
        raise InputError(f"{type(model).__name__} has no KAN layer whose edges could be read")
    seen: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.setdefault(module, arguments[0].detach())

    hooks = [module.register_forward_pre_hook(record) for _, module in layers]
    with torch.no_grad():
        model(x.to("cpu", torch.float64))
    for hook in hooks:
        hook.remove()
    return [_strongest(name, module, count, seen.get(module)) for name, module in layers]


def _strongest(name: str, layer: nn.Module, count: int, x: Tensor | None) -> LayerEdges:
    kind = type(layer).__name__
    try:
        edges = edges_of(layer)
    except InputError as problem:
        return LayerEdges(name, kind, (), str(problem))
    if x is None:
        return LayerEdges(name, kind, (), "the model does not use the layer")
    rows = x.reshape(-1, x.shape[-1])
    rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).long()]
    std = edges.std(rows)
    with torch.no_grad():
        variable = rows if edges.apart else edges.normalizer(rows)
    found = []
    for index in std.flatten().argsort(descending=True, stable=True)[:count].tolist():
        output, number = divmod(index, std.shape[1])
        low, high = np.quantile(variable[:, number].numpy(), [0.005, 0.995])
        span = (float(low), float(high)) if high > low else None
        curve = edges.curve(number, output, span)
        found.append(EdgeCurve(**{**vars(curve), "std": float(std[output, number])}))
    followed = not isinstance(layer.post, nn.Identity)
    return LayerEdges(name, kind, tuple(found), "a norm follows the sum of the edges" if followed else "")

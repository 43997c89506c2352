"""Known layers as graphs, by name: baselines, seeds for a search, golden tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from normact.spaces.errors import unknown_name
from normact.spaces.graph import LayerGraph
from normact.spaces.text import parse


def _standardized(index_set: str) -> str:
    return f"div(add(x, neg({index_set}_mean(x))), {index_set}_std(x))"


def _affine_of(inner: str) -> str:
    return f"add(mul(v1, {inner}), v0)"


@dataclass(frozen=True)
class NamedLayer:
    """A known layer.

    Args:
        name: as it is asked for.
        expression: the graph as text.
        source: where the formula is from.
    """

    name: str
    expression: str
    source: str

    @cached_property
    def graph(self) -> LayerGraph:
        """The expression, read."""
        return parse(self.expression)


_BN = _affine_of(_standardized("batch"))
_GN = _affine_of(_standardized("group"))
_LN = _affine_of(_standardized("channel"))
_ONE = "exp(zero)"
_EVONORM = "Liu et al., Evolving Normalization-Activation Layers, arXiv 2004.02967; as in timm's evo_norm.py"
_BATCH = "Ioffe and Szegedy, Batch Normalization, arXiv 1502.03167"
_GROUP = "Wu and He, Group Normalization, arXiv 1803.08494"
_PRELU = "add(max({y}, zero), neg(mul(s0.25, max(neg({y}), zero))))"
_CRRELU = "add(max({y}, zero), mul(s0.01, mul({y}, exp(neg(div(square({y}), add({one}, {one})))))))"
_FOUND = "add(max({y}, zero), mul(s0.01, mul({y}, exp(layer_std(max({y}, zero))))))"

CATALOGUE: dict[str, NamedLayer] = {
    layer.name: layer
    for layer in (
        NamedLayer("bn_relu", f"max({_BN}, zero)", _BATCH),
        NamedLayer("bn_prelu", _PRELU.format(y=_BN), f"{_BATCH}; PReLU, of one slope from 1/4: arXiv 1502.01852"),
        NamedLayer("bn_silu", f"silu({_BN})", f"{_BATCH}; SiLU: arXiv 1702.03118"),
        NamedLayer("gn_relu", f"max({_GN}, zero)", _GROUP),
        NamedLayer("gn_silu", f"silu({_GN})", f"{_GROUP}; SiLU: arXiv 1702.03118"),
        NamedLayer("ln_gelu", f"gelu({_LN})", "Ba et al., arXiv 1607.06450, over channels; GELU: arXiv 1606.08415"),
        NamedLayer(
            "frn_tlu",
            f"max({_affine_of('div(x, instance_rms(x))')}, v0_2)",
            "Singh and Krishnan, Filter Response Normalization, arXiv 1911.09737",
        ),
        NamedLayer(
            "evonorm_b0",
            "affine(div(x, max(batch_std(x), add(mul(v1, x), instance_std(x)))))",
            _EVONORM,
        ),
        NamedLayer(
            "evonorm_b1",
            f"affine(div(x, max(batch_std(x), mul(add(x, {_ONE}), instance_rms(x)))))",
            _EVONORM,
        ),
        NamedLayer("evonorm_b2", "affine(div(x, max(batch_std(x), add(instance_rms(x), neg(x)))))", _EVONORM),
        NamedLayer("evonorm_s0", "affine(div(mul(x, sigmoid(mul(v1, x))), group_std(x)))", _EVONORM),
        NamedLayer("evonorm_s1", "affine(div(mul(x, sigmoid(x)), group_std(x)))", _EVONORM),
        NamedLayer("evonorm_s2", "affine(div(mul(x, sigmoid(x)), group_rms(x)))", _EVONORM),
        NamedLayer(
            "bn_crrelu",
            _CRRELU.format(y=_BN, one=_ONE),
            "CRReLU, arXiv 2405.12954: max(0, y) + eps y exp(-y^2 / 2), eps trainable from 0.01; after BN",
        ),
        NamedLayer(
            "normact_b0",
            _FOUND.format(y=_BN),
            "found by a search of ours, from bn_crrelu: max(0, y) + s y exp(std of max(0, y) over the example), s "
            "trainable from 0.01, after BN; README, What it finds",
        ),
    )
}


def named(name: str) -> NamedLayer:
    """The layer of that name.

    Raises:
        InputError: the catalogue has none; the message gives the nearest name.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        raise unknown_name("layer", name, CATALOGUE) from None


def read_layer(text: str) -> LayerGraph:
    """A catalogue name or an expression, read.

    Raises:
        InputError: it is neither.
    """
    return named(text).graph if text.isidentifier() and text not in ("x", "zero") else parse(text)

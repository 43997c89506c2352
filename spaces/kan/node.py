"""A learnable activation on each node: an MLP's or a conv net's, where a KAN has one on each edge."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from normact.spaces.errors import InputError, unknown_name
from normact.spaces.kan.layer import BASE_ACTIVATIONS, QUANTILES, Family, make_basis
from normact.spaces.kan.mixing import Mixing
from normact.spaces.kan.normalizers import POST_NORMS, make_normalizer
from normact.spaces.kan.packed import pack
from normact.spaces.layer import ChannelAffine, check_shape
from normact.spaces.moments import Layout
from normact.spaces.site import Conv

NORM_ALONE = {"layer_tanh": "layer", "batch_tanh": "batch", "tanh": "none", "clamp": "none"}
"""What is left of a normalizer where no activation follows that would need its bounds."""

SHARING = ("layer", "channel")
"""Whether all channels have one function, or each its own."""


class NodeActivation(nn.Module):
    """phi(x) = act(x) + sum_k c_k b_k(x), elementwise on (..., I); c = 0 at the start, so that it starts as `act`.

    A family that is one function with parameters of its own (`rational`, `graph`) is taken as it is: phi(x) = b(x).
    (An MLP with a learnable spline as its activation is what matches KANs in arXiv 2407.16674.)

    Args:
        features: I.
        family: a basis family, see `layer.Family`.
        normalizer: that the inputs have been through; decides where a grid lies.
        sharing: `layer`: one function; `channel`: one each.
        start: the activation to start from.

    Raises:
        InputError: an unknown name, or a family that the normalizer does not suit.
    """

    def __init__(
        self, features: int, family: Family, normalizer: str = "layer", sharing: str = "channel", start: str = "silu"
    ) -> None:
        super().__init__()
        if sharing not in SHARING:
            raise unknown_name("sharing", sharing, SHARING)
        if start not in BASE_ACTIVATIONS:
            raise unknown_name("activation", start, BASE_ACTIVATIONS)
        self.basis = make_basis(family, features, normalizer)
        self.start = start
        self.sharing = sharing
        self.register_parameter("coefficients", None)
        if self.basis.size > 1:
            count = self.basis.size * (features if sharing == "channel" else 1)
            self.coefficients = nn.Parameter(torch.zeros(count))  # one axis: recipes decay it no more than a bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., I), in x's dtype; computed in float32 at least."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            planes = pack([self.basis], wide, None)
            if self.coefficients is None:
                return planes.squeeze(-2).to(x.dtype)
            columns = self.coefficients.view(self.basis.size, -1)
            return (BASE_ACTIVATIONS[self.start](wide) + (columns * planes).sum(-2)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"start={self.start}, sharing={self.sharing}"


class NodeLayer(nn.Module):
    """y = post(W phi(norm(x)) + bias): normalizer, learnable activation, then an ordinary map. Channels last.

    At its start the output for standard normal inputs has about variance 1.

    Args:
        mixing: widths, and a convolution's arguments.
        family: of the activation, see `NodeActivation`.
        normalizer: before the activation.
        sharing: of `NodeActivation`.
        start: of `NodeActivation`.
        post: norm of the output: `none`, `layer` or `batch`.

    Raises:
        InputError: as `NodeActivation` does, or an unknown norm.
    """

    def __init__(
        self,
        mixing: Mixing,
        family: Family,
        normalizer: str = "layer",
        sharing: str = "channel",
        start: str = "silu",
        post: str = "none",
    ) -> None:
        super().__init__()
        if post not in POST_NORMS:
            raise unknown_name("post norm", post, POST_NORMS)
        self.mixing = mixing
        self.normalizer = make_normalizer(normalizer, mixing.inputs)
        self.activation = NodeActivation(mixing.inputs, family, normalizer, sharing, start)
        self.weight = nn.Parameter(torch.empty(mixing.weight_shape(1)))
        self.bias = nn.Parameter(torch.zeros(mixing.outputs))
        self.post = make_normalizer(post, mixing.outputs)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weight anew, so that the output has about variance 1 for standard normal inputs."""
        normal = torch.special.ndtri((torch.arange(QUANTILES) + 0.5) / QUANTILES)
        x = normal.unsqueeze(1).expand(-1, self.mixing.inputs)
        energy = float(self.activation(x).square().mean())
        self.weight.normal_().mul_((self.mixing.fan * max(energy, 1e-12)) ** -0.5)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O), in x's dtype; under autocast in its dtype."""
        if x.shape[-1] != self.mixing.inputs:
            raise InputError(f"expected {self.mixing.inputs} features in the last axis, got shape {tuple(x.shape)}")
        phi = self.activation(self.normalizer(x))
        return self.post(self.mixing(phi.to(self.weight.dtype), self.weight, self.bias))


class NodeLinear(NodeLayer):
    """`NodeLayer` in the place of an activation and `nn.Linear`: (..., I) to (..., O)."""

    def __init__(self, in_features: int, out_features: int, family: Family, **settings: str) -> None:
        super().__init__(Mixing(in_features, out_features), family, **settings)


class NodeConv2d(NodeLayer):
    """`NodeLayer` in the place of an activation and `nn.Conv2d`: (N, I, H, W) to (N, O, H', W')."""

    def __init__(self, in_channels: int, out_channels: int, conv: Conv, family: Family, **settings: str) -> None:
        super().__init__(Mixing(in_channels, out_channels, conv), family, **settings)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class NormActivation(nn.Module):
    """phi(norm(x)) at a `norm_act` or `act` site: a normalizer, then a learnable activation.

    Args:
        features: channels.
        family: of the activation, see `NodeActivation`.
        normalizer: before the activation.
        sharing: of `NodeActivation`.
        start: of `NodeActivation`.
        layout: where the channels lie.
        activation: False for the norm alone.

    Raises:
        InputError: as `NodeActivation` does; at call, a shape of another layout or width.
    """

    def __init__(
        self,
        features: int,
        family: Family,
        normalizer: str = "batch",
        sharing: str = "channel",
        start: str = "silu",
        layout: Layout = "NCHW",
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.features, self.layout = features, layout
        if not activation:
            normalizer = NORM_ALONE.get(normalizer, normalizer)
        self.normalizer = make_normalizer(normalizer, features)
        self.activation: Callable[[Tensor], Tensor] = nn.Identity()
        if activation:
            self.activation = NodeActivation(features, family, normalizer, sharing, start)
        self.affine = ChannelAffine(features, layout) if not activation and normalizer == "none" else None

    def forward(self, x: Tensor) -> Tensor:
        """The layout's shape to the same."""
        check_shape(x, self.features, self.layout)
        if self.affine is not None:
            return self.affine(x)
        if self.layout == "NCHW":
            return self.activation(self.normalizer(x.movedim(1, -1))).movedim(-1, 1)
        return self.activation(self.normalizer(x))

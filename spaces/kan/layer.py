"""`KANLinear` and `KANConv2d`: each edge a learnable function, evaluated once per input and mixed by one product."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from normact.spaces.errors import InputError, unknown_name
from normact.spaces.kan.basis import UNIT, Basis, find_basis
from normact.spaces.kan.combine import COMBINATIONS, FORMS
from normact.spaces.kan.mixing import Mixing
from normact.spaces.kan.normalizers import POST_NORMS, check_suits, make_normalizer, reach_of
from normact.spaces.kan.packed import pack
from normact.spaces.site import Conv

BASE_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "relu": nn.functional.relu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}
"""What the base branch may apply; `none` leaves the branch out."""

QUANTILES = 33
"""Points of the standard normal on which a layer's scale is set at its start."""

Family = str | tuple[str, Mapping[str, Any]]
"""A basis family by name, with its keywords where they are not the defaults."""


class KANLayer(nn.Module):
    """y = combine_m(sum_k C_m[o, i, k] b_mk(norm(x_i))) + sum_i W[o, i] act(x_i) + bias, then a norm.

    (KAN: Liu et al., arXiv 2404.19756.) Each basis is evaluated once per input. For one family, or several that are
    summed, all the rest is one product with a packed weight (O, (K + 1) I). Bases are in float32 at least, under
    autocast too. At its start the output for standard normal inputs has about variance 1, half of it from the base
    branch where there is one.

    Channels lie last; see `KANLinear` and `KANConv2d`.

    Args:
        mixing: widths, and a convolution's arguments.
        families: one or more basis families, see `Family`.
        normalizer: what brings inputs where the bases are alive; the base branch gets them as they are.
        base: activation of the base branch, or `none`.
        combine: how the families' outputs become one, see `COMBINATIONS`; with fewer outputs than families, or in
            groups, `concat` is `sum`.
        post: norm of the output: `none`, `layer` or `batch`.
        recompute: compute the bases again in the backward pass, and keep the inputs alone until then.

    Raises:
        InputError: an unknown name, a family that the normalizer does not suit, a grid or degree that cannot be, or
            parameters beyond the machine's memory.
    """

    def __init__(
        self,
        mixing: Mixing,
        families: Sequence[Family],
        normalizer: str = "layer",
        base: str = "silu",
        combine: str = "sum",
        post: str = "none",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        _check_names(base, combine, post)
        if combine == "concat" and (mixing.outputs < len(families) or mixing.groups > 1):
            combine = "sum"  # outputs that cannot be shared out are served by all
        self.mixing, self.base, self.combine, self.recompute = mixing, base, combine, recompute
        self.normalizer = make_normalizer(normalizer, mixing.inputs)
        self._reach = reach_of(normalizer)
        self.bases = nn.ModuleList(make_basis(family, mixing.inputs, normalizer) for family in families)
        sizes = [basis.size for basis in self._bases]
        if not sizes:
            raise InputError("a KAN layer needs at least one basis family")
        if combine == "shared" and len(set(sizes)) > 1:
            raise InputError(f"families that share coefficients need equal numbers of functions, got {sizes}")
        check_memory(sum(sizes) + 1, mixing)
        self.weights = nn.ParameterList(torch.empty(shape) for shape in self._weight_shapes(sizes))
        self.bias = nn.Parameter(torch.zeros(mixing.outputs))
        self.post = make_normalizer(post, mixing.outputs)
        self.reset_parameters()

    @property
    def _bases(self) -> list[Basis]:
        return list(self.bases)  # type: ignore[arg-type]

    def _weight_shapes(self, sizes: Sequence[int]) -> list[tuple[int, ...]]:
        """One product for all where the families are summed; else one each, and one for the base branch."""
        mixing, extra = self.mixing, int(self.base != "none")
        if self.combine not in FORMS:
            planes = sizes[0] if self.combine == "shared" else sum(sizes)
            return [mixing.weight_shape(planes + extra)]
        shapes = [mixing.weight_shape(size) for size in sizes]
        if self.combine == "concat":
            outputs = self._shares(len(sizes))
            shapes = [(o, *shape[1:]) for o, shape in zip(outputs, shapes, strict=True)]
        return shapes + [mixing.weight_shape(1)] * extra

    def _shares(self, families: int) -> list[int]:
        """How many outputs each family serves in a concatenation."""
        return [(self.mixing.outputs + m) // families for m in range(families)]

    def _products(self, u: Tensor, x: Tensor) -> list[Tensor]:
        """What each product mixes, (..., planes, I), from normalized inputs and inputs as they are."""
        bases = self._bases
        base = None if self.base == "none" else BASE_ACTIVATIONS[self.base](x)
        if self.combine == "sum":
            return [pack(bases, u, base)]
        planes = [pack([basis], u, None) for basis in bases]
        rest = [] if base is None else [base.unsqueeze(-2)]
        if self.combine == "shared":
            return [torch.cat([torch.stack(planes).sum(0), *rest], -2)]
        return planes + rest

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew, so that the output has about variance 1 for standard normal inputs."""
        normal = torch.special.ndtri((torch.arange(QUANTILES) + 0.5) / QUANTILES)
        x = normal.unsqueeze(1).expand(-1, self.mixing.inputs)
        products = self._products(torch.tanh(x) if self._reach == UNIT else x, x)
        share = 1.0 if self.base == "none" else 0.5
        families = len(self._bases)
        for number, (weight, planes) in enumerate(zip(self.weights, products, strict=True)):
            rho = self._relative_std(number, planes.shape[-2])
            energy = planes.square().mean((0, 2)) * rho.square()
            own, base = (energy[:-1], energy[-1:]) if self._has_base(number) else (energy, energy[:0])
            parts = [part.sum().clamp_min(1e-12).expand(len(part)) for part in (own, base) if len(part)]
            std = rho * (share / (torch.cat(parts) * self.mixing.fan)).sqrt()
            if self.combine == "product" and number == 0:
                std = std * share ** ((1 - families) / 2)  # the product of the others has variance share^(families - 1)
            columns = std.repeat_interleave(self.mixing.inputs // self.mixing.groups)
            weight.copy_(torch.randn(weight.shape) * columns.view(1, -1, *[1] * (weight.dim() - 2)))
        self.bias.zero_()

    def _has_base(self, product: int) -> bool:
        """Whether the base branch is the last plane of a product that has others too."""
        return self.base != "none" and self.combine not in FORMS

    def _relative_std(self, product: int, planes: int) -> Tensor:
        if self.combine in FORMS:
            return self._bases[product].relative_std() if product < len(self._bases) else torch.ones(1)
        bases = self._bases[:1] if self.combine == "shared" else self._bases
        rho = torch.cat([basis.relative_std() for basis in bases])
        return torch.cat([rho, torch.ones(planes - len(rho))])

    def _features(self, u: Tensor, x: Tensor) -> list[Tensor]:
        """(..., planes * I) of each product, in float32 at least."""
        with torch.autocast(x.device.type, enabled=False):
            return [planes.flatten(-2) for planes in self._products(u, x)]

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O), in x's dtype; under autocast in its dtype."""
        if x.shape[-1] != self.mixing.inputs:
            raise InputError(f"expected {self.mixing.inputs} features in the last axis, got shape {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            u = self.normalizer(x)  # once, also where the rest is computed again: it may follow statistics
        if self.recompute and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self.post(checkpoint(self._mixed, u, x, use_reentrant=False))
        return self.post(self._mixed(u, x))

    def _mixed(self, u: Tensor, x: Tensor) -> Tensor:
        features = [f.to(w.dtype) for f, w in zip(self._features(u, x), self.weights, strict=True)]
        if self.combine not in FORMS:
            return self.mixing(features[0], self.weights[0], self.bias)
        ys = [self.mixing(f, w) for f, w in zip(features, self.weights, strict=True)]
        y = FORMS[self.combine](ys[: len(self.bases)])
        return torch.stack([y, *ys[len(self.bases) :]]).sum(0) + self.bias

    def extra_repr(self) -> str:
        return f"{self.mixing.inputs}, {self.mixing.outputs}, base={self.base}, combine={self.combine}"


def make_basis(family: Family, features: int, normalizer: str) -> Basis:
    """A family's basis for inputs behind a normalizer.

    Raises:
        InputError: an unknown family or keyword, a value that it refuses, or a normalizer that does not suit it.
    """
    name, settings = (family, {}) if isinstance(family, str) else family
    cls = find_basis(name)
    check_suits(normalizer, cls)
    for key in settings:
        if key not in cls.choices:
            raise unknown_name(f"setting of {name}", key, cls.choices)
    make: Callable[..., Basis] = cls  # a family's keywords are its own
    return make(features, reach=reach_of(normalizer), **settings)


def _check_names(base: str, combine: str, post: str) -> None:
    if base not in (*BASE_ACTIVATIONS, "none"):
        raise unknown_name("base activation", base, [*BASE_ACTIVATIONS, "none"])
    if post not in POST_NORMS:
        raise unknown_name("post norm", post, POST_NORMS)
    if combine not in COMBINATIONS:
        raise unknown_name("combination", combine, COMBINATIONS)


def check_memory(planes: int, mixing: Mixing) -> None:
    """Check that the weights, their gradients and an optimiser's two averages fit into the machine's memory.

    Raises:
        InputError: they do not; both sizes are given.
    """
    needed = 4 * 4 * math.prod(mixing.weight_shape(planes))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise InputError(
            f"{planes} functions an input, {mixing.inputs} inputs and {mixing.outputs} outputs need "
            f"{needed / 2**30:.3g} GiB to train, and the machine has {there / 2**30:.3g}; use fewer functions"
        )


class KANLinear(KANLayer):
    """A KAN layer in the place of `nn.Linear`: (..., I) to (..., O), any leading axes. See `KANLayer`.

    Args:
        in_features: I.
        out_features: O.
        families: basis families, such as `"gaussian"` or `("bspline", {"grid": 5, "order": 3})`.
        settings: of `KANLayer`: normalizer, base, combine, post, recompute.
    """

    def __init__(
        self, in_features: int, out_features: int, families: Sequence[Family] = ("bspline",), **settings: Any
    ) -> None:
        super().__init__(Mixing(in_features, out_features), families, **settings)


class KANConv2d(KANLayer):
    """A KAN layer in the place of `nn.Conv2d`: (N, I, H, W) to (N, O, H', W').

    The bases of all channels are convolved at once: K functions make K * I channels. Zeros pad the bases, not the
    image. The normalizer acts at each position. See `KANLayer`.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: height and width of the kernel.
        stride: of the convolution.
        padding: of the convolution.
        groups: of channels that are mixed apart.
        families: basis families.
        settings: of `KANLayer`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        families: Sequence[Family] = ("bspline",),
        **settings: Any,
    ) -> None:
        conv = Conv(kernel_size, stride, padding, groups)
        super().__init__(Mixing(in_channels, out_channels, conv), families, **settings)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)

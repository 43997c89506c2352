"""What is left of an S-KAN layer when the families that it has not chosen are gone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normact.spaces.errors import InputError
from normact.spaces.kan.basis import Basis
from normact.spaces.kan.layer import BASE_ACTIVATIONS
from normact.spaces.kan.mixing import Mixing
from normact.spaces.kan.packed import pack


class Term(nn.Module):
    """One product of a pruned layer: some families, at some of the inputs, for some of the outputs.

    Families and weight become the term's own.

    Args:
        bases: families.
        weight: (outputs, columns, ...), columns family after family, and in each function after function; last the
            base branch.
        base: whether the base branch is in it.
        inputs: by family, the inputs that have it; none for all.
        outputs: which have the term; None for all.
    """

    outputs: Tensor | None

    def __init__(
        self,
        bases: Sequence[Basis],
        weight: Tensor,
        base: bool = False,
        inputs: Sequence[Tensor] = (),
        outputs: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.bases = nn.ModuleList(copy.deepcopy(basis) for basis in bases)
        self.weight = nn.Parameter(weight.detach().clone())
        self.base = base
        self.by_input = [_works_at(bases[number], picks) for number, picks in enumerate(inputs)]
        for number, picks in enumerate(inputs):
            self.register_buffer(f"inputs{number}", picks)
        self.register_buffer("outputs", outputs)

    @property
    def _bases(self) -> list[Basis]:
        return list(self.bases)  # type: ignore[arg-type]

    def inputs(self, number: int) -> Tensor | None:
        """The inputs that have the family of that number; None for all."""
        return self.get_buffer(f"inputs{number}") if self.by_input else None

    def features(self, u: Tensor, base: Tensor | None) -> Tensor:
        """(..., columns): what the weight mixes, from normalized inputs (..., I) and the base branch (..., I)."""
        base = base if self.base else None
        if not self.bases:
            assert base is not None
            return base
        if not self.by_input:
            return pack(self._bases, u, base).flatten(-2)
        parts = [self._at(number, u).flatten(-2) for number in range(len(self.bases))]
        return torch.cat(parts if base is None else [*parts, base], -1)

    def _at(self, number: int, u: Tensor) -> Tensor:
        """(..., K, picked): a family at its inputs; one that holds something of each input is computed at all."""
        basis, picks = self._bases[number], self.get_buffer(f"inputs{number}")
        if self.by_input[number]:
            return pack([basis], u.index_select(-1, picks), None)
        return pack([basis], u, None).index_select(-1, picks)


@torch.no_grad()
def _works_at(basis: Basis, picks: Tensor) -> bool:
    """Whether a basis gives at some of the inputs what it gives there among all."""
    x = torch.linspace(-1, 1, 3 * basis.features, device=picks.device).view(3, -1)
    try:
        part = basis.planes(x[:, picks])
    except (RuntimeError, InputError):
        return False
    whole = basis.planes(x)[..., picks]
    return part.shape == whole.shape and torch.allclose(part, whole)


class PrunedKANLayer(nn.Module):
    """y = sum of terms + bias, then a norm: an S-KAN layer with what it has chosen alone. See `SelectableKANLayer`.

    A choice of the layer is one product of the families kept. A choice of each input is one product too, with the
    columns of its families alone. A choice of each output is a product a family, with the rows of its outputs. In
    each case parameters and operations fall to those of what is kept. Channels lie last.

    Args:
        mixing: widths, and a convolution's arguments.
        terms: at least one.
        normalizer: of the inputs; copied.
        base: activation of the base branch, or `none`.
        bias: (O,); copied.
        post: norm of the output; copied.
    """

    def __init__(
        self, mixing: Mixing, terms: Sequence[Term], normalizer: nn.Module, base: str, bias: Tensor, post: nn.Module
    ) -> None:
        super().__init__()
        self.mixing, self.base = mixing, base
        self.normalizer = copy.deepcopy(normalizer)
        self.terms = nn.ModuleList(terms)
        self.bias = nn.Parameter(bias.detach().clone())
        self.post = copy.deepcopy(post)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O), in x's dtype; under autocast in its dtype."""
        if x.shape[-1] != self.mixing.inputs:
            raise InputError(f"expected {self.mixing.inputs} features in the last axis, got shape {tuple(x.shape)}")
        terms: list[Term] = list(self.terms)  # type: ignore[arg-type]
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            base = None if self.base == "none" else BASE_ACTIVATIONS[self.base](wide)
            u = self.normalizer(wide)
            features = [term.features(u, base) for term in terms]
        if len(terms) == 1 and terms[0].outputs is None:
            return self.post(self.mixing(features[0].to(self.bias.dtype), terms[0].weight, self.bias))
        parts = [self.mixing(f.to(self.bias.dtype), term.weight) for f, term in zip(features, terms, strict=True)]
        y = parts[0].new_zeros(*parts[0].shape[:-1], self.mixing.outputs)
        for term, part in zip(terms, parts, strict=True):
            y = y + part if term.outputs is None else y.index_add(-1, term.outputs, part)
        return self.post(y + self.bias.to(y.dtype))

    def extra_repr(self) -> str:
        return f"{self.mixing.inputs}, {self.mixing.outputs}, base={self.base}"


class PrunedKANLinear(PrunedKANLayer):
    """Of `SelectableKANLinear`: (..., I) to (..., O)."""


class PrunedKANConv2d(PrunedKANLayer):
    """Of `SelectableKANConv2d`: (N, I, H, W) to (N, O, H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)

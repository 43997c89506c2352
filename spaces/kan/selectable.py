"""S-KAN layers: several basis families compete behind gates, the best are kept, and the layer is pruned to them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normact.spaces.errors import InputError, unknown_name
from normact.spaces.kan.basis import UNIT, Basis
from normact.spaces.kan.layer import BASE_ACTIVATIONS, QUANTILES, Family, check_memory, make_basis
from normact.spaces.kan.mixing import Mixing
from normact.spaces.kan.normalizers import POST_NORMS, make_normalizer, reach_of
from normact.spaces.kan.packed import pack
from normact.spaces.kan.pruned import PrunedKANConv2d, PrunedKANLayer, PrunedKANLinear, Term
from normact.spaces.site import Conv

GRANULARITIES = ("layer", "node", "input")
"""What chooses its families apart: the whole layer, each output, or each input."""


class SelectableKANLayer(nn.Module):
    """y_o = sum_m g_m (sum_ik C_m[o, i, k] b_mk(norm(x_i))) + sum_i W[o, i] act(x_i) + bias, g = softmax(a / t).

    (S-KAN: Yang et al., arXiv 2408.08338: each node of a KAN selects from a pool of basis families in three stages,
    full training, selective training, pruning. Its gates' formula and schedule could not be had; what follows is our
    reading.) There is a gate g_m for each family, of the layer, of each output (`node`, the paper's), or of each
    input, where it stands inside the sum over i. Nothing but the loss acts on the gates.

    1. `full`: all families train, and the gates' logits a with them, equal at first.
    2. `selective`: `select(keep)` leaves each gate its `keep` largest values and divides them by their sum, so that
       with `keep=1` they are exactly 1. The weights of the kept families take up what their gates lose or gain: an
       output changes by what the dropped families gave and by nothing else. Those have gates and gradients of 0. (An
       optimiser with momentum or decay still moves their weights, which no output depends on.)
    3. `prune()` gives a smaller module of the same outputs, which has the kept functions alone.

    `set_progress`, which the training calls, selects by itself; stage and choice are in the state dict.

    All families share one normalizer, which must suit each of them: then inputs are normalized once, and all families
    and the base branch are one product in every stage. One that ends in [-1, 1] suits all families, as a family puts
    its grid where the normalizer ends. The gates are folded into the weight, so that a gate of each output or input
    costs no more than one of the layer. The first stage costs as much as a `KANLayer` of all the families together;
    in the second a family that nothing has kept is not computed any more.

    At its start the output for standard normal inputs has about variance 1, and each family has the same part in it.
    Logits have one axis, so that recipes do not decay them. Channels lie last; see `SelectableKANLinear` and
    `SelectableKANConv2d`.

    Args:
        mixing: widths, and a convolution's arguments.
        families: at least one, see `layer.Family`.
        granularity: what has gates of its own, see `GRANULARITIES`.
        normalizer: of the inputs of all families; the base branch gets them as they are.
        base: activation of the base branch, or `none`.
        post: norm of the output: `none`, `layer` or `batch`.
        temperature: t, above 0; the smaller, the faster gates part.
        keep: families that each gate keeps in the selective stage.
        select_at: share of the training after which they are selected, above 0; from 1 on, never. Early, as later
            the learning rate has fallen too far for what is kept to take over what is dropped.

    Raises:
        InputError: an unknown name, a family that the normalizer does not suit, a number out of range, gates of
            outputs or inputs of a convolution in groups, or parameters beyond the machine's memory.
    """

    kept: Tensor

    def __init__(
        self,
        mixing: Mixing,
        families: Sequence[Family],
        granularity: str = "node",
        normalizer: str = "layer_tanh",
        base: str = "silu",
        post: str = "none",
        temperature: float = 1.0,
        keep: int = 1,
        select_at: float = 0.2,
    ) -> None:
        super().__init__()
        _check_names(granularity, base, post)
        _check_numbers(len(families), temperature, keep, select_at)
        _check_groups(granularity, mixing)
        self.mixing, self.granularity, self.base = mixing, granularity, base
        self.temperature, self.keep, self.select_at = temperature, keep, select_at
        self.normalizer = make_normalizer(normalizer, mixing.inputs)
        self._reach = reach_of(normalizer)
        self.bases = nn.ModuleList(make_basis(family, mixing.inputs, normalizer) for family in families)
        planes = sum(self._sizes)
        check_memory(planes, mixing)
        self.weight = nn.Parameter(torch.empty(mixing.weight_shape(planes)))
        self.bias = nn.Parameter(torch.zeros(mixing.outputs))
        rows = {"layer": 1, "node": mixing.outputs, "input": mixing.inputs}[granularity]
        self.logits = nn.Parameter(torch.zeros(rows * len(families)))
        self.register_buffer("kept", torch.ones(rows, len(families), dtype=torch.bool))
        self.post = make_normalizer(post, mixing.outputs)
        self._note_kept()
        self.reset_parameters()

    @property
    def _bases(self) -> list[Basis]:
        return list(self.bases)  # type: ignore[arg-type]

    @property
    def _sizes(self) -> list[int]:
        """Values an input, by member: the families, and last the base branch where there is one."""
        return [basis.size for basis in self._bases] + [1] * (self.base != "none")

    @property
    def stage(self) -> str:
        """`full` or `selective`."""
        return "full" if self._most_kept == len(self.bases) else "selective"

    def gates(self) -> Tensor:
        """(rows, M): one row for the layer, each output or each input; 0 for what is dropped, and 1 in sum."""
        logits = self.logits.view(self.kept.shape) / self.temperature
        return torch.softmax(logits.masked_fill(~self.kept, -torch.inf), -1)

    @torch.no_grad()
    def select(self, keep: int | None = None) -> None:
        """Keep the families of the largest gates and drop the others for good; see the second stage above.

        Args:
            keep: how many each gate keeps; the layer's own number by default.

        Raises:
            InputError: fewer than 1 or more than there are.
        """
        keep = self.keep if keep is None else keep
        _check_keep(keep, len(self.bases))
        before = self.gates()
        logits = self.logits.view(self.kept.shape).masked_fill(~self.kept, -torch.inf)
        best = logits.argsort(dim=-1, descending=True, stable=True)[:, :keep]
        self.kept &= torch.zeros_like(self.kept).scatter_(1, best, True)
        sums = (before * self.kept).sum(1, keepdim=True)  # what the gates of the kept are divided by
        self._columns(self.weight).mul_(self._spread(torch.where(self.kept, sums, 1.0), range(len(self.bases))))
        self._note_kept()

    def set_progress(self, fraction: float) -> None:
        """Select once the training has come so far; a training calls this before each step.

        Args:
            fraction: of the steps that are done, from 0 to 1.
        """
        if fraction >= self.select_at and self._most_kept > self.keep:
            self.select()

    def prune(self) -> PrunedKANLayer:
        """A module of its own with the same outputs that has what is kept alone, gates folded into its weights.

        In the stage `full` that is everything.
        """
        pruned = self._make_pruned(self._terms())
        return pruned.train(self.training)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As new: equal gates, nothing dropped, weights such that the output has about variance 1."""
        normal = torch.special.ndtri((torch.arange(QUANTILES) + 0.5) / QUANTILES)
        x = normal.unsqueeze(1).expand(-1, self.mixing.inputs)
        planes = self._planes(torch.tanh(x) if self._reach == UNIT else x, x, range(len(self.bases)))
        rho = torch.cat([*(basis.relative_std() for basis in self._bases), torch.ones(1)])[: planes.shape[-2]]
        energy = planes.square().mean((0, 2)) * rho.square()
        totals = torch.cat([part.sum().clamp_min(1e-12).expand(len(part)) for part in energy.split(self._sizes)])
        share = torch.full_like(totals, 1.0 if self.base == "none" else 0.5)
        share[: sum(basis.size for basis in self._bases)] *= len(self.bases)  # M gates of 1 / M
        std = rho * (share / (totals * self.mixing.fan)).sqrt()
        columns = self._columns(self.weight.normal_())
        columns.mul_(std.view(1, -1, *[1] * (columns.dim() - 2)))
        self.bias.zero_()
        self.logits.zero_()
        self.kept.fill_(True)
        self._note_kept()

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O), in x's dtype; under autocast in its dtype."""
        if x.shape[-1] != self.mixing.inputs:
            raise InputError(f"expected {self.mixing.inputs} features in the last axis, got shape {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            planes = self._planes(self.normalizer(wide), wide, self._alive)
            weight = self._gated(self._alive).flatten(1, 2)
        return self.post(self.mixing(planes.flatten(-2).to(weight.dtype), weight, self.bias + self._nothing()))

    def _planes(self, u: Tensor, x: Tensor, members: Sequence[int]) -> Tensor:
        """(..., planes, I) of some families and the base branch."""
        base = None if self.base == "none" else BASE_ACTIVATIONS[self.base](x)
        return pack([self._bases[m] for m in members], u, base)

    def _columns(self, weight: Tensor) -> Tensor:
        """(O, planes, I / groups, ...): the weight by plane and input."""
        return weight.unflatten(1, (-1, self.mixing.inputs // self.mixing.groups))

    def _gated(self, members: Sequence[int]) -> Tensor:
        """(O, planes, I / groups, ...): the weights of some families, times their gates, and of the base branch."""
        weight = self._columns(self.weight)
        if len(members) < len(self.bases):
            parts = weight.split(self._sizes, 1)
            weight = torch.cat([*(parts[m] for m in members), *parts[len(self.bases) :]], 1)
        return weight * self._spread(self.gates(), members)

    def _spread(self, values: Tensor, members: Sequence[int]) -> Tensor:
        """Values by gate (rows, M), as factors of the weight of some families: (O or 1, planes, I or 1, ...)."""
        values = values[:, list(members)]
        if self.base != "none":
            values = torch.cat([values, values.new_ones(len(values), 1)], 1)
        sizes = [self._sizes[m] for m in members] + [1] * (self.base != "none")
        factors = values.repeat_interleave(torch.tensor(sizes, device=values.device), 1, output_size=sum(sizes))
        factors = factors.t().unsqueeze(0) if self.granularity == "input" else factors.unsqueeze(-1)
        return factors.view(*factors.shape, *[1] * (self.weight.dim() - 2))

    def _nothing(self) -> Tensor | float:
        """0, with a gradient of 0 for the parameters of families that are not computed.

        Were it None, a training would have to take its flat parameters apart, see `search.training`.
        """
        idle = [p for m, basis in enumerate(self._bases) if m not in self._alive for p in basis.parameters()]
        if not idle or not torch.is_grad_enabled():
            return 0.0
        return torch.stack([p.sum() for p in idle]).sum() * 0.0

    def _note_kept(self) -> None:
        """Numbers out of `kept`, as Python has them: to ask a device for them in each step would halt it."""
        self._alive: list[int] = self.kept.any(0).nonzero().flatten().tolist()
        self._most_kept = int(self.kept.sum(1).max())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._note_kept()

    @torch.no_grad()
    def _terms(self) -> list[Term]:
        """What is left of the layer as products, each with the outputs and inputs that it serves."""
        weights = self._gated(range(len(self.bases))).split(self._sizes, 1)
        base = weights[len(self.bases) :]
        if self.granularity == "layer":
            bases = [self._bases[m] for m in self._alive]
            return [Term(bases, torch.cat([*(weights[m] for m in self._alive), *base], 1).flatten(1, 2), bool(base))]
        if self.granularity == "input":
            inputs = [self.kept[:, m].nonzero().flatten() for m in self._alive]
            parts = [weights[m][:, :, picks].flatten(1, 2) for m, picks in zip(self._alive, inputs, strict=True)]
            weight = torch.cat([*parts, *(w.flatten(1, 2) for w in base)], 1)
            return [Term([self._bases[m] for m in self._alive], weight, bool(base), inputs=inputs)]
        terms = [Term([], w.flatten(1, 2), True) for w in base]
        for m in self._alive:
            outputs = self.kept[:, m].nonzero().flatten()
            terms.append(Term([self._bases[m]], weights[m][outputs].flatten(1, 2), outputs=outputs))
        return terms

    def _make_pruned(self, terms: Sequence[Term]) -> PrunedKANLayer:
        return PrunedKANLayer(self.mixing, terms, self.normalizer, self.base, self.bias, self.post)

    def extra_repr(self) -> str:
        return f"{self.mixing.inputs}, {self.mixing.outputs}, granularity={self.granularity}, base={self.base}"


def prune_model(model: nn.Module) -> nn.Module:
    """A copy of a model in which each `SelectableKANLayer` is pruned; the model is left as it is."""
    model = copy.deepcopy(model)
    if isinstance(model, SelectableKANLayer):
        return model.prune()
    pruned: dict[nn.Module, nn.Module] = {}  # a layer in two places stays one
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):  # `named_children` leaves out a second name of one
            if isinstance(child, SelectableKANLayer):
                setattr(module, name, pruned.setdefault(child, child.prune()))
    return model


def _check_names(granularity: str, base: str, post: str) -> None:
    if granularity not in GRANULARITIES:
        raise unknown_name("granularity", granularity, GRANULARITIES)
    if base not in (*BASE_ACTIVATIONS, "none"):
        raise unknown_name("base activation", base, [*BASE_ACTIVATIONS, "none"])
    if post not in POST_NORMS:
        raise unknown_name("post norm", post, POST_NORMS)


def _check_numbers(families: int, temperature: float, keep: int, select_at: float) -> None:
    if families < 1:
        raise InputError("a selectable KAN layer needs at least one basis family, got none")
    _check_keep(keep, families)
    if not 0 < temperature < float("inf") or not select_at > 0:
        raise InputError(
            f"temperature must be a finite number above 0, and select_at above 0, got {temperature} and {select_at}"
        )


def _check_keep(keep: int, families: int) -> None:
    if not 1 <= keep <= families:
        raise InputError(f"keep={keep} of {families} families cannot be kept; choose 1 to {families}")


def _check_groups(granularity: str, mixing: Mixing) -> None:
    if mixing.groups > 1 and granularity != "layer":
        raise InputError(
            f"granularity={granularity} leaves the groups of a convolution with unequal numbers of functions, which "
            f"no convolution takes: use granularity=layer, or groups=1 instead of groups={mixing.groups}"
        )


class SelectableKANLinear(SelectableKANLayer):
    """An S-KAN layer in the place of `nn.Linear`: (..., I) to (..., O), any leading axes. See `SelectableKANLayer`.

    Args:
        in_features: I.
        out_features: O.
        families: basis families to choose from.
        settings: of `SelectableKANLayer`.
    """

    def __init__(self, in_features: int, out_features: int, families: Sequence[Family], **settings: Any) -> None:
        super().__init__(Mixing(in_features, out_features), families, **settings)

    def _make_pruned(self, terms: Sequence[Term]) -> PrunedKANLayer:
        return PrunedKANLinear(self.mixing, terms, self.normalizer, self.base, self.bias, self.post)


class SelectableKANConv2d(SelectableKANLayer):
    """An S-KAN layer in the place of `nn.Conv2d`, S-ConvKAN: (N, I, H, W) to (N, O, H', W').

    Outputs and inputs of the gates are channels. See `SelectableKANLayer`.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: height and width of the kernel.
        stride: of the convolution.
        padding: of the convolution.
        groups: of channels that are mixed apart.
        families: basis families to choose from.
        settings: of `SelectableKANLayer`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        families: Sequence[Family] = (),
        **settings: Any,
    ) -> None:
        conv = Conv(kernel_size, stride, padding, groups)
        super().__init__(Mixing(in_channels, out_channels, conv), families, **settings)

    def _make_pruned(self, terms: Sequence[Term]) -> PrunedKANLayer:
        return PrunedKANConv2d(self.mixing, terms, self.normalizer, self.base, self.bias, self.post)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)

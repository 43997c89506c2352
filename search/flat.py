"""Many small parameters as two large ones, so that clipping and the optimiser's step are a few calls, not dozens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Flat:
    """Parameters as views of one tensor, `whole`, that an optimiser changes in their place.

    The parameters stay what they are to their modules; each keeps a gradient of its own.

    Args:
        members: at least one; float32, contiguous, on the CPU, no two in the same storage.
    """

    def __init__(self, members: Sequence[nn.Parameter]) -> None:
        self.members = list(members)
        self.whole = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in self.members]))
        for member, part in zip(self.members, self.split(self.whole.detach()), strict=True):
            member.data = part
        self._places = [p.data_ptr() for p in self.members]

    def split(self, values: Tensor) -> list[Tensor]:
        """What `whole` or a tensor of its size holds for each member."""
        parts = values.split([p.numel() for p in self.members])
        return [part.view(p.shape) for p, part in zip(self.members, parts, strict=True)]

    def gather(self) -> bool:
        """Take the members' gradients together; False where one has none, or was given other data by its module."""
        gradients = [p.grad.reshape(-1) for p in self.members if p.grad is not None]
        if len(gradients) < len(self.members) or [p.data_ptr() for p in self.members] != self._places:
            return False
        self.whole.grad = torch.cat(gradients)
        return True


def can_be_flat(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether `Flat` may take these: plain float32 on the CPU, each in a storage of its own."""
    storages = Counter(p.untyped_storage().data_ptr() for p in parameters if p.layout == torch.strided)
    return all(
        p.dtype == torch.float32
        and p.device.type == "cpu"
        and p.layout == torch.strided
        and p.is_contiguous()
        and p.numel() > 0
        and storages[p.untyped_storage().data_ptr()] == 1
        for p in parameters
    )


def move_state(flat: Flat, source: torch.optim.Optimizer, target: torch.optim.Optimizer) -> None:
    """Give what an optimiser keeps of `whole` to one of the members."""
    for name, value in source.state[flat.whole].items():
        whole = isinstance(value, Tensor) and value.shape == flat.whole.shape
        parts = (
            flat.split(value) if whole else [value.clone() if isinstance(value, Tensor) else value] * len(flat.members)
        )
        for member, part in zip(flat.members, parts, strict=True):
            target.state[member][name] = part.clone() if isinstance(part, Tensor) else part


@torch.no_grad()
def step(optimizer: torch.optim.Optimizer) -> None:
    """The optimiser's step over flat parameters that all have a gradient.

    For AdamW it calls the kernel at once: what the optimiser does around it takes three times as long as that.
    """
    states = [optimizer.state.get(p) for group in optimizer.param_groups for p in group["params"]]
    if not isinstance(optimizer, torch.optim.AdamW) or not hasattr(torch, "_fused_adamw_") or not all(states):
        optimizer.step()
        return
    for group in optimizer.param_groups:
        if group["params"]:
            _adamw(group, [optimizer.state[p] for p in group["params"]])


def _adamw(group: dict[str, Any], states: list[dict[str, Tensor]]) -> None:
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        group["params"],
        [p.grad for p in group["params"]],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"].add_(1) for state in states],
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )


def clip(gradients: Sequence[Tensor], largest: float) -> None:
    """What `clip_grad_norm_` does, up to rounding, for a few large gradients: scale all to a norm of at most that."""
    norm = math.hypot(*[float(torch.linalg.vector_norm(gradient)) for gradient in gradients])
    factor = largest / (norm + 1e-6)
    if not factor >= 1:  # so too where the norm is not a number
        for gradient in gradients:
            gradient.mul_(factor)

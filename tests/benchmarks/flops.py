"""Floating-point operations of a forward pass: products by torch's own counter, and each elementwise result as one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

_MOVES = (
    *("view", "expand", "permute", "transpose", "slice", "select", "cat", "stack", "clone", "copy", "empty", "detach"),
    *("squeeze", "unsqueeze", "alias", "reshape", "index", "gather", "zeros", "ones", "full", "arange", "split"),
)
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")


class _Elementwise(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").split(".")[0].strip("_")
        if name not in (*_PRODUCTS, "t") and not any(name.startswith(move) for move in _MOVES):
            tensors = result if isinstance(result, tuple | list) else (result,)
            inputs = [a.numel() for a in args if isinstance(a, Tensor)]
            self.count += max([t.numel() for t in tensors if isinstance(t, Tensor)] + inputs, default=0)
        return result


@torch.no_grad()
def flops_of(model: nn.Module, x: Tensor) -> int:
    """Operations of one evaluation of the batch: two per multiply-add of a product, one per value of any other."""
    model.eval()
    with _Elementwise() as elementwise, FlopCounterMode(display=False) as products:
        model(x)
    return int(products.get_total_flops()) + elementwise.count

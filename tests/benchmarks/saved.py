"""What autograd keeps of a forward pass for the backward one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def saved_bytes(layer: nn.Module, x: Tensor, without: Sequence[Tensor] = ()) -> int:
    """Bytes that the backward pass finds kept, each piece of memory once; the layer's own tensors do not count.

    Args:
        layer: in the mode that is measured.
        x: what it is called with, which wants a gradient.
        without: tensors that do not count either, such as the input, where something else keeps it anyway.
    """
    own = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers(), *without)}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    y.sum().backward()
    return sum(found.values())

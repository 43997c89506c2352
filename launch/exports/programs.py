"""An exported layer as a program: `torch.export` and ONNX, for batches and positions of any number."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from normact.spaces.layer import channel_axis
from normact.spaces.moments import Layout

ONNX = ("onnx", "onnxscript")
"""What writing ONNX needs beside torch."""


def program_of(module: nn.Module, x: Tensor, layout: Layout) -> torch.export.ExportedProgram:
    """The module's evaluation by `torch.export`.

    Args:
        module: the layer.
        x: an example, no axis of which has a size of 1.
        layout: its layout: all axes but that of the channels may have any size.

    Raises:
        Exception: of `torch.export`, where the module has no such program.
    """
    free = {axis: torch.export.Dim.DYNAMIC for axis in range(x.dim()) if axis != channel_axis(layout)}
    with _unwarned():
        return torch.export.export(module.eval(), (x,), dynamic_shapes=(free,))


def onnx_of(program: torch.export.ExportedProgram) -> torch.onnx.ONNXProgram:
    """A program's translation to ONNX.

    Raises:
        Exception: of `torch.onnx`, where an operation has no translation.
    """
    with _unwarned():
        onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None
    return onnx


@contextmanager
def _unwarned() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own parts
        yield


def missing(packages: Sequence[str]) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]

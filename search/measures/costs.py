"""Measures of cost, relative to BN-ReLU at the same sites: parameters, time, memory."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from normact.search.data.base import Data
from normact.search.measures.base import Measure, Measured
from normact.search.measures.baseline import baseline_layer
from normact.search.objective import Objective
from normact.search.training import Training, drawing_from, outputs_of
from normact.spaces.errors import InputError


class _Cost(Measure):
    """A cost that is 1 for the baseline (trivial) and would best be 0."""

    reads_examples = False
    quality = False
    name: str

    def objective(self, data: Data) -> Objective:
        return Objective(self.name, "x BN-ReLU", "minimize", 1.0, 0.0)


class Parameters(_Cost):
    """Trainable parameters of the network, relative to the same anchor with the baseline at its sites.

    The baseline is BN-ReLU at `norm_act` sites; see `baseline_layer` for others.
    """

    name = "parameters"

    def value(self, measured: Measured) -> float:
        training = measured.training
        own = _trainable(nn.ModuleList(training.layers.values()))
        with drawing_from(0):
            baseline = sum(_trainable(baseline_layer(site)) for site in training.layers)
        whole = _trainable(training.model)
        return whole / (whole - own + baseline)


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


class Placed(NamedTuple):
    """A layer, and what comes in at its place."""

    layer: nn.Module
    x: Tensor


class RelativeTime(_Cost):
    """Time of forward and backward pass through the layers at an anchor's sites, relative to the baseline's there.

    Both run in this process, in turns, on one batch as it comes in at each site, in training mode; the value is the
    median over rounds of a round's ratio. Processor time on a CPU, since the workers of a search share its cores, else
    wall time. The baseline BN-ReLU runs as graphs of a space do: so the ratio is one of layers, not of how well they
    are implemented.

    It is a measurement, **not a function of the job**: the same candidate has another value in another run. A search
    whose front has it does not repeat itself.

    Args:
        rounds: that are timed.
        warmup: rounds before.

    Raises:
        InputError: no round is timed, or `warmup` is negative.
    """

    name = "relative_time"

    def __init__(self, rounds: int = 15, warmup: int = 2) -> None:
        if rounds < 1 or warmup < 0:
            raise InputError(f"relative_time needs rounds >= 1 and warmup >= 0, got rounds={rounds}, warmup={warmup}")
        self.rounds = rounds
        self.warmup = warmup

    def value(self, measured: Measured) -> float:
        with drawing_from(0):
            own, baseline = placed(measured.training)
            ratios = [_seconds(own) / _seconds(baseline) for _ in range(self.warmup + self.rounds)]
        return statistics.median(ratios[self.warmup :])


def _seconds(places: Sequence[Placed]) -> float:
    """Time of forward and backward pass through each layer."""
    device = places[0].x.device
    start = _now(device)
    for layer, x in places:
        y = layer(x)
        wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
        torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)
    return _now(device) - start


def _now(device: torch.device) -> float:
    """Processor time of a CPU; of a GPU wall time, when it has done what it was given."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


class RelativeMemory(_Cost):
    """Memory that the layers at an anchor's sites take in training, relative to the baseline's there.

    Counted is what is held between forward and backward pass: what the layer keeps for the backward pass, its input
    where that is kept too, and its output. That is what adds up over a network to its peak. Storages are counted, each
    once, also those that an autograd function keeps on its own; parameters are not (see `Parameters`).
    """

    name = "relative_memory"

    def value(self, measured: Measured) -> float:
        with drawing_from(0):
            own, baseline = placed(measured.training)
            return sum(map(held_bytes, own)) / sum(map(held_bytes, baseline))


def held_bytes(place: Placed) -> int:
    """Bytes that a layer's forward pass leaves behind while its output is in use."""
    with _NewStorages() as made:
        x = place.x.clone()  # by autograd, so that it goes where nobody keeps it, as one layer's output does in a net
        y = place.layer(x)
        del x
    return made.bytes_held if y is not None else 0


class _NewStorages(TorchDispatchMode):
    """Notes the storage of every tensor that comes into being, and tells which are still held.

    Hooks on saved tensors would not do: an autograd function may keep tensors of its own, as that of `tape` does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in given:
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    @property
    def bytes_held(self) -> int:
        """Of the storages that came into being those that are in use."""
        return sum(size for storage, size in self._made.values() if not storage.expired())


def placed(training: Training) -> tuple[list[Placed], list[Placed]]:
    """Copies of a training's layers and the baseline's, in training mode, each with one batch as it comes in there."""
    own, baseline = [], []
    for site, layer, x in _inputs(training):
        own.append(Placed(copy.deepcopy(layer).train(), x))
        baseline.append(Placed(baseline_layer(site).to(x.device), x))
    return own, baseline


def _inputs(training: Training) -> Iterator[tuple[Any, nn.Module, Tensor]]:
    """Site, layer and input of each call of a layer, on the first batch of the training examples."""
    calls: list[tuple[Any, nn.Module, Tensor]] = []

    def note(site: Any) -> Any:
        return lambda layer, args: calls.append((site, layer, args[0].detach().clone().requires_grad_()))

    handles = [layer.register_forward_pre_hook(note(site)) for site, layer in training.layers.items()]
    try:
        outputs_of(training.model, training.examples.x[: training.recipe.batch_size])
    finally:
        for handle in handles:
            handle.remove()
    yield from calls

"""`Recipe` and `Training`: one model, trained in stretches, so that gates can look in between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from normact.search.data.base import Loss, Split
from normact.search.flat import Flat, can_be_flat, clip, move_state, step
from normact.spaces.errors import InputError
from normact.spaces.site import Site

EVALUATION_BATCH = 256
STATISTICS_BATCHES = 4


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Args:
        steps: optimiser steps.
        batch_size: examples a step, at least 2.
        optimizer: `sgd` (Nesterov momentum) or `adamw`.
        lr: peak learning rate.
        momentum: of SGD.
        weight_decay: on all parameters of two or more axes; vectors (biases, scales) are not decayed.
        schedule: of the learning rate: `cosine` to zero, `exponential` to `final` times its peak, or `constant`.
        warmup: steps of linear warm-up.
        clip: largest norm of the whole gradient; 0 for none.
        final: share of the peak learning rate that an exponential schedule ends at, at most 1: a factor of 0.8 per
            epoch over 35 epochs is 0.8**35. It falls evenly from step to step.

    Raises:
        InputError: a number out of range or an unknown name.
    """

    steps: int = 120
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "exponential", "constant"] = "cosine"
    warmup: int = 0
    clip: float = 0.0
    final: float = 0.01

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2 or self.lr <= 0:
            raise InputError(
                f"a recipe needs steps >= 1, batch_size >= 2 and lr > 0, got steps={self.steps}, "
                f"batch_size={self.batch_size}, lr={self.lr}"
            )
        if not 0 <= self.momentum < 1 or self.weight_decay < 0 or self.clip < 0:
            raise InputError(
                f"a recipe needs 0 <= momentum < 1, weight_decay >= 0 and clip >= 0, got momentum={self.momentum}, "
                f"weight_decay={self.weight_decay}, clip={self.clip}"
            )
        if self.optimizer not in ("sgd", "adamw"):
            raise InputError(f"optimizer must be sgd or adamw, got {self.optimizer!r}")
        if self.schedule not in ("cosine", "exponential", "constant"):
            raise InputError(f"schedule must be cosine, exponential or constant, got {self.schedule!r}")
        if not 0 < self.final <= 1:
            raise InputError(f"final={self.final} must lie above 0 and be at most 1: a share of the peak lr")
        if not 0 <= self.warmup < self.steps:
            raise InputError(f"warmup={self.warmup} must be at least 0 and below steps={self.steps}")

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser over a model's parameters."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        return self.optimizer_over([p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1])

    def optimizer_over(self, decayed: list[nn.Parameter], others: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser over parameters with and without weight decay."""
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr, fused=True)
        # Not fused: that fails where a parameter gets its first gradient after others.
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup) / (self.steps - self.warmup)
        if self.schedule == "exponential":
            return self.lr * self.final**done
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


def loss_of(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """The mean loss of a batch; classes by cross-entropy, values by the mean square."""
    if loss == "cross_entropy":
        return nn.functional.cross_entropy(output, target)
    return nn.functional.mse_loss(output, target.view_as(output))


class Training:
    """One model in training.

    The order of examples comes from a generator of its own: what a layer draws shifts nothing. What the model
    draws in a step depends on seed and step alone, so a stop to look in between shifts nothing either.

    A module with a method `set_progress(fraction: float)` is told before each step which share of all is done.

    Args:
        model: trained in place.
        examples: on the model's device.
        recipe: how.
        loss: of the task.
        seed: of the order of examples, and of what the model draws while it trains.
        layers: what fills the sites of the model, for measures that look at them.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Split,
        recipe: Recipe,
        loss: Loss,
        seed: int,
        layers: Mapping[Site, nn.Module] | None = None,
    ) -> None:
        self.model = model
        self.layers = dict(layers or {})
        self.examples = examples
        self.recipe = recipe
        self.loss = loss
        self.step = 0
        self.losses: list[float] = []
        self.optimizer = recipe.make_optimizer(model)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._flats: list[Flat] = []
        self._rest: list[nn.Parameter] = []
        self._staged: list[Any] = [m for m in model.modules() if hasattr(m, "set_progress")]
        self._seed = seed
        self._batches = shuffled_batches(len(examples), recipe.batch_size, seed)

    def run_to(self, step: int) -> bool:
        """Train up to a step. False, at once, when the loss is not finite."""
        self.model.train()
        # Mixed ahead: between the steps, out of the caches, one takes ten times as long as in a row.
        seeds = [mixed(self._seed, number) for number in range(self.step, step)]
        with drawing_from(0):  # once for all steps: to save and restore the generator takes as long as a layer
            for seed in seeds:
                draw_from(seed, self.examples.x.device)
                if not self._one_step():
                    return False
        return True

    def _one_step(self) -> bool:
        for module in self._staged:
            module.set_progress(self.step / self.recipe.steps)
        picks = next(self._batches)
        loss = loss_of(self.loss, self.model(self.examples.x[picks]), self.examples.y[picks])
        value = float(loss.detach())
        self.losses.append(value)
        if not math.isfinite(value):
            return False
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        self._update()
        self.step += 1
        return True

    def _update(self) -> None:
        """One step of the optimiser along the gradients, clipped."""
        if self.step == 0:
            self._flatten()
        if not all(flat.gather() for flat in self._flats) or any(p.grad is not None for p in self._rest):
            self._unflatten()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(self.step)
        if self._flats:
            if self.recipe.clip:
                clip([flat.whole.grad for flat in self._flats if flat.whole.grad is not None], self.recipe.clip)
            step(self.optimizer)
        else:
            if self.recipe.clip:
                nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip)
            self.optimizer.step()

    def _flatten(self) -> None:
        """Parameters that have a gradient become views of two tensors, where they all can."""
        moving = [p for p in self._parameters if p.grad is not None]
        if can_be_flat(self._parameters) and moving:
            halves = [p for p in moving if p.dim() > 1], [p for p in moving if p.dim() <= 1]
            flats = [Flat(half) if half else None for half in halves]
            self._flats = [flat for flat in flats if flat]
            self.optimizer = self.recipe.optimizer_over(*([flat.whole] if flat else [] for flat in flats))
            self._rest = [p for p in self._parameters if p.grad is None]

    def _unflatten(self) -> None:
        """Back to single parameters: other ones than in the first step have gradients."""
        optimizer = self.recipe.make_optimizer(self.model)
        for flat in self._flats:
            move_state(flat, self.optimizer, optimizer)
        self._flats, self._rest, self.optimizer = [], [], optimizer

    @property
    def second_half_loss(self) -> float:
        """Mean training loss of the second half of the steps so far; the batch's, before each step."""
        half = self.losses[len(self.losses) // 2 :]
        return sum(half) / len(half) if half else math.nan


def mixed(*numbers: int) -> int:
    """A seed from several numbers: other numbers, an unrelated stream (neighbouring seeds share none)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """What is drawn inside comes from that seed; the global generator is then as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def draw_from(seed: int, device: torch.device) -> None:
    """Seed what is drawn on the CPU and on a device; on the CPU alone that is 20 times quicker."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def shuffled_batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Endless index batches, each epoch in a new order; a last short batch is dropped."""
    generator = torch.Generator().manual_seed(seed)
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from (order[i : i + size] for i in range(0, count - size + 1, size))


@contextmanager
def running_kept(model: nn.Module) -> Iterator[None]:
    """Inside, running values may be re-estimated; those that a training itself uses are then as they were.

    Most norms train on a batch's own statistics. One that trains on running ones says `trains_on_running`.
    """
    buffers = [b for m in model.modules() if getattr(m, "trains_on_running", False) for b in m.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


@torch.no_grad()
def restimate_statistics(model: nn.Module, examples: Split, batch_size: int) -> None:
    """Set running statistics to their mean over the first few training batches, always the same.

    A momentum-0.1 average lags far behind after 10 steps, and gates would reject every layer with batch
    statistics. Works for each module with torch's `reset_running_stats` and `momentum`.
    """
    keepers = [m for m in model.modules() if hasattr(m, "reset_running_stats") and hasattr(m, "momentum")]
    if not any(True for m in keepers for _ in m.buffers(recurse=False)):
        return
    saved = [m.momentum for m in keepers]
    for module in keepers:
        module.reset_running_stats()  # type: ignore[operator]
    model.train()
    try:
        for number in range(STATISTICS_BATCHES):
            x = examples.x[number * batch_size : (number + 1) * batch_size]
            if len(x) < 2:
                break
            for module in keepers:
                module.momentum = 1.0 / (number + 1)  # type: ignore[assignment]
            with drawing_from(number):
                model(x)
    finally:
        for module, momentum in zip(keepers, saved, strict=True):
            module.momentum = momentum


@torch.no_grad()
def outputs_of(model: nn.Module, x: Tensor) -> Tensor:
    """The model's outputs in evaluation mode, batch by batch."""
    model.eval()
    with drawing_from(0):
        return torch.cat([model(part) for part in x.split(EVALUATION_BATCH)])

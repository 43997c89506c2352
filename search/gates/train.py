"""Gates that look at trainings: stability, quality, stall, pace."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import nn

from normact.search.gates.base import Pass, TrainContext, TrainGate, Verdict
from normact.search.training import Training, loss_of, shuffled_batches
from normact.spaces.errors import InputError


class Stability(TrainGate):
    """Gradient ascent on the weights to make the loss gradient large (EvoNorm, arXiv 2004.02967).

    With g the gradient of the loss of one small batch with respect to the weights and n its L2 norm, step
    `weights += lr * dn/dweights / |dn/dweights|` on a copy, and reject once n passes `limit` or is not finite.
    It looks at the worst case where quality looks at the average one. The paper does not give its step size. Ours
    is normalised; with 0.5, five steps are enough to tell: on the default anchors all catalogue layers stay far
    below the limit, an unguarded division and an unnormalised square pass it (tests/search/gates/test_train.py).

    Args:
        ascent_steps: most steps; the norm is looked at before the first and after each.
        lr: length of a step in the weights' space.
        limit: largest gradient norm.
        batch_size: examples in the batch.
        at: the training step at which it is done.
        anchors: names of the anchors that it is done on; empty for all.
    """

    name = "stability"

    def __init__(
        self,
        ascent_steps: int = 5,
        lr: float = 0.5,
        limit: float = 1e8,
        batch_size: int = 8,
        at: int = 0,
        anchors: tuple[str, ...] = (),
    ) -> None:
        if ascent_steps < 0 or batch_size < 2 or at < 0:
            raise InputError(
                "stability needs ascent_steps >= 0, batch_size >= 2 and at >= 0, "
                f"got ascent_steps={ascent_steps}, batch_size={batch_size}, at={at}"
            )
        self.ascent_steps = ascent_steps
        self.lr = lr
        self.limit = limit
        self.batch_size = batch_size
        self.steps = (at,)
        self.anchors = tuple(anchors)

    def check(self, ctx: TrainContext) -> Verdict:
        if self.anchors and ctx.anchor not in self.anchors:
            return Pass()
        norm = 0.0
        for step, norm in enumerate(self.norms(ctx.training)):
            if not math.isfinite(norm) or norm > self.limit:
                reason = f"gradient norm {norm:.3g} after {step} ascent steps on {ctx.anchor}"
                return self.rejection(reason, norm=norm, ascent_steps=float(step))
        return Pass({"norm": norm})

    def norms(self, training: Training) -> Iterator[float]:
        """The gradient norm before the first ascent step and after each; the training stays as it is.

        It ends early where the norm is not finite or does not depend on the weights; a second derivative that is not
        finite counts as a norm of infinity.
        """
        model = copy.deepcopy(training.model).train()
        examples = training.examples
        picks = next(shuffled_batches(len(examples), self.batch_size, seed=0))
        x, y = examples.x[picks], examples.y[picks]
        weights = [p for p in model.parameters() if p.requires_grad]
        for step in range(self.ascent_steps + 1):
            last = step == self.ascent_steps
            norm, ascent = _gradient_norm(model, weights, loss_of(training.loss, model(x), y), ascend=not last)
            yield norm
            if last:
                return
            length = math.sqrt(sum(float(a.square().sum()) for a in ascent if a is not None))
            if not math.isfinite(length):
                yield math.inf
            if length == 0 or not math.isfinite(length):
                return
            with torch.no_grad():
                for weight, a in zip(weights, ascent, strict=True):
                    if a is not None:
                        weight.add_(a, alpha=self.lr / length)


def _gradient_norm(
    model: nn.Module, weights: list[nn.Parameter], loss: torch.Tensor, ascend: bool = True
) -> tuple[float, tuple[torch.Tensor | None, ...]]:
    """|d loss / d weights| and its gradient with respect to the weights."""
    gradients = torch.autograd.grad(loss, weights, create_graph=ascend, allow_unused=True)
    norm = torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()
    value = float(norm.detach())
    if not norm.requires_grad or not math.isfinite(value) or value == 0:
        return value, tuple(None for _ in weights)
    return value, torch.autograd.grad(norm, weights, allow_unused=True)


class Quality(TrainGate):
    """The leading objective after some steps, on the scale from 0 (trivial) to 1 (perfect).

    (EvoNorm rejects below twice chance after 100 steps: an accuracy skill of 0.11 with 10 classes.)

    Args:
        at: training step.
        skill: least skill, see `Objective.skill`.
        objective: which of the task's objectives; empty for the first.
    """

    def __init__(self, at: int, skill: float, objective: str = "") -> None:
        if at < 1:
            raise InputError(f"a quality gate looks after at least 1 training step, got at={at}")
        self.steps = (at,)
        self.skill = skill
        self.objective = objective
        self.name = f"quality@{at}"

    def check(self, ctx: TrainContext) -> Verdict:
        objective = ctx.task.objective(self.objective)
        value = ctx.values[objective.name]
        skill = objective.skill(value)
        figures = {f"{ctx.anchor}.{objective.name}": value, f"{ctx.anchor}.skill": skill}
        if not skill >= self.skill:
            return self.rejection(
                f"{objective.name} {value:.4g} on {ctx.anchor}: skill {skill:.3f} below {self.skill:g}",
                **figures,
            )
        return Pass(figures)


class Stall(TrainGate):
    """Whether the net has learnt anything: its skill must have left the neighbourhood of 0, a trivial model's.

    Far below passes too: layers that blow up in their first steps may recover, while those that have not moved by
    then do not begin later (the gate study, `make bench ONLY=gates`).

    Args:
        at: training step.
        low: skills from this one
        high: to this one are rejected.
        objective: which of the task's objectives; empty for the first.
    """

    def __init__(self, at: int, low: float = -0.05, high: float = 0.02, objective: str = "") -> None:
        if at < 1 or not low < high:
            raise InputError(f"a stall gate needs at >= 1 and low < high, got at={at}, low={low}, high={high}")
        self.steps = (at,)
        self.low = low
        self.high = high
        self.objective = objective
        self.name = f"stall@{at}"

    def check(self, ctx: TrainContext) -> Verdict:
        objective = ctx.task.objective(self.objective)
        skill = objective.skill(ctx.values[objective.name])
        figures = {f"{ctx.anchor}.skill": skill}
        if self.low <= skill < self.high:
            return self.rejection(f"nothing learnt on {ctx.anchor}: skill {skill:.3f}", **figures)
        return Pass(figures)


class Pace(TrainGate):
    """A learning-curve stop: the skill must not lag behind what the best candidates had after as many steps.

    Compares with the snapshot that travels in the job, so that a worker needs to ask nobody: the candidate is rejected
    where its skill is more than `margin` below the lowest of the leaders' there. Until there are enough leaders, all
    pass.

    Args:
        at: training step, one at which other accepted candidates are measured too: all are, who pass this gate.
        margin: of skill.
        leaders: so many of the best of the last 256 accepted candidates are compared with.
    """

    def __init__(self, at: int, margin: float = 0.1, leaders: int = 16) -> None:
        if at < 1 or margin < 0 or leaders < 1:
            raise InputError(
                f"a pace gate needs at >= 1, margin >= 0 and leaders >= 1, got at={at}, margin={margin}, "
                f"leaders={leaders}"
            )
        self.steps = (at,)
        self.margin = margin
        self.leaders = leaders
        self.name = f"pace@{at}"

    def check(self, ctx: TrainContext) -> Verdict:
        objective = ctx.task.objective()
        skill = objective.skill(ctx.values[objective.name])
        theirs = ctx.snapshot.get("curves", {}).get(ctx.anchor, {}).get(str(self.steps[0]), [])
        least = min(theirs[: self.leaders], default=-math.inf)
        figures = {f"{ctx.anchor}.skill": skill, **({f"{ctx.anchor}.leaders": least} if theirs else {})}
        if not skill >= least - self.margin:
            return self.rejection(
                f"skill {skill:.3f} on {ctx.anchor}: the lowest of {len(theirs)} leaders had {least:.3f} by then",
                **figures,
            )
        return Pass(figures)

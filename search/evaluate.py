"""`Evaluator`: what runs in a worker. Judges a job's candidates; their errors become rejections."""

from __future__ import annotations

import copy
import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from normact.search.data.base import Split
from normact.search.gates.base import Gate, ScreenContext, ScreenGate, TrainContext, TrainGate, Verdict
from normact.search.heap import keep_freed_memory
from normact.search.leaders import SKILL
from normact.search.objective import Objective, Score
from normact.search.outcome import Outcome, Rejection
from normact.search.pool import Job, worker_name
from normact.search.task import Task
from normact.search.training import Training, drawing_from, mixed
from normact.spaces.errors import InputError
from normact.spaces.site import Site
from normact.spaces.space import Space

CHANGEABLE = ("steps", "warmup", "lr")
"""Of a recipe, by a single job."""


@dataclass
class _Record:
    """An outcome while it is made."""

    number: int
    seed: int
    device: str
    figures: dict[str, float] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    fingerprint: str = ""

    def timed(self, name: str, action: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        try:
            return action()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def ask(self, gate: Gate, check: Callable[[], Verdict]) -> Rejection | None:
        """A gate's rejection, if any; its figures are kept either way."""
        verdict = self.timed(gate.name, check)
        self.figures.update({f"{gate.name}.{name}": value for name, value in verdict.figures.items()})
        return verdict if isinstance(verdict, Rejection) else None

    def outcome(self, rejection: Rejection | None) -> Outcome:
        return Outcome(
            number=self.number,
            gate=rejection.gate if rejection else "",
            reason=rejection.reason if rejection else "",
            figures=self.figures,
            scores=tuple(self.scores),
            steps=self.steps,
            seconds=self.seconds,
            memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            seed=self.seed,
            device=self.device,
            worker=worker_name(),
            fingerprint=self.fingerprint,
        )


class Evaluator:
    """Judges candidates of a space by gates and by training on a task.

    Args:
        space: what the candidates are of.
        task: what they are trained on.
        gates: in order; screening gates run in `screen` jobs, training gates in `train` jobs.
        measure_test: also measure the test split, as `test_<objective>`, in jobs that ask for it: for the final rerank
            alone.

    Raises:
        InputError: two gates of one name, a gate that looks past the last training step, or one that goes by an
            objective that the task does not measure or that is none of quality.
    """

    def __init__(self, space: Space, task: Task, gates: Sequence[Gate], measure_test: bool = False) -> None:
        self.space = space
        self.task = task
        self.screen_gates = [g for g in gates if isinstance(g, ScreenGate)]
        self.train_gates = [g for g in gates if isinstance(g, TrainGate)]
        self.measure_test = measure_test
        self._changed: dict[tuple[tuple[str, Any], ...], Evaluator] = {}
        names = [gate.name for gate in gates]
        if len(set(names)) != len(names):
            raise InputError(f"gates need different names, got {', '.join(names)}")
        for gate in self.train_gates:
            if max(gate.steps) > task.recipe.steps:
                raise InputError(
                    f"gate {gate.name} looks at step {max(gate.steps)}, but training ends at {task.recipe.steps}; "
                    "lengthen recipe.steps or drop the gate"
                )
            if gate.objective and not task.measures[task.objective(gate.objective).name].quality:
                raise InputError(
                    f"gate {gate.name} goes by {gate.objective}, which is none of quality: it is measured when a "
                    "training has ended; name another objective"
                )

    def __call__(self, job: Job) -> Sequence[Outcome]:
        if job.recipe:
            return self._with(job.recipe)(replace(job, recipe={}))
        snapshot, test = job.snapshot, job.test and self.measure_test

        def train(candidate: Any, record: _Record) -> Rejection | None:
            rejection = self._train(candidate, record, snapshot, test)
            return rejection or self._race(candidate, record, snapshot.get("race", ()))

        judge = self._screen if job.kind == "screen" else train
        if job.kind == "train":
            keep_freed_memory()
            self._load(test)
        return [self._judged(judge, number, data, job.seed) for number, data in job.candidates]

    def _with(self, changes: Mapping[str, Any]) -> Evaluator:
        """One with a changed recipe that shares the data.

        Raises:
            InputError: a change that data or gates depend on, or a recipe that cannot be.
        """
        if unknown := [name for name in changes if name not in CHANGEABLE]:
            raise InputError(f"a training's recipe may change in {', '.join(CHANGEABLE)}, got {unknown[0]!r}")
        key = tuple(sorted(changes.items()))
        if key not in self._changed:
            self._load(test=False)
            task = copy.copy(self.task)
            task.recipe = replace(task.recipe, **changes)
            gates = [*self.screen_gates, *self.train_gates]
            self._changed[key] = Evaluator(self.space, task, gates, self.measure_test)
        return self._changed[key]

    def _load(self, test: bool) -> None:
        """Data that cannot be loaded are no candidate's fault, and the time that takes is none of its cost."""
        _ = self.task.splits
        if test:
            _ = self._test

    def _judged(self, judge: Callable[[Any, _Record], Rejection | None], number: int, data: Any, seed: int) -> Outcome:
        record = _Record(number, seed, device_name(self.task.device))
        try:
            with drawing_from(seed):  # a candidate's own draws: the same in whichever worker and batch
                rejection = judge(self.space.from_json(data), record)
        except Exception as problem:  # a candidate's own error is a finding about it, not about the run
            rejection = Rejection("error", f"{type(problem).__name__}: {str(problem)[:500]}")
        return record.outcome(rejection)

    def _screen(self, candidate: Any, record: _Record) -> Rejection | None:
        ctx = ScreenContext(self.space, candidate, record.seed, self.task)
        for gate in self.screen_gates:
            rejection = record.ask(gate, lambda gate=gate: gate.check(ctx))  # type: ignore[misc]
            record.fingerprint = ctx.fingerprint
            if rejection:
                return rejection
        return None

    def _train(self, candidate: Any, record: _Record, snapshot: Mapping[str, Any], test: bool) -> Rejection | None:
        """Train all anchors side by side from checkpoint to checkpoint, so that the first to fail ends all."""
        trainings = record.timed("build", lambda: self._start(candidate, record.seed))
        last = self.task.recipe.steps
        for step in sorted({0, last, *(s for gate in self.train_gates for s in gate.steps)}):
            gates = [gate for gate in self.train_gates if step in gate.steps]
            for anchor, training in trainings.items():
                rejection = _diverged(anchor, training, step, record)
                record.steps = max(record.steps, training.step)
                if rejection:
                    return rejection
                values = self._values(anchor, training, record) if step else {}
                if rejection := _broken(values, anchor, step):
                    return rejection
                ctx = TrainContext(self.space, candidate, self.task, anchor, training, values, record.seed, snapshot)
                for gate in gates:
                    if rejection := record.ask(gate, lambda g=gate, c=ctx: g.check(c)):  # type: ignore[misc]
                        return rejection
        return self._measure_test(trainings, record) if test else None

    def _race(self, candidate: Any, record: _Record, bars: Sequence[float]) -> Rejection | None:
        """Train it under further seeds while its mean skill is at or above the bars; its last scores become means.

        Gates have been passed: under further seeds only a loss or score that is not finite rejects.
        """
        if not bars:
            return None
        objective, last = self.task.objective(), self.task.recipe.steps
        rounds = [{(s.objective, s.anchor): s.value for s in record.scores if s.step == last}]
        for bar in bars:
            if not np.mean([skill_of(values, objective) for values in rounds]) >= bar:
                break
            values, rejection = self._again(candidate, record, further_seed(record.seed, len(rounds)))
            if rejection:
                return rejection
            rounds.append(values)
        record.figures |= {f"{SKILL}{n}": skill_of(values, objective) for n, values in enumerate(rounds)}
        means = {key: float(np.mean([values[key] for values in rounds])) for key in rounds[0]}
        record.scores = [replace(s, value=means[s.objective, s.anchor]) if s.step == last else s for s in record.scores]
        return None

    def _again(
        self, candidate: Any, record: _Record, seed: int
    ) -> tuple[dict[tuple[str, str], float], Rejection | None]:
        """The last scores of a training under another seed, by objective and anchor."""
        values: dict[tuple[str, str], float] = {}
        with drawing_from(seed):
            trainings = record.timed("build", lambda: self._start(candidate, seed))
        for anchor, training in trainings.items():
            if rejection := _diverged(anchor, training, self.task.recipe.steps, record):
                return values, replace(rejection, reason=f"{rejection.reason} under seed {seed}")
            measured = record.timed("measure", lambda t=training: self.task.measure(t))  # type: ignore[misc]
            if rejection := _broken(measured, anchor, training.step):
                return values, rejection
            values |= {(name, anchor): value for name, value in measured.items()}
        return values, None

    def _start(self, candidate: Any, seed: int) -> dict[str, Training]:
        def make(site: Site) -> nn.Module:
            return self.space.build(candidate, site)

        return {name: self.task.start(name, make, seed) for name in self.task.anchors}

    def _values(self, anchor: str, training: Training, record: _Record) -> dict[str, float]:
        values = record.timed("measure", lambda: self.task.measure(training))
        record.scores += [Score(name, anchor, training.step, value) for name, value in values.items()]
        return values

    def _measure_test(self, trainings: dict[str, Training], record: _Record) -> Rejection | None:
        for anchor, training in trainings.items():
            values = record.timed("measure", lambda t=training: self.task.measure(t, self._test))  # type: ignore[misc]
            record.scores += [Score(f"test_{k}", anchor, training.step, v) for k, v in values.items()]
            if rejection := _broken(values, anchor, training.step):
                return rejection
        return None

    @cached_property
    def _test(self) -> Split:
        return self.task.data.load_test().check_finite("test").to(self.task.device)


def skill_of(values: Mapping[tuple[str, str], float], objective: Objective) -> float:
    """The mean over anchors of an objective's skill, of values by objective and anchor."""
    return float(np.mean([objective.skill(value) for (name, _), value in values.items() if name == objective.name]))


def further_seed(seed: int, number: int) -> int:
    """The seed under which a candidate is trained again, for the `number`-th time: the same for all candidates."""
    return mixed(seed, number) % 2**31


def _diverged(anchor: str, training: Training, step: int, record: _Record) -> Rejection | None:
    """Train up to a step: a rejection where the loss is not finite on the way."""
    if record.timed("train", lambda: training.run_to(step)):
        return None
    reason = f"the loss on {anchor} was {training.losses[-1]} at step {training.step}"
    return Rejection("divergence", reason)


def _broken(values: dict[str, float], anchor: str, step: int) -> Rejection | None:
    """A rejection where something measured is not finite."""
    broken = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
    return Rejection("divergence", f"{', '.join(broken)} on {anchor} at step {step}") if broken else None


def device_name(device: str) -> str:
    """The kind of device, as rankings tell them apart: `cpu`, or the GPU's name."""
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    return torch.device(device).type

"""`Engine`: the asynchronous loop between controller, pool and ledger. It has no generation barrier."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from normact.search.controllers.base import Controller
from normact.search.funnel import Funnel
from normact.search.ledger import Event, EventKind, Ledger
from normact.search.objective import Objective
from normact.search.outcome import Outcome, Proposal
from normact.search.pool import Done, Failed, Job, JobKind, Lost, Pool, Report, TimedOut
from normact.spaces.errors import InputError
from normact.spaces.space import Space

REPORTS_AT_ONCE = 64
KILLS_ALLOWED = 2
EXHAUSTED = 10_000
FAILURES_ALLOWED = 3
CLOCK_EVERY = 1.0


@dataclass(frozen=True)
class Budget:
    """When a search ends: whichever comes first.

    Args:
        proposals: all of them are judged; None for no limit.
        minutes: of searching, earlier sessions of the run included; what is in flight then stays unfinished.

    Raises:
        InputError: neither is given, or one is not above zero.
    """

    proposals: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.proposals is None and self.minutes is None:
            raise InputError("no budget: give budget.proposals, budget.minutes or both")
        for name, value in (("proposals", self.proposals), ("minutes", self.minutes)):
            if value is not None and not value > 0:
                raise InputError(f"budget.{name} must be above zero, got {value}")


@dataclass(frozen=True)
class Limits:
    """What one candidate may take, and how work is cut into jobs.

    Args:
        screen_seconds: wall time of screening one candidate.
        train_seconds: wall time of training one candidate.
        job_seconds: how long a job should take; candidates are batched up to this by their measured cost.
        batch: most candidates in a job.
    """

    screen_seconds: float = 20.0
    train_seconds: float = 300.0
    job_seconds: float = 0.2
    batch: int = 64

    def per_candidate(self, kind: JobKind) -> float:
        """The wall time that one candidate may take in a job of that kind."""
        return self.screen_seconds if kind == "screen" else self.train_seconds


@dataclass(frozen=True)
class Progress:
    """A look at a running search, for displays."""

    funnel: Funnel
    best: Outcome | None
    best_skill: float
    seconds: float
    remaining: float | None


class Engine:
    """Runs a search until its budget is spent.

    Keeps the pool busy: what passed screening is trained first, and just so much is proposed that workers never
    wait. Everything that happens goes to the ledger, in order, one transaction per turn of the loop; so a killed
    run is resumed by `replay` of its ledger, and what was in flight is judged again under the same number.

    A function that was judged, or is being judged, is never trained again: its key is looked up when it is
    proposed, its fingerprint when it was screened. The later one waits for the first and becomes `same_as` it.

    Args:
        space: of the candidates.
        controller: proposes.
        ledger: records; opened for writing.
        pool: judges.
        budget: when to end.
        objective: decides which is the best so far.
        seed: of every job: candidates are compared under common random numbers.
        limits: per candidate and job.
    """

    def __init__(
        self,
        space: Space,
        controller: Controller,
        ledger: Ledger,
        pool: Pool,
        budget: Budget,
        objective: Objective,
        seed: int = 0,
        limits: Limits | None = None,
    ) -> None:
        self.space = space
        self.controller = controller
        self.ledger = ledger
        self.pool = pool
        self.budget = budget
        self.objective = objective
        self.seed = seed
        self.limits = limits or Limits()
        self.outcomes: dict[int, Outcome] = {}
        self.funnel = Funnel()
        self.best: Outcome | None = None
        self.best_skill = float("-inf")
        self._proposals: dict[int, Proposal] = {}
        self._keys: dict[int, str] = {}
        self._by_key: dict[str, int] = {}
        self._by_fingerprint: dict[str, int] = {}
        self._twins: defaultdict[int, list[int]] = defaultdict(list)
        self._screened: dict[int, Outcome] = {}
        self._waiting: dict[JobKind, deque[int]] = {"screen": deque(), "train": deque()}
        self._alone: dict[JobKind, deque[int]] = {"screen": deque(), "train": deque()}
        self._flying: dict[int, Job] = {}
        self._deaths: defaultdict[int, int] = defaultdict(int)
        self._cost: dict[JobKind, float | None] = {"screen": None, "train": None}
        self._since: dict[int, float] = {}
        self._failed: list[Outcome] = []
        self._judged_any = False
        self._stopped = False
        self._clocked = 0.0
        self._duplicates_in_a_row = 0
        self._events: list[Event] = []
        self._jobs = 0
        self._before = 0.0
        self._started = time.monotonic()

    # -- the loop ----------------------------------------------------------------------------------------------

    def replay(self) -> int:
        """Bring the controller and this engine to where the ledger ends. Returns how many are judged again."""
        for event in self.ledger.events("proposed", "finished"):
            if event.kind == "proposed":
                proposal = self._proposal(event)
                self.controller.replay(proposal)
                self._note(proposal)
                self._keys[proposal.number] = event.data["key"]
            else:
                self._take(Outcome.from_json(event.data))
        self._before = float(self.ledger.meta("active_seconds", 0.0))
        for number in self.outcomes:
            self._by_key.setdefault(self._keys[number], number)
        unfinished = [number for number in self._proposals if number not in self.outcomes]
        for number in unfinished:
            self._admit(number)
        return len(unfinished)

    def run(self, on_progress: Callable[[Progress], None] = lambda progress: None) -> bool:
        """Search until the budget is spent. False where Ctrl-C ended it; all that was learnt is recorded."""
        self._started = time.monotonic()
        try:
            while not self._stopped and not self._out_of_time:
                self._fill()
                self._flush()
                if self._has_work:
                    self._collect()
                    self._flush()
                elif self._failed:
                    self._settle_failures()
                elif not self._may_propose:
                    break
                on_progress(self.progress)
        except KeyboardInterrupt:
            self.stop()
        finally:
            for job_id in list(self._flying):
                self.pool.cancel(job_id)
            self._flush(last=True)
        on_progress(self.progress)
        return not self._stopped

    def stop(self) -> None:
        """Make `run` end at its next turn, everything recorded. May be called from a signal handler."""
        self._stopped = True

    @property
    def _has_work(self) -> bool:
        """Whether something is in flight or waits, be it for a worker that has yet to come up."""
        return bool(self._flying) or any(self._alone.values()) or any(self._waiting.values())

    @property
    def exhausted(self) -> bool:
        """Whether so many proposals in a row were duplicates that nothing new can be expected."""
        return self._duplicates_in_a_row >= EXHAUSTED

    @property
    def seconds(self) -> float:
        """Seconds of searching, earlier sessions included."""
        return self._before + time.monotonic() - self._started

    @property
    def progress(self) -> Progress:
        """How far the search is."""
        remaining = None if self.budget.minutes is None else max(0.0, self.budget.minutes * 60 - self.seconds)
        return Progress(self.funnel, self.best, self.best_skill, self.seconds, remaining)

    def describe(self, number: int) -> str:
        """A proposal in one line."""
        return self.space.describe(self._proposals[number].candidate)

    @property
    def _out_of_time(self) -> bool:
        return self.budget.minutes is not None and self.seconds >= self.budget.minutes * 60

    @property
    def _may_propose(self) -> bool:
        spent = self.budget.proposals is not None and len(self._proposals) >= self.budget.proposals
        return not spent and not self._out_of_time and not self.exhausted

    # -- handing out work --------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Trainings first; then as much screening as keeps the trainings coming."""
        backlog = 2 * self.pool.capacity["train"]
        while self.pool.free("train") > 0 and self._submit("train"):
            pass
        while self.pool.free("screen") > 0 and len(self._waiting["train"]) < backlog:
            if not self._alone["screen"]:
                self._propose(self._batch("screen"))
            if not self._submit("screen"):
                break

    def _propose(self, wanted: int) -> None:
        """Ask until so many wait for screening; duplicates by key are answered at once and do not count."""
        for _ in range(10 * wanted):
            if len(self._waiting["screen"]) >= wanted or not self._may_propose:
                return
            proposal = self.controller.ask()
            self._note(proposal)
            self._keys[proposal.number] = self._key(proposal)
            self._event("proposed", proposal.number, self._proposal_json(proposal))
            self._admit(proposal.number)

    def _key(self, proposal: Proposal) -> str:
        """The candidate's key; where that fails, one of its own: screening then finds out what is wrong with it."""
        try:
            return self.space.key(proposal.candidate)
        except Exception:
            return f"proposal {proposal.number} has no key"

    def _batch(self, kind: JobKind) -> int:
        cost = self._cost[kind]
        if cost is None:
            return 8 if kind == "screen" else 1
        return int(max(1, min(self.limits.batch, self.limits.job_seconds / max(cost, 1e-6))))

    def _submit(self, kind: JobKind) -> bool:
        """Submit one job of a kind; False where nothing waits."""
        if self._alone[kind]:
            numbers = [self._alone[kind].popleft()]
        else:
            waiting = self._waiting[kind]
            numbers = [waiting.popleft() for _ in range(min(len(waiting), self._batch(kind)))]
        if not numbers:
            return False
        candidates = tuple((n, self.space.to_json(self._proposals[n].candidate)) for n in numbers)
        limit = self.limits.per_candidate(kind)
        if len(numbers) > 1:  # a batch is sized to take `job_seconds`: more would let one that hangs hold a worker long
            limit += 10 * self.limits.job_seconds
        job = Job(self._jobs, kind, candidates, self.seed, limit)
        self._jobs += 1
        self._flying[job.id] = job
        self._since[job.id] = time.monotonic()
        if kind == "train":
            for number in numbers:
                self._event("started", number, {"job": job.id})
        self.pool.submit(job)
        return True

    # -- taking in reports -------------------------------------------------------------------------------------

    def _collect(self) -> None:
        wait = 0.5 if self.budget.minutes is None else min(0.5, max(0.0, self.budget.minutes * 60 - self.seconds))
        for _ in range(REPORTS_AT_ONCE):
            report = self.pool.next(wait)
            if report is None:
                return
            wait = 0.0
            self._handle(report)

    def _handle(self, report: Report) -> None:
        job = self._flying.pop(report.job.id, None)
        if job is None:  # an answer to a job that was given up: outcomes are taken once
            return
        seconds = time.monotonic() - self._since.pop(job.id)
        if isinstance(report, Done):
            self._judged_any = True
            self._settle_failures()
            self._learn_cost(job.kind, report.outcomes)
            for outcome in report.outcomes:
                if job.kind == "screen":
                    self._screen_passed(outcome) if not outcome.gate else self._finish(outcome)
                else:
                    self._finish(_joined(self._screened.pop(outcome.number, None), outcome))
            return
        for number, _ in job.candidates:
            self._event("lost", number, {"job": job.id, "why": type(report).__name__, "reason": _reason(report)})
        if len(job.candidates) > 1:  # find out which one it was
            self._alone[job.kind].extend(number for number, _ in job.candidates)
            return
        self._blame(job.kind, job.candidates[0][0], report, seconds)

    def _blame(self, kind: JobKind, number: int, report: Failed | TimedOut | Lost, seconds: float) -> None:
        if isinstance(report, Lost):
            self._deaths[number] += report.deaths
            if self._deaths[number] < KILLS_ALLOWED:
                self._alone[kind].append(number)
                return
        gate = {"TimedOut": "time", "Lost": "worker", "Failed": "error"}[type(report).__name__]
        reason = f"in its {kind} job: {_reason(report)}"
        rejected = Outcome(number, gate, reason, seconds={gate: seconds}, seed=self.seed)
        if isinstance(report, Failed):  # the candidate's fault only if others go well: see _settle_failures
            self._failed.append(rejected)
            if len(self._failed) >= FAILURES_ALLOWED:
                raise InputError(f"the evaluator failed {len(self._failed)} times in a row: {_reason(report)}")
        else:
            self._reject(rejected)

    def _settle_failures(self) -> None:
        """Evaluators that failed alone: their candidates are rejected, unless nothing was ever judged.

        Raises:
            InputError: nothing was ever judged, so it is not the candidates.
        """
        if self._failed and not self._judged_any:
            raise InputError(f"the evaluator fails on everything: {self._failed[0].reason}")
        failed, self._failed = self._failed, []
        for rejected in failed:
            self._reject(rejected)

    def _reject(self, rejected: Outcome) -> None:
        self._finish(_joined(self._screened.pop(rejected.number, None), rejected))

    def _screen_passed(self, outcome: Outcome) -> None:
        number = outcome.number
        self._screened[number] = outcome
        if outcome.fingerprint:
            first = self._by_fingerprint.setdefault(outcome.fingerprint, number)
            if first != number:
                self._same(number, first)
                return
        self._waiting["train"].append(number)

    def _admit(self, number: int) -> None:
        """A proposal enters: it is a duplicate by key, or goes to screening."""
        first = self._by_key.setdefault(self._keys[number], number)
        if first == number:
            self._waiting["screen"].append(number)
        else:
            self._same(number, first)

    def _same(self, number: int, first: int) -> None:
        """Number computes the same as first: answered from its outcome, or waits for it."""
        known = self.outcomes.get(first)
        if known is None:
            self._twins[first].append(number)
            return
        root = first if known.same_as is None else known.same_as
        same = Outcome(number, "duplicate", f"computes the same as proposal {root}", same_as=root, seed=self.seed)
        self._finish(_joined(self._screened.pop(number, None), same))

    def _finish(self, outcome: Outcome) -> None:
        self._event("finished", outcome.number, outcome.to_json())
        self._take(outcome)
        for twin in self._twins.pop(outcome.number, []):
            self._same(twin, outcome.number)

    def _take(self, outcome: Outcome) -> None:
        """Count an outcome, new or replayed, and tell it to the controller."""
        self.outcomes[outcome.number] = outcome
        if outcome.fingerprint and outcome.same_as is None:
            self._by_fingerprint.setdefault(outcome.fingerprint, outcome.number)
        self._duplicates_in_a_row = 0 if outcome.same_as is None else self._duplicates_in_a_row + 1
        self.funnel.add(outcome)
        self.controller.tell(outcome.number, outcome)
        comparable = self.best is None or self.best.device == outcome.device
        if outcome.accepted and comparable and (skill := mean_skill(self.objective, outcome)) > self.best_skill:
            self.best, self.best_skill = outcome, skill

    # -- records -----------------------------------------------------------------------------------------------

    def _note(self, proposal: Proposal) -> None:
        self._proposals[proposal.number] = proposal
        self.funnel.proposals += 1
        if proposal.number in self.outcomes:  # pragma: no cover - the ledger's order forbids it
            raise ValueError(f"proposal {proposal.number} was finished before it was proposed")

    def _event(self, kind: EventKind, number: int, data: Any) -> None:
        self._events.append(Event(kind, number, data, time.time()))

    def _flush(self, last: bool = False) -> None:
        """Write what happened, and now and then how long the search took: a killed session's time counts too."""
        events, self._events = self._events, []
        self.ledger.append(events)
        if last or time.monotonic() - self._clocked >= CLOCK_EVERY:
            self.ledger.set_meta("active_seconds", self.seconds)
            self._clocked = time.monotonic()

    def _proposal_json(self, proposal: Proposal) -> dict[str, Any]:
        return {
            "candidate": self.space.to_json(proposal.candidate),
            "key": self._keys[proposal.number],
            "parents": list(proposal.parents),
            "operator": proposal.operator,
            "note": proposal.note,
        }

    def _proposal(self, event: Event) -> Proposal:
        d = event.data
        candidate = self.space.from_json(d["candidate"])
        return Proposal(event.number, candidate, tuple(d["parents"]), d["operator"], d["note"])

    def _learn_cost(self, kind: JobKind, outcomes: tuple[Outcome, ...]) -> None:
        """A running mean of worker seconds per candidate."""
        seconds = sum(sum(o.seconds.values()) for o in outcomes) / len(outcomes)
        old = self._cost[kind]
        self._cost[kind] = seconds if old is None else 0.9 * old + 0.1 * seconds


def mean_skill(objective: Objective, outcome: Outcome) -> float:
    """The mean over anchors of the objective's last skill; minus infinity where there is none."""
    values = outcome.final(objective.name).values()
    return sum(objective.skill(v) for v in values) / len(values) if values else float("-inf")


def _joined(screened: Outcome | None, outcome: Outcome) -> Outcome:
    """An outcome with what screening found before it."""
    if screened is None:
        return outcome
    return replace(
        outcome,
        figures={**screened.figures, **outcome.figures},
        seconds={**screened.seconds, **outcome.seconds},
        fingerprint=screened.fingerprint,
    )


def _reason(report: Failed | TimedOut | Lost) -> str:
    return f"no answer within {report.seconds:.1f} s" if isinstance(report, TimedOut) else report.reason

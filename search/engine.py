"""`Engine`: the asynchronous loop between controller, pool and ledger. It has no generation barrier."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from normact.search.budget import Budget, Limits
from normact.search.clock import Clock
from normact.search.controllers.base import Controller
from normact.search.duplicates import Duplicates
from normact.search.funnel import Funnel
from normact.search.history import History, Record
from normact.search.leaders import Leaders
from normact.search.ledger import Event, EventKind, Ledger
from normact.search.objective import Objective
from normact.search.outcome import Outcome, Proposal, mean_skill
from normact.search.pool import Done, Failed, Job, JobKind, Lost, Pool, Report, TimedOut
from normact.spaces.errors import InputError
from normact.spaces.space import Space

REPORTS_AT_ONCE = 64
HOLD_SECONDS = 0.2  # how long an event may wait for others, to be written with them
FILL_SECONDS = 0.05  # after so long of handing out, answers are taken in
LEAST_PASSING = 0.01  # of the share of screened candidates that go on to training, as it is estimated
CLOCK_SECONDS = 1.0  # how old the time in the ledger may be while nothing happens
WAIT_SECONDS = 0.5
KILLS_ALLOWED = 2
EXHAUSTED = 10_000
FAILURES_ALLOWED = 3


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
    wait. Everything that happens goes to the ledger, in order, after at most 0.2 seconds and before the engine
    waits for anything; so a killed run is resumed by `replay` of its ledger, and what was in flight is judged again
    under the same number.

    A function that was judged, or is being judged, is never trained again: its key is looked up when it is
    proposed, its fingerprint when it was screened. The later one waits for the first and becomes `same_as` it.

    In memory are the open proposals, and of the others their keys and fingerprints alone.

    Args:
        space: of the candidates.
        controller: proposes.
        ledger: records; opened for writing.
        pool: judges.
        budget: when to end.
        objective: decides which is the best so far.
        seed: of every job: candidates are compared under common random numbers.
        limits: per candidate and job.
        clock: the time that it goes by.
        leaders: what stopping rules and races compare with; every training takes a snapshot along.
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
        clock: Clock | None = None,
        leaders: Leaders | None = None,
    ) -> None:
        self.space = space
        self.controller = controller
        self.ledger = ledger
        self.pool = pool
        self.budget = budget
        self.objective = objective
        self.seed = seed
        self.limits = limits or Limits()
        self.clock = clock or Clock()
        self.leaders = leaders or Leaders(objective)
        self.funnel = Funnel()
        self.best: Outcome | None = None
        self.best_skill = float("-inf")
        self._best_proposal: Proposal | None = None
        self._open: dict[int, Proposal] = {}
        self._keys: dict[int, str] = {}
        self._duplicates = Duplicates()
        self._screened: dict[int, Outcome] = {}
        self._waiting: dict[JobKind, deque[int]] = {"screen": deque(), "train": deque()}
        self._alone: dict[JobKind, deque[int]] = {"screen": deque(), "train": deque()}
        self._flying: dict[int, Job] = {}
        self._deaths: defaultdict[int, int] = defaultdict(int)
        self._cost: dict[JobKind, float | None] = {"screen": None, "train": None}
        self._since: dict[int, float] = {}
        self._failed: dict[JobKind, list[Outcome]] = {"screen": [], "train": []}
        self._screening = 0
        self._passing = 1.0
        self._judged: set[JobKind] = set()
        self._stopped = False
        self._duplicates_in_a_row = 0
        self._events: list[Event] = []
        self._whole = 0  # so many of them belong to steps that ended, and these were the counts then
        self._counts = self.funnel.to_json()
        self._held_since = self._written = self.clock.now()
        self._jobs = 0
        self._before = 0.0
        self._started = self.clock.now()

    # -- the loop ----------------------------------------------------------------------------------------------

    def replay(self) -> int:
        """Bring the controller and this engine to where the ledger ends. Returns how many are judged again."""
        history = History(self.ledger)
        self.funnel = history.funnel
        self._counts = self.funnel.to_json()
        self._before = float(self.ledger.meta("active_seconds", 0.0))
        for number in self._recall():
            self._open[number] = history.record(number).proposal(self.space)
        if self.controller.history is None:
            self._replay_controller(history)
        else:
            latest = history.latest_accepted(self.controller.history)
            told = [(history.record(outcome.number).proposal(self.space), outcome) for outcome in latest]
            self.controller.restore(self.funnel.proposals, list(self._open.values()), told)
        for outcome in history.latest_accepted(self.leaders.window):
            self.leaders.learn(outcome)
        if device := history.device:
            best = self.ledger.ranked(self.objective.name, device, self.objective.direction == "maximize", 1)
            for number in best:
                self._note_best(history.outcome(number), history.record(number).proposal(self.space))
        for number in self._open:
            self._admit(number)
        return len(self._open)

    def _recall(self) -> list[int]:
        """Learn keys and fingerprints of what is known. Returns the numbers of what is unfinished, in order."""
        keys: dict[int, str] = {}
        for kind, number, key, same_as in self.ledger.identities():
            if kind == "proposed":
                keys[number] = key or ""
                continue
            self._duplicates.belongs(keys.pop(number), number if same_as is None else same_as)
            if key is not None and same_as is None:
                self._duplicates.first_of_fingerprint(key, number)
        self._keys = keys
        return list(keys)

    def _replay_controller(self, history: History) -> None:
        for told in history.told():
            if isinstance(told, Record):
                self.controller.replay(told.proposal(self.space))
            else:
                self.controller.tell(told.number, told)

    def run(self, on_progress: Callable[[Progress], None] = lambda progress: None) -> bool:
        """Search until the budget is spent. False where Ctrl-C ended it; all that was learnt is recorded."""
        self._started = self.clock.now()
        try:
            while not self._stopped and not self._out_of_time:
                filled = self._fill()
                if self._has_work:
                    self._collect(wait=filled)
                elif any(self._failed.values()):
                    self._settle_failures("screen")
                    self._settle_failures("train")
                elif not self._may_propose:
                    break
                elif self.pool.free("screen") <= 0:  # none is up: the pool learns of the next one when it is asked
                    self._collect()
                on_progress(self.progress)
            self._end_step()
        except KeyboardInterrupt:
            self.stop()
        finally:
            for job_id in list(self._flying):
                self.pool.cancel(job_id)
            self._write()
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
        return self._before + self.clock.now() - self._started

    @property
    def progress(self) -> Progress:
        """How far the search is."""
        seconds = self.seconds
        return Progress(self.funnel, self.best, self.best_skill, seconds, self.budget.remaining(seconds))

    def describe(self, number: int) -> str:
        """A proposal in one line."""
        best = self._best_proposal
        proposal = best if best and best.number == number else self._open.get(number)
        proposal = proposal or History(self.ledger).record(number).proposal(self.space)
        return self.space.describe(proposal.candidate)

    @property
    def _out_of_time(self) -> bool:
        return self.budget.remaining(self.seconds) == 0

    @property
    def _may_propose(self) -> bool:
        spent = self.budget.proposals is not None and self.funnel.proposals >= self.budget.proposals
        return not spent and not self._out_of_time and not self.exhausted

    # -- handing out work --------------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Trainings first; then as much screening as keeps them coming. False where more is left to hand out."""
        until = self.clock.now() + FILL_SECONDS
        while self.pool.free("train") > 0 and self._submit("train"):
            self._flush_if_due()
        while self.pool.free("screen") > 0 and self._to_come < self._wanted:
            if self.clock.now() >= until:
                return False
            if not self._alone["screen"]:
                self._propose(self.limits.batch_size("screen", self._cost["screen"]), until)
            if not self._submit("screen"):
                break
            self._flush_if_due()
        return True

    @property
    def _wanted(self) -> int:
        """How many trainings may wait: what idle workers take, and two jobs a worker, or an eighth of many workers.

        More would be proposed from older news than need be.
        """
        workers = self.pool.capacity["train"]
        jobs = self.pool.free("train") + max(2 * min(workers, 32), workers // 8)
        return jobs * self.limits.batch_size("train", self._cost["train"])

    @property
    def _to_come(self) -> float:
        """How many trainings wait, or can be expected of what is being screened."""
        return len(self._waiting["train"]) + self._passing * self._screening

    def _propose(self, wanted: int, until: float) -> None:
        """Ask until so many wait for screening; duplicates by key are answered at once and do not count."""
        for _ in range(10 * wanted):
            if len(self._waiting["screen"]) >= wanted or not self._may_propose or self.clock.now() >= until:
                return
            proposal = self.controller.ask()
            key = self._key(proposal)
            data = self._proposal_json(proposal, key)
            self.funnel.proposals += 1
            self._open[proposal.number] = proposal
            self._keys[proposal.number] = key
            self._event("proposed", proposal.number, data)
            self._admit(proposal.number)
            self._flush_if_due()

    def _key(self, proposal: Proposal) -> str:
        """The candidate's key; where that fails, one of its own: screening then finds out what is wrong with it."""
        try:
            return self.space.key(proposal.candidate)
        except Exception:
            return f"proposal {proposal.number} has no key"

    def _submit(self, kind: JobKind) -> bool:
        """Submit one job of a kind; False where nothing waits."""
        if self._alone[kind]:
            numbers = [self._alone[kind].popleft()]
        else:
            waiting, size = self._waiting[kind], self.limits.batch_size(kind, self._cost[kind])
            numbers = [waiting.popleft() for _ in range(min(len(waiting), size))]
        if not numbers:
            return False
        candidates = tuple((n, self.space.to_json(self._open[n].candidate)) for n in numbers)
        snapshot = self.leaders.snapshot() if kind == "train" else {}
        job = Job(self._jobs, kind, candidates, self.seed, self.limits.per_job(kind, len(numbers)), snapshot)
        self._jobs += 1
        self._flying[job.id] = job
        self._since[job.id] = self.clock.now()
        if kind == "screen":
            self._screening += len(numbers)
        else:
            for number in numbers:
                self._event("started", number, {"job": job.id})
        self.pool.submit(job)
        return True

    # -- taking in reports -------------------------------------------------------------------------------------

    def _collect(self, wait: bool = True) -> None:
        """Take in what is there; where nothing is, write down what happened and wait."""
        if not self.pool.can_kill:  # it judges when it is asked, and may end the process while it does
            self._flush()
        report = self.pool.next(0.0)
        if report is None and wait:
            if self._events or self.clock.now() - self._written >= CLOCK_SECONDS:
                self._flush()
            remaining = self.budget.remaining(self.seconds)
            report = self.pool.next(WAIT_SECONDS if remaining is None else min(WAIT_SECONDS, remaining))
        taken = 0
        while report is not None:
            self._handle(report)
            self._flush_if_due()
            taken += 1
            report = self.pool.next(0.0) if taken < REPORTS_AT_ONCE else None

    def _handle(self, report: Report) -> None:
        job = self._flying.pop(report.job.id, None)
        if job is None:  # an answer to a job that was given up: outcomes are taken once
            return
        queued = self.clock.now() - self._since.pop(job.id)
        if job.kind == "screen":
            self._screening -= len(job.candidates)
        if isinstance(report, Done):
            self._judged.add(job.kind)
            self._settle_failures(job.kind)
            self._learn_cost(job.kind, report.outcomes)
            for outcome in report.outcomes:
                if job.kind == "screen":
                    self._screened_one(outcome)
                else:
                    self._finish(_joined(self._screened.pop(outcome.number, None), outcome))
            return
        for number, _ in job.candidates:
            self._event("lost", number, {"job": job.id, "why": type(report).__name__, "reason": _reason(report)})
        if len(job.candidates) > 1:  # find out which one it was
            self._alone[job.kind].extend(number for number, _ in job.candidates)
            return
        seconds = report.seconds if isinstance(report, TimedOut) else queued
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
            failed = self._failed[kind]
            failed.append(rejected)
            if len(failed) >= FAILURES_ALLOWED:
                raise InputError(f"the evaluator failed {len(failed)} times in a row: {_reason(report)}")
        else:
            self._reject(rejected)

    def _settle_failures(self, kind: JobKind) -> None:
        """Jobs in which the evaluator failed: their candidates are rejected, unless none of the kind ever went well.

        Raises:
            InputError: none ever did, so it is not the candidates.
        """
        failed, self._failed[kind] = self._failed[kind], []
        if failed and kind not in self._judged:
            raise InputError(f"the evaluator fails on everything: {failed[0].reason}")
        for rejected in failed:
            self._reject(rejected)

    def _reject(self, rejected: Outcome) -> None:
        self._finish(_joined(self._screened.pop(rejected.number, None), rejected))

    def _screened_one(self, outcome: Outcome) -> None:
        waiting = len(self._waiting["train"])
        self._finish(outcome) if outcome.gate else self._screen_passed(outcome)
        passed = len(self._waiting["train"]) - waiting
        self._passing = max(LEAST_PASSING, 0.98 * self._passing + 0.02 * passed)

    def _screen_passed(self, outcome: Outcome) -> None:
        number = outcome.number
        self._screened[number] = outcome
        if outcome.fingerprint:
            first = self._duplicates.first_of_fingerprint(outcome.fingerprint, number)
            if first != number:
                self._same(number, first, "computes the same as")
                return
        self._waiting["train"].append(number)

    def _admit(self, number: int) -> None:
        """A proposal enters: it is a duplicate by key, or goes to screening."""
        first = self._duplicates.first_of_key(self._keys[number], number)
        if first == number:
            self._waiting["screen"].append(number)
        else:
            self._same(number, first, "has the key of")

    def _same(self, number: int, first: int, how: str) -> None:
        """Number computes the same as first: it waits for its outcome, or where that is known is told so."""
        if first in self._open:
            self._duplicates.wait(number, first, how)
            return
        reason = f"{how} proposal {first}"
        same = Outcome(number, "duplicate", reason, same_as=first, seed=self.seed)
        self._finish(_joined(self._screened.pop(number, None), same))

    def _finish(self, outcome: Outcome) -> None:
        number = outcome.number
        self._event("finished", number, outcome.to_json())
        self._duplicates_in_a_row = 0 if outcome.same_as is None else self._duplicates_in_a_row + 1
        self.funnel.add(outcome)
        self.controller.tell(number, outcome)
        self.leaders.learn(outcome)
        self._note_best(outcome, self._open.pop(number))
        if outcome.fingerprint and outcome.same_as is None:  # as after a resume, also of what screening rejected
            self._duplicates.first_of_fingerprint(outcome.fingerprint, number)
        key, root = self._keys.pop(number), number if outcome.same_as is None else outcome.same_as
        self._duplicates.belongs(key, root)
        for twin, how in self._duplicates.waited_for(number):
            self._same(twin, root, how)

    def _note_best(self, outcome: Outcome | None, proposal: Proposal) -> None:
        """Keep the best; outcomes of other kinds of device than the first are not compared with it."""
        if outcome and outcome.accepted and (self.best is None or self.best.device == outcome.device):
            skill = mean_skill(self.objective, outcome)
            if skill > self.best_skill:
                self.best, self.best_skill, self._best_proposal = outcome, skill, proposal

    # -- records -----------------------------------------------------------------------------------------------

    def _event(self, kind: EventKind, number: int, data: Any) -> None:
        if not self._events:
            self._held_since = self.clock.now()
        self._events.append(Event(kind, number, data, self.clock.date()))

    def _end_step(self) -> None:
        """Events and counts agree here: what an interrupt leaves half done after this is not written."""
        self._whole, self._counts = len(self._events), self.funnel.to_json()

    def _flush_if_due(self) -> None:
        self._end_step()
        if self._events and self.clock.now() - self._held_since >= HOLD_SECONDS:
            self._write()

    def _flush(self) -> None:
        self._end_step()
        self._write()

    def _write(self) -> None:
        """Write the steps that ended in one transaction, with the counts, and the time: a killed session's counts."""
        facts = {"funnel": self._counts, "active_seconds": self.seconds}
        self.ledger.append(self._events[: self._whole], facts)
        del self._events[: self._whole]  # only now: where the disk is full, counts must not get ahead of events
        self._whole, self._written = 0, self.clock.now()

    def _proposal_json(self, proposal: Proposal, key: str) -> dict[str, Any]:
        return {
            "candidate": self.space.to_json(proposal.candidate),
            "key": key,
            "parents": list(proposal.parents),
            "operator": proposal.operator,
            "note": proposal.note,
        }

    def _learn_cost(self, kind: JobKind, outcomes: tuple[Outcome, ...]) -> None:
        """A running mean of worker seconds per candidate."""
        seconds = sum(sum(o.seconds.values()) for o in outcomes) / len(outcomes)
        old = self._cost[kind]
        self._cost[kind] = seconds if old is None else 0.9 * old + 0.1 * seconds


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

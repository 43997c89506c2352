"""`OptunaSearch`: any sampler of Optuna as a controller, by ask and tell (https://optuna.org)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from normact.search.controllers.base import Controller, Start
from normact.search.controllers.evolution import skills_by_anchor
from normact.search.controllers.latest_trials import LatestTrials
from normact.search.objective import Objective
from normact.search.outcome import Outcome, Proposal
from normact.spaces.errors import InputError
from normact.spaces.space import Space

REPEATABLE = (TPESampler, NSGAIISampler, NSGAIIISampler, RandomSampler)
"""Samplers of which nothing but trials, attributes that are plain JSON and a seed decides what comes next."""

NUMERIC = (CmaEsSampler, QMCSampler)
"""Samplers that draw what is not a number by another one."""

Values = tuple[float, ...]


class OptunaSearch(Controller):
    """Optuna's samplers, on the trials of one study: `space.suggest` says what there is to choose.

    What the study is told are skills (see `Objective.skill`), which are maximized: of each objective the mean over
    anchors, or each anchor's as an objective of its own.

    A suggestion that was made before costs no training: it is told what the earlier one was, or will be as soon as
    that is known, and the next one is asked for. After `max_repeats` of them the last one is mutated until it is new.
    What breaks a constraint of the space is told as rejected at once, and counts as one of those.

    The sampler sees the latest `window` trials and those that are open. Its randomness is seeded for each proposal.
    A proposal's note has the trial's parameters and what the sampler wrote down, so that a run can be replayed without
    asking a sampler again; with samplers that are not in `REPEATABLE`, that brings back the trials alone.

    Args:
        space: what to propose from; it needs `suggest`, and `trial_parameters` for starts and mutations to be told.
        objectives: see `Controller`.
        seed: see `Controller`.
        start_from: see `Controller`.
        sampler: of Optuna; it is copied. Its own seed does not matter.
        anchors: `mean` or `each`.
        rejected: how rejected candidates are told: as failed (`fail`), which samplers do not see; as the worst that
            any accepted one had, and no better than trivial (`worst`); or as that and as violations of a constraint
            (`constraint`), for samplers that know constraints.
        max_repeats: suggestions in a row that may be known.
        window: most completed trials that the sampler sees.

    Attributes:
        repeats: suggestions that were answered without a proposal.
        replaced: proposals that are mutations because of them.

    Raises:
        InputError: a setting out of range, or a sampler that does not suit the space or the objectives.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        seed: int,
        start_from: Sequence[Start] = (),
        *,
        sampler: BaseSampler,
        anchors: Literal["mean", "each"] = "mean",
        rejected: Literal["fail", "worst", "constraint"] = "worst",
        max_repeats: int = 20,
        window: int = 2000,
    ) -> None:
        super().__init__(space, objectives, seed, start_from)
        if max_repeats < 0 or window < 1:
            raise InputError(f"max_repeats must be at least 0 and window at least 1, got {max_repeats} and {window}")
        if anchors not in ("mean", "each"):
            raise InputError(f"anchors must be mean or each, got {anchors!r}")
        if rejected not in ("fail", "worst", "constraint"):
            raise InputError(f"rejected must be fail, worst or constraint, got {rejected!r}")
        if rejected == "constraint" and not hasattr(FrozenTrial, "constraints"):
            raise InputError(
                f"rejected=constraint needs Optuna 5 or newer, got {optuna.__version__}; use worst or fail"
            )
        if not isinstance(sampler, BaseSampler):
            raise InputError(f"sampler must be one of Optuna's, such as TPESampler(), got {sampler!r}")
        check_suits(sampler, space, objectives, anchors)
        self.anchors = anchors
        self.rejected = rejected
        self.max_repeats = max_repeats
        self.repeats = 0
        self.replaced = 0
        self.replayable = all(type(part) in REPEATABLE for part in _parts(sampler))
        self.storage = LatestTrials(window)
        directions = [StudyDirection.MAXIMIZE] * len(self.objectives)
        self.study = optuna.create_study(storage=self.storage, sampler=copy.deepcopy(sampler), directions=directions)
        self._worst: list[float] = [0.0] * len(directions) if anchors == "mean" else []
        self._device = ""  # scores of other kinds of device are not compared with those of the first
        self._first: dict[str, int] = {}  # of a key: the number of its first proposal
        self._values: dict[int, Values | None] = {}  # of proposals that were told, see `_values_of`
        self._trials: dict[int, list[int]] = {}  # of open proposals: the trials that wait for the outcome

    # -- proposing ---------------------------------------------------------------------------------------------

    def propose(self, number: int, rng: np.random.Generator) -> Proposal:
        self._reseed(number)
        answered: list[Any] = []
        for _ in range(self.max_repeats + 1):
            trial, candidate = self._suggested()
            first = self._first_of(candidate, number)
            if first == number:
                return self._proposal(Proposal(number, candidate, (), "suggest"), trial, answered)
            self._answer(trial, first)
            answered.append([*self._written_of(trial), first])
        self.replaced += 1
        replacement = self._mutation(number, candidate, first, rng)
        return self._proposal(replacement, self._given(replacement.candidate), answered)

    def _reseed(self, number: int) -> None:
        """Let the sampler's draws for a proposal depend on nothing but the seed and its number."""
        seed = np.random.SeedSequence([self.seed, number]).generate_state(4)
        for part in _parts(self.study.sampler):
            for value in vars(part).values():
                generator = getattr(value, "rng", None)
                if isinstance(generator, np.random.RandomState):
                    generator.seed(seed)
        self.storage.written.clear()

    def _suggested(self) -> tuple[int, Any]:
        """The number of a new trial, and its candidate."""
        trial = self.study.ask()
        return trial.number, self.space.suggest(trial)

    def _given(self, candidate: Any) -> int | None:
        """The number of a trial for a candidate from elsewhere; None where the space has no parameters for it."""
        parameters = self.space.trial_parameters(candidate)
        if parameters is None:
            return None
        self.study.enqueue_trial(parameters)
        return self._suggested()[0]

    def _mutation(self, number: int, candidate: Any, first: int | None, rng: np.random.Generator) -> Proposal:
        """A mutation of a known candidate, of which `first` was the first proposal; new, unless that takes too long."""
        if first is None:  # it is none of the space
            return Proposal(number, self.space.sample(rng), (), "sample")
        for _ in range(self.max_repeats + 1):
            candidate = self.space.mutate(candidate, rng)
            if self._first_of(candidate, number) == number:
                break
        return Proposal(number, candidate, (first,), "mutate")

    def _proposal(self, proposal: Proposal, trial: int | None, answered: list[Any]) -> Proposal:
        """The proposal with its note, its trial waiting for the outcome."""
        self._trials[proposal.number] = [] if trial is None else [trial]
        note = {
            "trial": None if trial is None else self._written_of(trial),
            "answered": answered,
            "study": dict(self.storage.written) if self.replayable else {},
        }
        return replace(proposal, note=note)

    def _written_of(self, trial: int) -> list[Any]:
        """Parameters of a trial, and what else the sampler wrote of it."""
        frozen = self.storage.get_trial(trial)
        kept = frozen.system_attrs if self.replayable else {}
        return [dict(frozen.params), {name: value for name, value in kept.items() if name != "fixed_params"}]

    def _first_of(self, candidate: Any, number: int) -> int | None:
        """The first proposal of a candidate's key, which may be this one; None where it is none of the space."""
        return None if self.space.invalid(candidate) else self._first.setdefault(self.space.key(candidate), number)

    # -- learning ----------------------------------------------------------------------------------------------

    def learn(self, proposal: Proposal, outcome: Outcome) -> None:
        values = self._values.get(outcome.same_as) if outcome.same_as is not None else self._values_of(outcome)
        self._values[proposal.number] = values
        for trial in self._trials.pop(proposal.number):
            self._tell(trial, values)

    def _values_of(self, outcome: Outcome) -> Values | None:
        """What an outcome means to the study; None where it was rejected, nothing where it cannot be compared."""
        if not outcome.accepted:
            return None
        if outcome.device != (self._device or outcome.device):
            return ()
        skills = [list(skills_by_anchor(objective, outcome).values()) for objective in self.objectives]
        if self.anchors == "mean":
            values = tuple(sum(of_one) / len(of_one) if of_one else -math.inf for of_one in skills)
        else:
            values = tuple(skill for of_one in skills for skill in of_one)
        if not values or not all(map(math.isfinite, values)):
            return None
        self._device = outcome.device
        if not self._worst:
            self._have_values(len(values))
        return values if len(values) == len(self._worst) else ()

    def _have_values(self, count: int) -> None:
        """From now on trials have so many values."""
        self._worst = [0.0] * count
        self.storage.directions = [StudyDirection.MAXIMIZE] * count
        self.study = optuna.load_study(
            study_name=self.study.study_name, storage=self.storage, sampler=self.study.sampler
        )

    def _answer(self, trial: int, first: int | None) -> None:
        """Tell a trial what an earlier proposal was, now or as soon as it is known; that it is rejected, for none."""
        self.repeats += first is not None
        if first in self._trials:
            self._trials[first].append(trial)
        else:
            self._tell(trial, None if first is None else self._values.get(first))

    def _tell(self, trial: int, values: Values | None) -> None:
        violation = 0.0 if values else 1.0
        if values:
            self._worst = [min(pair) for pair in zip(self._worst, values, strict=True)]
        elif values is None and self.rejected != "fail" and self._worst:
            values = tuple(self._worst)
        if self.rejected == "constraint":
            self.storage.set_trial_system_attr(trial, "constraints", [violation])
        if values:
            self.study.tell(trial, values)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    # -- resuming ----------------------------------------------------------------------------------------------

    def replay(self, proposal: Proposal) -> None:
        """See `Controller.replay`.

        Raises:
            InputError: the proposal's note is not one of this space's.
        """
        super().replay(proposal)
        if proposal.number in self._trials:  # it was asked just now
            return
        if proposal.operator == "start":
            self._start(proposal)
        else:
            try:
                self._recall(proposal)
            except (KeyError, TypeError, ValueError) as problem:
                raise InputError(f"the note of proposal {proposal.number} is damaged: {problem!r:.80}") from None

    def _start(self, proposal: Proposal) -> None:
        """Make a trial of a start: the same one with every replay."""
        self._reseed(proposal.number)
        self._first_of(proposal.candidate, proposal.number)
        trial = self._given(proposal.candidate)
        self._trials[proposal.number] = [] if trial is None else [trial]

    def _recall(self, proposal: Proposal) -> None:
        """Bring back what `propose` did, by the note."""
        note = proposal.note
        for parameters, written, first in note["answered"]:
            self._answer(self._added(parameters, written), first)
        self._first_of(proposal.candidate, proposal.number)
        self._trials[proposal.number] = [] if note["trial"] is None else [self._added(*note["trial"])]
        self.replaced += proposal.operator != "suggest"
        if self.replayable:  # others may keep pickles there, and a ledger may come from anybody
            self.storage.study_attributes.update(note["study"])

    def _added(self, parameters: dict[str, Any], written: dict[str, Any]) -> int:
        """The number of an open trial with these parameters."""
        fixed = FixedTrial(parameters)
        self.space.suggest(fixed)
        trial = create_trial(
            state=TrialState.RUNNING,
            params=fixed.params,
            distributions=fixed.distributions,
            system_attrs=written if self.replayable else {},
        )
        self.study.add_trial(trial)
        number = self.storage.newest
        if number % max(1, self.storage.window // 2) == 0:  # it remembers which parameters trials had that leave
            self.study.sampler.infer_relative_search_space(self.study, self.storage.get_trial(number))
        return number


def check_suits(sampler: BaseSampler, space: Space, objectives: Sequence[Objective], anchors: str) -> None:
    """Check on a few trials that the sampler can do with the space and so many objectives.

    Raises:
        InputError: it cannot, a package that it needs is missing, or the space has no `suggest`.
    """
    name, of_space = type(sampler).__name__, type(space).__name__
    values = [0.0] * (len(objectives) if anchors == "mean" else 2)
    study = optuna.create_study(
        storage=LatestTrials(1), sampler=copy.deepcopy(sampler), directions=[StudyDirection.MAXIMIZE] * len(values)
    )
    for _ in range(3):
        try:
            trial = study.ask()
            space.suggest(trial)
            study.tell(trial, values)
        except InputError:
            raise
        except ImportError as problem:
            raise InputError(f"{name} needs a package that is not installed: {problem}") from None
        except ValueError as problem:
            if len(values) == 1:
                raise InputError(f"{name} does not get along with {of_space}: {problem}") from None
            raise InputError(
                f"{name} takes one objective, got {', '.join(o.name for o in objectives)} with anchors={anchors}; "
                "give front one name and controller.anchors=mean, or use nsga2 or tpe"
            ) from None
        if any(isinstance(part, NUMERIC) for part in _parts(sampler)):
            named = [k for k, choices in trial.distributions.items() if isinstance(choices, CategoricalDistribution)]
            if named:
                raise InputError(
                    f"{name} draws numbers alone, but {of_space} has choices that are none, such as {named[0]}; "
                    "use tpe or nsga2"
                )


def _parts(sampler: BaseSampler) -> Iterator[BaseSampler]:
    """A sampler and those in it."""
    yield sampler
    for value in vars(sampler).values():
        if isinstance(value, BaseSampler):
            yield from _parts(value)

"""`LatestTrials`: what an Optuna sampler sees of a long search."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Container, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

_SHARED = "tpe:relative_params"
# So TPE tells other processes what it has yet to suggest; here a trial has all its parameters before the next one.


class LatestTrials(BaseStorage):
    """An Optuna storage in memory, of one study: its open trials and the latest completed ones.

    Optuna's own keeps all trials, and copies the list of them several times an ask. Trial ids are trial numbers, which
    count on. Failed trials are not kept, as samplers do not look at them. What leaves goes with the next new trial.

    Args:
        window: most completed trials that are kept.

    Attributes:
        directions: of the study; a study that is loaded after they were set has them.
        study_attributes: what the sampler keeps beside the trials.
        newest: the number of the newest trial.
        written: what of it is new since this was last emptied.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.directions: list[StudyDirection] = []
        self.study_attributes: dict[str, Any] = {}
        self.written: dict[str, Any] = {}
        self._user_attributes: dict[str, Any] = {}
        self._trials: dict[int, FrozenTrial] = {}
        self._waiting: deque[int] = deque()
        self._completed: deque[int] = deque()
        self._leaving: list[int] = []
        self.newest = -1

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        self.directions = list(directions)
        return 0

    def delete_study(self, study_id: int) -> None:
        self._trials.clear()
        self._waiting.clear()
        self._completed.clear()
        self._leaving.clear()

    def get_study_id_from_name(self, study_name: str) -> int:
        return 0

    def get_study_name_from_id(self, study_id: int) -> str:
        return "normact"

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self.directions

    def get_all_studies(self) -> list[Any]:
        return []  # of use to dashboards alone

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._user_attributes[key] = value

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._user_attributes

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.study_attributes[key] = self.written[key] = value

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self.study_attributes

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        for gone in self._leaving:
            del self._trials[gone]
        self._leaving.clear()
        trial = copy.copy(template_trial) if template_trial else create_trial(state=TrialState.RUNNING)
        self.newest += 1
        number = trial.number = trial._trial_id = self.newest
        self._trials[number] = trial
        if trial.state == TrialState.WAITING:
            self._waiting.append(number)
        elif trial.state.is_finished():
            self._finished(trial)
        return number

    def _finished(self, trial: FrozenTrial) -> None:
        if trial.state == TrialState.FAIL:
            self._leaving.append(trial.number)
            return
        self._completed.append(trial.number)
        if len(self._completed) > self.window:
            self._leaving.append(self._completed.popleft())

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        trial = self._open_trial(trial_id)
        trial.params[param_name] = distribution.to_external_repr(param_value_internal)
        trial.distributions[param_name] = distribution

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        trial = self._open_trial(trial_id)
        if state == TrialState.RUNNING:
            if trial.state != TrialState.WAITING:
                return False
            self._waiting.remove(trial_id)
        trial.state = state
        if values is not None:
            trial.values = values
        if state.is_finished():
            self._finished(trial)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._open_trial(trial_id).intermediate_values[step] = intermediate_value

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._open_trial(trial_id).user_attrs[key] = value

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._open_trial(trial_id)
        if not key.startswith(_SHARED):
            trial.system_attrs[key] = value

    def _open_trial(self, trial_id: int) -> FrozenTrial:
        trial = self.get_trial(trial_id)
        self.check_trial_is_updatable(trial_id, trial.state)
        return trial

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._trials[trial_id]

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return trial_number

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if states == (TrialState.WAITING,):  # asked for with every ask
            trials = [self._trials[number] for number in self._waiting]
        else:
            trials = [trial for trial in self._trials.values() if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

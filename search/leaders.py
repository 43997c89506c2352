"""`Leaders`: what the best candidates reached so far, sent along with each training, for rules that compare with it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from normact.search.objective import Objective
from normact.search.outcome import Outcome, mean_skill
from normact.spaces.errors import InputError

SKILL = "race.skill_"  # and how many seeds came before: a figure of each seed that a candidate was trained under


@dataclass(frozen=True)
class Race:
    """How many seeds a candidate is trained under: more, the nearer it is to the front.

    Successive halving over seeds (Jamieson and Talwalkar, arXiv 1502.07943) without rounds: after n seeds, a
    candidate goes on to the next one where its mean skill is among the best `share` of those that came so far. So
    seeds are spent where they decide, and what is lucky once is found out.

    Args:
        seeds: most seeds a candidate; 1 for no race.
        share: of those trained under n seeds, so many go on.
        least: so many must have been trained under n seeds before any goes on.

    Raises:
        InputError: a number out of range.
    """

    seeds: int = 1
    share: float = 0.25
    least: int = 16

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.least < 1 or not 0 < self.share < 1:
            raise InputError(
                f"a race needs seeds >= 1, least >= 1 and 0 < share < 1, got seeds={self.seeds}, "
                f"least={self.least}, share={self.share}"
            )


class Leaders:
    """Learns from outcomes in the driver, and sums up what a worker's rules compare with.

    Args:
        objective: that leads.
        race: how many seeds a candidate gets.
        count: so many of the best are the leaders; 0 where no gate compares with them.
        window: so many of the latest accepted candidates count.
    """

    def __init__(self, objective: Objective, race: Race | None = None, count: int = 0, window: int = 256) -> None:
        self.objective = objective
        self.race = race or Race()
        self.count = count
        self.window = window if count or self.race.seeds > 1 else 0
        self._latest: deque[Outcome] = deque(maxlen=self.window)
        self._device = ""
        self._snapshot: dict[str, Any] | None = None

    def learn(self, outcome: Outcome) -> None:
        """Take in an outcome; those that were rejected, or come from another kind of device, do not count."""
        if self.window and outcome.accepted and outcome.device == (self._device or outcome.device):
            self._device = outcome.device
            self._latest.append(outcome)
            self._snapshot = None

    def snapshot(self) -> Mapping[str, Any]:
        """Plain JSON for a job.

        Returns:
            `curves`: by anchor and step (as text), the leaders' skills there, the best leader first; empty until there
            are `count` of them. `race`: for n = 1, 2, ... the mean skill under n seeds from which on a candidate is
            trained under another. Nothing where neither is asked for.
        """
        if self._snapshot is None:
            self._snapshot = {"curves": self._curves(), "race": self._bars()} if self.window else {}
        return self._snapshot

    def _curves(self) -> dict[str, dict[str, list[float]]]:
        if len(self._latest) < self.count:
            return {}
        best = sorted(self._latest, key=lambda o: (-mean_skill(self.objective, o), o.number))[: self.count]
        curves: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for outcome in best:
            for score in outcome.scores:
                if score.objective == self.objective.name:
                    curves[score.anchor][str(score.step)].append(round(self.objective.skill(score.value), 6))
        return {anchor: dict(of) for anchor, of in curves.items()}

    def _bars(self) -> list[float]:
        bars: list[float] = []
        skills = [skills_by_seed(outcome, self.objective) for outcome in self._latest]
        for seeds in range(1, self.race.seeds):
            means = [float(np.mean(of[:seeds])) for of in skills if len(of) >= seeds]
            if len(means) < self.race.least:
                break
            bars.append(float(np.quantile(means, 1 - self.race.share)))
        return bars


def skills_by_seed(outcome: Outcome, objective: Objective) -> list[float]:
    """The leading objective's mean skill under each seed that a candidate was trained under, in order."""
    raced: list[float] = []
    while (skill := outcome.figures.get(f"{SKILL}{len(raced)}")) is not None:
        raced.append(skill)
    return raced or [mean_skill(objective, outcome)]

"""Random search: every proposal is a fresh sample."""

from __future__ import annotations

import numpy as np

from normact.search.controllers.base import Controller
from normact.search.outcome import Outcome, Proposal


class RandomSearch(Controller):
    """Samples, and learns nothing."""

    history = 0

    def propose(self, number: int, rng: np.random.Generator) -> Proposal:
        return Proposal(number, self.space.sample(rng), (), "sample")

    def learn(self, proposal: Proposal, outcome: Outcome) -> None:
        pass

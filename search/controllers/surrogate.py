"""`Surrogate`: predicts what candidates would score, and proposes where improvement is expected."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats

from normact.search.controllers.base import Start
from normact.search.controllers.evolution import Evolution, Member
from normact.search.objective import Objective
from normact.search.outcome import Outcome, Proposal
from normact.spaces.errors import InputError
from normact.spaces.space import Space

BUCKETS = 128
"""Of hashed words, and as many of hashed pairs of neighbouring words."""

PREDICTIONS = 200
"""So many of the latest predictions are compared with what came out."""


class Surrogate(Evolution):
    """Evolution that looks before it leaps: of many children, it proposes the one of the largest expected improvement.

    A forest of extremely randomized trees (scikit-learn; Geurts, Ernst and Wehenkel 2006) is fitted to the mean skills
    of the window's members. Its features are the words of a candidate's description and their neighbours, hashed (see
    `features_of`), and the mean skill of its parents. The spread of the trees stands for the uncertainty, as in SMAC
    (Hutter, Hoos and Leyton-Brown 2011), and expected improvement is that over the best member, by the normal formula
    of Jones, Schonlau and Welch (1998). Until `least` members are in the window, and for the share `fresh` of the
    proposals, it is plain evolution.

    Args:
        pool: children to choose from, each of a tournament's winner, mutated 1 to 2 * `mutations` times.
        least: members before the first fit.
        refit: it is fitted anew after so many more of them, as a share of those there are.
        trees: of the forest.

    Raises:
        InputError: a number out of range, or scikit-learn is missing.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        seed: int,
        start_from: Sequence[Start] = (),
        pool: int = 64,
        least: int = 50,
        refit: float = 0.1,
        trees: int = 100,
        **evolution: Any,
    ) -> None:
        super().__init__(space, objectives, seed, start_from, **evolution)
        if pool < 1 or least < 2 or refit <= 0 or trees < 2:
            raise InputError(
                "a surrogate needs pool >= 1, least >= 2, refit > 0 and trees >= 2, got "
                f"pool={pool}, least={least}, refit={refit}, trees={trees}"
            )
        _forest(1, 0)  # what is missing is said now
        self.history = None  # when it is fitted depends on all that came before
        self.pool = pool
        self.least = least
        self.refit = refit
        self.trees = trees
        self._told = 0
        self._due = least
        self._examples: tuple[np.ndarray, np.ndarray] | None = None  # of the fit that is due
        self._model: Any = None
        self._rows: deque[np.ndarray] = deque(maxlen=self.window.maxlen)
        self._skill: dict[int, float] = {}
        self._compared: deque[tuple[float, float]] = deque(maxlen=PREDICTIONS)

    def propose(self, number: int, rng: np.random.Generator) -> Proposal:
        if self._told < max(self.least, self.warmup) or rng.random() < self.fresh:
            return super().propose(number, rng)
        if self._examples:
            self._model = _forest(self.trees, self.seed).fit(*self._examples)
            self._examples = None
        children = [self._child(rng) for _ in range(self.pool)]
        rows = np.stack([self._row(child, (parent.number,)) for parent, child in children])
        mean, deviation = self._predict(rows)
        best = max(target_of(member) for member in self.window)
        chosen = int(np.argmax(expected_improvement(mean, deviation, best)))
        parent, child = children[chosen]
        note = {"predicted": float(mean[chosen]), "deviation": float(deviation[chosen])}
        return Proposal(number, child, (parent.number,), "surrogate", note)

    def learn(self, proposal: Proposal, outcome: Outcome) -> None:
        super().learn(proposal, outcome)
        if not self.window or self.window[-1].number != proposal.number:
            return
        member = self.window[-1]
        skill = target_of(member)
        self._told += 1
        self._rows.append(self._row(member.candidate, proposal.parents))
        self._skill[member.number] = skill
        if len(self._skill) > 2 * len(self._rows):  # parents of what is still open may have left the window
            del self._skill[next(iter(self._skill))]
        if self._told >= self._due:  # what it is fitted to hangs on outcomes alone, so that a resumed run goes on alike
            self._due = self._told + max(1, round(self.refit * len(self.window)))
            self._examples = np.stack(self._rows), np.array([target_of(member) for member in self.window])
        if isinstance(proposal.note, dict) and "predicted" in proposal.note:
            self._compared.append((proposal.note["predicted"], skill))

    def report(self) -> str:
        """The rank correlation of predictions with what came out, of the latest ones that were accepted."""
        if len(self._compared) < 10:
            return ""
        predicted, found = np.array(self._compared).T
        correlation = float(stats.spearmanr(predicted, found).statistic)
        return f"surrogate: rank correlation {correlation:.2f} over its latest {len(found)} predictions"

    def _child(self, rng: np.random.Generator) -> tuple[Member, Any]:
        parent = self._winner(rng)
        child = parent.candidate
        for _ in range(int(rng.integers(1, 2 * self.mutations + 1))):
            child = self.space.mutate(child, rng)
        return parent, child

    def _row(self, candidate: Any, parents: Sequence[int]) -> np.ndarray:
        known = [self._skill[number] for number in parents if number in self._skill]
        return np.append(features_of(self.space.describe(candidate)), np.mean(known) if known else 0.0)

    def _predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over the trees, each (rows,)."""
        trees = np.stack([tree.predict(rows) for tree in self._model.estimators_])
        return trees.mean(0), trees.std(0)


def target_of(member: Member) -> float:
    """What is predicted: the mean skill. Far below a trivial model's, or not finite, all is equally bad."""
    return float(np.clip(np.nan_to_num(np.mean(member.skills), nan=-1.0), -1.0, 1.0))


def features_of(text: str) -> np.ndarray:
    """Counts of a description's words and of pairs of neighbours, hashed into buckets (Weinberger et al. 2009).

    A word is a name, a number or an operator; neighbours in an expression are mostly a function and its argument.
    The number of words is the last feature.

    Args:
        text: what `Space.describe` gives.

    Returns:
        (2 * BUCKETS + 1,) float.
    """
    words = re.findall(r"\w+|[^\w\s(),]", text)
    counts = np.zeros(2 * BUCKETS + 1)
    for word in words:
        counts[_bucket(word)] += 1
    for pair in itertools.pairwise(words):
        counts[BUCKETS + _bucket(" ".join(pair))] += 1
    counts[-1] = len(words)
    return counts


@lru_cache(maxsize=10_000)
def _bucket(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little") % BUCKETS


def expected_improvement(mean: np.ndarray, deviation: np.ndarray, best: float) -> np.ndarray:
    """E[max(0, Y - best)] of a normal Y; the plain gain where the deviation is 0."""
    gain = mean - best
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(deviation > 0, gain / deviation, 0.0)
    return np.where(deviation > 0, gain * stats.norm.cdf(z) + deviation * stats.norm.pdf(z), np.maximum(gain, 0.0))


def _forest(trees: int, seed: int) -> Any:
    try:
        from sklearn.ensemble import ExtraTreesRegressor
    except ImportError:
        raise InputError("the surrogate controller needs scikit-learn: pip install 'normact[digits]'") from None
    return ExtraTreesRegressor(trees, random_state=seed, min_samples_leaf=2)

"""What a KAN candidate is: a value object, and how one is drawn, changed, mixed and suggested by one description.

A space says once, define-by-run, which choices there are: `draw(pick)`, where `pick(name, options)` gives one option.
Sampling, mutation, crossover and an Optuna trial are then four ways to pick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Scalar = str | int | float | bool

Settings = tuple[tuple[str, Scalar], ...]
"""Keywords and their values, in a fixed order."""


class Pick(Protocol):
    """One of the options, for a choice of that name. A name has the same options wherever it is asked for."""

    def __call__(self, name: str, options: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class FamilyGene:
    """A basis family and its settings, such as bspline with grid 5 and order 3."""

    name: str
    settings: Settings = ()

    @property
    def family(self) -> tuple[str, dict[str, Any]]:
        """As `make_basis` takes it."""
        return self.name, dict(self.settings)


@dataclass(frozen=True)
class LayerGene:
    """One layer: its kind (`kan`, `af`, `selectable`, `node`), the families in it, and the kind's options."""

    kind: str
    families: tuple[FamilyGene, ...] = ()
    options: Settings = ()

    def option(self, name: str) -> Any:
        """The value of an option."""
        return dict(self.options)[name]


@dataclass(frozen=True)
class KanCandidate:
    """A layer gene for each site index; sites beyond the last have the last one."""

    layers: tuple[LayerGene, ...]

    def at(self, index: int) -> LayerGene:
        """The gene of a site."""
        return self.layers[min(index, len(self.layers) - 1)]


def choices_of(candidate: KanCandidate) -> dict[str, Any]:
    """The picks that give the candidate, by name; see `KanSpace.draw`."""
    found: dict[str, Any] = {}
    for index, gene in enumerate(candidate.layers):
        at = f"layer{index}"
        found |= {f"{at}.kind": gene.kind, f"{at}.{gene.kind}.families": len(gene.families)}
        for number, family in enumerate(gene.families):
            found[f"{at}.{gene.kind}.family{number}"] = family.name
            found |= {f"{at}.family{number}.{family.name}.{name}": value for name, value in family.settings}
        found |= {f"{at}.{gene.kind}.{name}": value for name, value in gene.options}
    return found


def drawn_from(rng: np.random.Generator) -> Pick:
    """Picks uniformly."""
    return lambda name, options: options[int(rng.integers(len(options)))]


def suggested_by(trial: Any) -> Pick:
    """Picks by an Optuna trial."""
    return lambda name, options: trial.suggest_categorical(name, list(options))


@dataclass
class Changing:
    """Picks as given choices say, but differently at one name; and what those do not say, at random.

    Attributes:
        asked: names that were asked for, with more than one option.
    """

    rng: np.random.Generator
    given: Mapping[str, Any]
    changed: str = ""
    asked: list[str] = field(default_factory=list)

    def __call__(self, name: str, options: Sequence[Any]) -> Any:
        if len(options) > 1:
            self.asked.append(name)
        known = self.given.get(_plain(name, self.given))
        if name == self.changed:
            options = [option for option in options if option != known] or options
        elif known in options:
            return known
        return options[int(self.rng.integers(len(options)))]


@dataclass
class Repeating:
    """Picks as given choices say, the first option where those do not say, and notes what it picked.

    Attributes:
        made: each pick by its name.
    """

    given: Mapping[str, Any]
    made: dict[str, Any] = field(default_factory=dict)

    def __call__(self, name: str, options: Sequence[Any]) -> Any:
        known = self.given.get(_plain(name, self.given))
        return self.made.setdefault(name, known if known in options else options[0])


def _plain(name: str, given: Mapping[str, Any]) -> str:
    """A choice may be asked under a name that ends in `@...`, where its options depend on others."""
    return name if name in given else name.partition("@")[0]


def mixing_of(rng: np.random.Generator, a: Mapping[str, Any], b: Mapping[str, Any]) -> Pick:
    """Picks from two parents: each choice from one of them at random; what neither has, at random."""

    def pick(name: str, options: Sequence[Any]) -> Any:
        parents = [a, b] if rng.integers(2) else [b, a]
        for parent in parents:
            known = parent.get(_plain(name, parent))
            if known in options:
                return known
        return options[int(rng.integers(len(options)))]

    return pick


def mutated(draw: Callable[[Pick], KanCandidate], candidate: KanCandidate, rng: np.random.Generator) -> KanCandidate:
    """The candidate with one of its choices made differently, and what hangs on it drawn anew."""
    given = choices_of(candidate)
    look = Changing(rng, given)
    draw(look)
    if not look.asked:
        return candidate
    return draw(Changing(rng, given, look.asked[int(rng.integers(len(look.asked)))]))

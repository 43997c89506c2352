"""`Space`: what a controller can propose and a task can build. The graph space and your own are equals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from torch import nn

from normact.spaces.errors import InputError
from normact.spaces.site import Site

Candidate = TypeVar("Candidate")
"""A space's own value object: immutable, hashable, picklable."""


@dataclass(frozen=True)
class Cost:
    """What a layer at one site takes in training, estimated without building it.

    Args:
        parameters: numbers that are trained.
        bytes: of memory: the parameters, their gradients and the optimiser's averages, and what is kept of one batch
            for the backward pass.
    """

    parameters: int
    bytes: int


class Space(ABC, Generic[Candidate]):
    """A set of layers.

    A space is made once per process from config and lives as long as the run; it holds no state that changes.
    Candidates are value objects of the space's own choosing; the rest of the house handles them through these
    methods alone. Every random draw comes from the generator that is passed in.
    """

    @property
    @abstractmethod
    def site_kinds(self) -> frozenset[str]:
        """The kinds of site that `build` serves."""

    @property
    @abstractmethod
    def layouts(self) -> tuple[str, ...]:
        """The layouts that `build` serves."""

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> Candidate:
        """A random candidate that passes `invalid`."""

    @abstractmethod
    def mutate(self, candidate: Candidate, rng: np.random.Generator) -> Candidate:
        """A neighbour of the candidate that passes `invalid`."""

    def crossover(self, a: Candidate, b: Candidate, rng: np.random.Generator) -> Candidate:
        """A mix of two candidates.

        Raises:
            InputError: the space has no crossover (the default).
        """
        raise InputError(f"{type(self).__name__} has no crossover; choose a controller without one")

    def suggest(self, trial: Any) -> Candidate:
        """A candidate from an Optuna trial, define-by-run; must be able to yield all that `sample` can.

        Raises:
            InputError: the space has no such form (the default).
        """
        raise InputError(f"{type(self).__name__} has no suggest(trial); choose a controller other than Optuna's")

    def trial_parameters(self, candidate: Candidate) -> dict[str, Any] | None:
        """Parameters of an Optuna trial from which `suggest` makes a candidate of the same key, by name.

        None where none do, such as for a start from outside the space, or where that is unknown (the default).
        """
        return None

    @abstractmethod
    def build(self, candidate: Candidate, site: Site) -> nn.Module:
        """A fresh module for a site.

        Raises:
            InputError: the site is of a kind, layout or width that the candidate cannot serve.
        """

    @abstractmethod
    def key(self, candidate: Candidate) -> str:
        """Structural identity: equal keys compute the same function wherever they are built."""

    @abstractmethod
    def to_json(self, candidate: Candidate) -> Any:
        """Plain JSON from which `from_json` makes an equal candidate."""

    @abstractmethod
    def from_json(self, data: Any) -> Candidate:
        """The candidate of `to_json`'s data, checked.

        Raises:
            InputError: the data do not describe a candidate.
        """

    @abstractmethod
    def probe_sites(self) -> Sequence[Site]:
        """Small sites, one per kind and layout served, on which gates and the fingerprint try a candidate."""

    def invalid(self, candidate: Candidate) -> str:
        """Why the candidate is none of this space, without building it; empty where it is one."""
        return ""

    def cost(self, candidate: Candidate, site: Site, batch: int) -> Cost | None:
        """What training a candidate at a site takes, without building it; None where that is unknown (the default).

        Args:
            candidate: one that passes `invalid`.
            site: with its `positions`, so that an example has `positions * in_features` numbers that come in.
            batch: examples a step.
        """
        return None

    def parse(self, text: str) -> Candidate:
        """Read a candidate that a person wrote.

        Raises:
            InputError: the text does not describe one, or the space reads none (the default).
        """
        raise InputError(f"{type(self).__name__} reads no expressions, got {text[:40]!r}")

    def describe(self, candidate: Candidate) -> str:
        """One line for tables; where the space has expressions, what `parse` reads."""
        return str(candidate)

    def source(self, candidate: Candidate, name: str, note: str = "") -> str:
        """Python source of a module with the class and factory function `name`, needing torch alone.

        Args:
            candidate: the layer.
            name: of the factory function.
            note: text for the docstring.

        Raises:
            InputError: the space prints no source (the default).
        """
        raise InputError(f"{type(self).__name__} prints no source: {self.describe(candidate)}")

    def source_arguments(self, site: Site) -> dict[str, Any]:
        """Arguments of the printed factory function that make what `build` makes at a site."""
        return {"num_features": site.in_features, "layout": site.layout}

    def baselines(self) -> dict[str, Candidate]:
        """Named, known layers that can be compared with candidates; by name. Empty by default."""
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the space as configured, such as ops left out."""
        return ()

"""Controllers: how candidates are proposed."""

from normact.search.controllers.base import Controller, Start
from normact.search.controllers.evolution import Evolution, pareto_front, skills_by_anchor
from normact.search.controllers.optuna_search import OptunaSearch
from normact.search.controllers.random import RandomSearch
from normact.search.controllers.surrogate import Surrogate

__all__ = [
    "Controller",
    "Evolution",
    "OptunaSearch",
    "RandomSearch",
    "Start",
    "Surrogate",
    "pareto_front",
    "skills_by_anchor",
]

"""Measures: how an objective is computed from a training; one file a family."""

from normact.search.measures.activations import MassiveActivation, NonzeroShare
from normact.search.measures.base import Measure, Measured
from normact.search.measures.costs import Parameters, RelativeMemory, RelativeTime
from normact.search.measures.extrapolated import ExtrapolatedLoss
from normact.search.measures.quality import RMSE, Accuracy, Brier, TrainingLoss, ValidationLoss

__all__ = [
    "RMSE",
    "Accuracy",
    "Brier",
    "ExtrapolatedLoss",
    "MassiveActivation",
    "Measure",
    "Measured",
    "NonzeroShare",
    "Parameters",
    "RelativeMemory",
    "RelativeTime",
    "TrainingLoss",
    "ValidationLoss",
]

"""Gates: cheap tests that reject a candidate before it costs a training."""

from normact.search.gates.base import Gate, Pass, ScreenContext, ScreenGate, TrainContext, TrainGate, Verdict
from normact.search.gates.causality import Causality
from normact.search.gates.linearity import Linearity
from normact.search.gates.screen import Duplicate, Probe, SignalPropagation, Structure
from normact.search.gates.size import Size
from normact.search.gates.train import Pace, Quality, Stability, Stall

__all__ = [
    "Causality",
    "Duplicate",
    "Gate",
    "Linearity",
    "Pace",
    "Pass",
    "Probe",
    "Quality",
    "ScreenContext",
    "ScreenGate",
    "SignalPropagation",
    "Size",
    "Stability",
    "Stall",
    "Structure",
    "TrainContext",
    "TrainGate",
    "Verdict",
]

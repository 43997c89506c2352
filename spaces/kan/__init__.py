"""Kolmogorov-Arnold layers: basis families, layers that mix them, selection among families. Needs torch alone."""

from normact.spaces.kan import bases as _families  # noqa: F401  (fills the table)
from normact.spaces.kan.af import AFKANConv2d, AFKANLinear
from normact.spaces.kan.basis import BASES, Basis, find_basis, register_basis
from normact.spaces.kan.combine import COMBINATIONS
from normact.spaces.kan.layer import KANConv2d, KANLinear
from normact.spaces.kan.node import NodeActivation, NodeConv2d, NodeLinear, NormActivation
from normact.spaces.kan.normalizers import NORMALIZERS
from normact.spaces.kan.pruned import PrunedKANConv2d, PrunedKANLinear
from normact.spaces.kan.selectable import SelectableKANConv2d, SelectableKANLinear, prune_model

__all__ = [
    "BASES",
    "COMBINATIONS",
    "NORMALIZERS",
    "AFKANConv2d",
    "AFKANLinear",
    "Basis",
    "KANConv2d",
    "KANLinear",
    "NodeActivation",
    "NodeConv2d",
    "NodeLinear",
    "NormActivation",
    "PrunedKANConv2d",
    "PrunedKANLinear",
    "SelectableKANConv2d",
    "SelectableKANLinear",
    "find_basis",
    "prune_model",
    "register_basis",
]

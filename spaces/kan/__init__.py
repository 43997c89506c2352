"""Kolmogorov-Arnold layers: basis families, layers that mix them, selection among families. Needs torch alone."""

from normact.spaces.kan import bases as _families  # noqa: F401  (fills the table)
from normact.spaces.kan.basis import BASES, Basis, find_basis, register_basis
from normact.spaces.kan.combine import COMBINATIONS
from normact.spaces.kan.layer import KANConv2d, KANLinear
from normact.spaces.kan.normalizers import NORMALIZERS

__all__ = [
    "BASES",
    "COMBINATIONS",
    "NORMALIZERS",
    "Basis",
    "KANConv2d",
    "KANLinear",
    "find_basis",
    "register_basis",
]

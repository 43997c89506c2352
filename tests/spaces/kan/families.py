"""Every family, and every normalizer that suits it: what the tests of the contract go through."""

import torch

from normact.spaces.kan import BASES, NORMALIZERS
from normact.spaces.kan.basis import UNIT, WIDE
from normact.spaces.kan.normalizers import BOUNDED

FAMILIES = sorted(BASES)
PAIRS = [
    (family, normalizer)
    for family in FAMILIES
    for normalizer in sorted(NORMALIZERS)
    if normalizer in BOUNDED or not BASES[family].bounded
]
EXTREMES = (-100.0, -20.0, -1.0, 0.0, 1.0, 20.0, 100.0)


def a_normalizer(family):
    return "layer_tanh" if BASES[family].bounded else "layer"


def a_basis(family, features=3, **settings):
    return BASES[family](features, UNIT if BASES[family].bounded else WIDE, **settings)


def inputs(family, *shape, dtype=torch.float32):
    """Standard normal numbers, within [-1, 1] where the family needs it."""
    x = torch.randn(*shape, dtype=dtype)
    return x.tanh() if BASES[family].bounded else x

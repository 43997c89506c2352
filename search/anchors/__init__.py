"""Anchors: networks whose sites are filled by the candidate."""

from normact.search.anchors.base import Anchor, Make, Sites, sites_of
from normact.search.anchors.residual import InvertedResidualNet, PreActResNet
from normact.search.anchors.swapped import SwappedModel
from normact.search.anchors.tokens import TokenNet

__all__ = [
    "Anchor",
    "InvertedResidualNet",
    "Make",
    "PreActResNet",
    "Sites",
    "SwappedModel",
    "TokenNet",
    "sites_of",
]

"""Anchors: networks whose sites are filled by the candidate."""

from normact.search.anchors.base import Anchor, Make, Sites, sites_of, sites_on
from normact.search.anchors.kan import KanConvNet, KanNet
from normact.search.anchors.mlp import MLP
from normact.search.anchors.residual import InvertedResidualNet, PreActResNet
from normact.search.anchors.swapped import SwappedModel
from normact.search.anchors.tokens import TokenNet

__all__ = [
    "MLP",
    "Anchor",
    "InvertedResidualNet",
    "KanConvNet",
    "KanNet",
    "Make",
    "PreActResNet",
    "Sites",
    "SwappedModel",
    "TokenNet",
    "sites_of",
    "sites_on",
]

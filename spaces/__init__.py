"""What can be a layer: ops, graphs, named layers; building and printing one. Needs torch and numpy alone."""

from normact.spaces.act_bench import ActBenchSpace
from normact.spaces.catalogue import CATALOGUE, NamedLayer, named, read_layer
from normact.spaces.constraints import Constraints
from normact.spaces.emit import emit
from normact.spaces.errors import InputError
from normact.spaces.fingerprint import fingerprint
from normact.spaces.graph import LayerGraph, Node
from normact.spaces.graph_space import GraphSpace
from normact.spaces.kan.space import KanSpace
from normact.spaces.layer import ChannelAffine, GraphLayer, LayerOptions
from normact.spaces.ops import ACTIVATIONS, EVONORM_MOMENTS, EVONORM_POINTWISE, OPS, Op, register
from normact.spaces.site import Conv, Site
from normact.spaces.space import Cost, Space
from normact.spaces.swap import replace_layers
from normact.spaces.text import formula, latex, parse

__all__ = [
    "ACTIVATIONS",
    "CATALOGUE",
    "EVONORM_MOMENTS",
    "EVONORM_POINTWISE",
    "OPS",
    "ActBenchSpace",
    "ChannelAffine",
    "Constraints",
    "Conv",
    "Cost",
    "GraphLayer",
    "GraphSpace",
    "InputError",
    "KanSpace",
    "LayerGraph",
    "LayerOptions",
    "NamedLayer",
    "Node",
    "Op",
    "Site",
    "Space",
    "emit",
    "fingerprint",
    "formula",
    "latex",
    "named",
    "parse",
    "read_layer",
    "register",
    "replace_layers",
]

"""The layer that costs are relative to: BN-ReLU, or what stands in an ordinary net at a site of another kind."""

from __future__ import annotations

from torch import nn

from normact.spaces.catalogue import named
from normact.spaces.errors import InputError
from normact.spaces.layer import GraphLayer
from normact.spaces.site import Site
from normact.spaces.text import parse

_BN = "add(mul(v1, div(add(x, neg(batch_mean(x))), batch_std(x))), v0)"


def baseline_layer(site: Site) -> nn.Module:
    """A fresh module for a site, in training mode.

    - `norm_act`: the catalogue's BN-ReLU as a graph layer, BN alone where the site has no activation. At causal sites
      too: it is there to be compared with in cost.
    - `act`: ReLU.
    - `linear`, `conv`: torch's linear map or convolution with a bias, then ReLU where the site has an activation.

    Raises:
        InputError: a site of another kind.
    """
    if site.kind == "norm_act":
        graph = named("bn_relu").graph if site.activation else parse(_BN)
        return GraphLayer(graph, site.in_features, site.layout)
    if site.kind == "act":
        return nn.ReLU()
    if site.kind == "linear":
        layer: nn.Module = nn.Linear(site.in_features, site.features_out)
    elif site.kind == "conv" and site.conv is not None:
        c = site.conv
        layer = nn.Conv2d(site.in_features, site.features_out, c.kernel_size, c.stride, c.padding, groups=c.groups)
    else:
        raise InputError(f"no baseline is known for a site of kind {site.kind!r}; drop the relative objectives")
    return nn.Sequential(layer, nn.ReLU()) if site.activation else layer

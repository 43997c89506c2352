"""Put a layer into a model that exists, in place of its norms and activations."""

from normact.spaces.swap.kinds import ACTIVATIONS, NORMS
from normact.spaces.swap.make import ChannelsLast
from normact.spaces.swap.replace import replace_layers
from normact.spaces.swap.report import PostActivationWarning, Report

__all__ = ["ACTIVATIONS", "NORMS", "ChannelsLast", "PostActivationWarning", "Report", "replace_layers"]

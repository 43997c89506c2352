"""Small data, tasks and a space of ready-made modules, for tests of trainings, gates and the evaluator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from normact.search.anchors import PreActResNet
from normact.search.data import TensorData
from normact.search.task import Accuracy, Task, TrainingLoss, ValidationLoss
from normact.search.training import Recipe
from normact.spaces import ChannelAffine, GraphLayer, InputError, Site, Space, named

SHAPE, CLASSES = (2, 6, 6), 3


def images(count, seed, classes=CLASSES):
    """Noisy images of a few classes: each class has a mean image of its own."""
    means = 1.5 * torch.randn(classes, *SHAPE, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (count,), generator=generator)
    return means[y] + torch.randn(count, *SHAPE, generator=generator), y


def blobs(train=96, validation=70, test=60):
    return TensorData(images(train, 1), images(validation, 2), images(test, 3), CLASSES)


def small_task(steps=12, batch_size=16, lr=0.05, anchors=None, data=None, measures=None, **recipe):
    return Task(
        data or blobs(),
        anchors or {"net": PreActResNet(SHAPE[0], CLASSES, width=4, blocks=(1,))},
        Recipe(steps=steps, batch_size=batch_size, lr=lr, **recipe),
        measures or [ValidationLoss(), Accuracy(), TrainingLoss()],
    )


def layer(name):
    """What builds a catalogue layer at `norm_act` sites."""

    def make(site):
        if not site.activation:
            return ChannelAffine(site.in_features, site.layout)
        return GraphLayer(named(name).graph, site.in_features, site.layout)

    return make


class Pointwise(nn.Module):
    """A function as a layer, with a scale to train."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.function(self.scale * x)


class ModuleSpace(Space[str]):
    """Modules by name: each is made by a function of the site."""

    def __init__(self, layouts: Sequence[str] = ("NCHW",), **makers: Callable[[Site], nn.Module]) -> None:
        self.makers = {"bn_relu": layer("bn_relu"), **makers}
        self._layouts = tuple(layouts)

    @property
    def site_kinds(self):
        return frozenset({"norm_act"})

    @property
    def layouts(self):
        return self._layouts

    def sample(self, rng):
        return sorted(self.makers)[int(rng.integers(len(self.makers)))]

    def mutate(self, candidate, rng):
        return self.sample(rng)

    def build(self, candidate, site):
        return self.makers[candidate](site)

    def key(self, candidate):
        return candidate

    def to_json(self, candidate) -> Any:
        return candidate

    def from_json(self, data: Any):
        if data not in self.makers:
            raise InputError(f"no module {data!r}")
        return data

    def probe_sites(self):
        return [Site("norm_act", i, 8, layout=layout) for i, layout in enumerate(self._layouts)]

"""What a person might write: one of everything, in a module of their own."""

import torch
from torch import nn

from normact.search.controllers import RandomSearch
from normact.search.data import TensorData
from normact.search.gates import Pass, ScreenGate
from normact.search.objective import Objective
from normact.search.task import Measure
from normact.spaces import Op


def _cube(x):
    return x * x * x


def cube():
    return Op("cube", 1, _cube)


class NoDivision(ScreenGate):
    name = "no_division"

    def check(self, ctx):
        if any(node.op == "div" for node in ctx.candidate.canonical.nodes):
            return self.rejection("it divides", nodes=len(ctx.candidate.canonical.nodes))
        return Pass()


class MyRandom(RandomSearch):
    def __init__(self, space, objectives, seed, start_from=(), shift=0):
        super().__init__(space, objectives, seed + shift, start_from)


class WorstClass(Measure):
    def objective(self, data):
        return Objective("worst_class", "", "maximize", 0.0, 1.0)

    def value(self, measured):
        hit = (measured.outputs.argmax(1) == measured.targets).float()
        return float(min(hit[measured.targets == c].mean() for c in measured.targets.unique()))


def stripes(count=200):
    """Images of horizontal or vertical stripes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (count,), generator=generator)
    wave = torch.sin(torch.arange(8.0) * 1.5 + 6 * torch.rand(count, 1, generator=generator))
    rows = wave.unsqueeze(2).expand(count, 8, 8)
    x = torch.where(y.view(-1, 1, 1) == 1, rows, rows.transpose(1, 2)).unsqueeze(1)
    return TensorData((x[:120], y[:120]), (x[120:160], y[120:160]), (x[160:], y[160:]), outputs=2)


def my_model():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip

"""A space that is not of norms, for tests: a linear layer with a choice of two basis functions.

It goes through engine, pools, resume, export and the controller suite like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normact.spaces import InputError, Site, Space

BASES = ("sine", "square")


@dataclass(frozen=True)
class Choice:
    """A basis and how many of its functions."""

    basis: str
    count: int


class BasisLinear(nn.Module):
    """y = W [f_1(x), ..., f_n(x)]: sines of several frequencies, or powers."""

    def __init__(self, choice: Choice, in_features: int, out_features: int) -> None:
        super().__init__()
        self.choice = choice
        self.mix = nn.Linear(in_features * choice.count, out_features)

    def forward(self, x: Tensor) -> Tensor:
        numbers = range(1, self.choice.count + 1)
        if self.choice.basis == "sine":
            parts = [torch.sin(k * x) for k in numbers]
        else:
            parts = [x**k for k in numbers]
        return self.mix(torch.cat(parts, -1))


class ToySpace(Space[Choice]):
    """Two bases, 1 to `most` functions."""

    def __init__(self, most: int = 50) -> None:
        self.most = most

    @property
    def site_kinds(self) -> frozenset[str]:
        return frozenset({"linear"})

    @property
    def layouts(self) -> tuple[str, ...]:
        return ("NC",)

    def sample(self, rng: np.random.Generator) -> Choice:
        return Choice(BASES[int(rng.integers(2))], int(rng.integers(1, self.most + 1)))

    def mutate(self, candidate: Choice, rng: np.random.Generator) -> Choice:
        step = int(rng.choice([-1, 1]))
        return Choice(candidate.basis, min(self.most, max(1, candidate.count + step)))

    def crossover(self, a: Choice, b: Choice, rng: np.random.Generator) -> Choice:
        return Choice(a.basis, b.count)

    def suggest(self, trial: Any) -> Choice:
        return Choice(trial.suggest_categorical("basis", BASES), trial.suggest_int("count", 1, self.most))

    def trial_parameters(self, candidate: Choice) -> dict[str, Any] | None:
        return asdict(candidate) if 1 <= candidate.count <= self.most else None

    def build(self, candidate: Choice, site: Site) -> nn.Module:
        if site.kind != "linear":
            raise InputError(f"a basis cannot fill a site of kind {site.kind!r}")
        return BasisLinear(candidate, site.in_features, site.features_out)

    def key(self, candidate: Choice) -> str:
        return f"{candidate.basis}{candidate.count}"

    def to_json(self, candidate: Choice) -> Any:
        return asdict(candidate)

    def from_json(self, data: Any) -> Choice:
        if not isinstance(data, dict) or data.get("basis") not in BASES:
            raise InputError(f"no choice of basis: {data!r}")
        return Choice(data["basis"], int(data["count"]))

    def parse(self, text: str) -> Choice:
        basis, _, count = text.partition(":")
        return self.from_json({"basis": basis, "count": count or 1})

    def probe_sites(self) -> Sequence[Site]:
        return [Site("linear", 0, 3, 4, layout="NC")]

    def baselines(self) -> dict[str, Choice]:
        return {"plain_square": Choice("square", 2), "plain_sine": Choice("sine", 1)}

    def source(self, candidate: Choice, name: str, note: str = "") -> str:
        numbers = range(1, candidate.count + 1)
        term = (lambda k: f"torch.sin({k} * x)") if candidate.basis == "sine" else (lambda k: f"x ** {k}")
        parts = ", ".join(term(k) for k in numbers)
        return (
            f'"""{name}: {candidate}\n{note}\n"""\n'
            "import torch\nfrom torch import nn\n\n\n"
            "class Layer(nn.Module):\n"
            "    def __init__(self, in_features, out_features):\n"
            "        super().__init__()\n"
            f"        self.mix = nn.Linear(in_features * {candidate.count}, out_features)\n\n"
            "    def forward(self, x):\n"
            f"        return self.mix(torch.cat([{parts}], -1))\n\n\n"
            f"def {name}(in_features, out_features):\n"
            "    return Layer(in_features, out_features)\n"
        )

    def source_arguments(self, site: Site) -> dict[str, Any]:
        return {"in_features": site.in_features, "out_features": site.features_out}


class Plane(Space[tuple[float, float]]):
    """Points of the square from -1 to 1: a space of numbers alone."""

    site_kinds, layouts = frozenset({"act"}), ("NC",)  # type: ignore[assignment]

    def sample(self, rng: np.random.Generator) -> tuple[float, float]:
        return float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))

    def mutate(self, candidate: tuple[float, float], rng: np.random.Generator) -> tuple[float, float]:
        return float(np.clip(candidate[0] + rng.normal(0, 0.1), -1, 1)), candidate[1]

    def suggest(self, trial: Any) -> tuple[float, float]:
        return trial.suggest_float("a", -1, 1), trial.suggest_float("b", -1, 1)

    def trial_parameters(self, candidate: tuple[float, float]) -> dict[str, Any] | None:
        return dict(zip("ab", candidate, strict=True))

    def build(self, candidate: tuple[float, float], site: Site) -> nn.Module:
        return nn.Hardtanh(min(candidate), max(candidate))

    def key(self, candidate: tuple[float, float]) -> str:
        return repr(candidate)

    def to_json(self, candidate: tuple[float, float]) -> Any:
        return list(candidate)

    def from_json(self, data: Any) -> tuple[float, float]:
        return float(data[0]), float(data[1])

    def probe_sites(self) -> Sequence[Site]:
        return [Site("act", 0, 4, layout="NC")]


class ToyNet:
    """An anchor with two `linear` sites."""

    def __init__(self, inputs: int = 64, width: int = 8, outputs: int = 10) -> None:
        self.inputs, self.width, self.outputs = inputs, width, outputs

    def __call__(self, make: Any) -> nn.Module:
        first = make(Site("linear", 0, self.inputs, self.width, layout="NC"))
        second = make(Site("linear", 1, self.width, self.outputs, layout="NC"))
        return nn.Sequential(nn.Flatten(), first, second)

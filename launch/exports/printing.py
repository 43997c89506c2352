"""A candidate's printed source as a module: imported, compared with the searched layer, checked."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normact.launch.exports.checks import Check, Subject, difference, run_checks, worst
from normact.launch.guard import theirs
from normact.spaces.errors import InputError
from normact.spaces.site import Site
from normact.spaces.space import Space

TOLERANCE = 1e-6

Factory = Callable[..., nn.Module]


def source_of(space: Space, candidate: Any, name: str, note: str) -> str:
    """What the space prints.

    Raises:
        InputError: it cannot, or it prints no text.
    """
    with theirs(f"{type(space).__name__}.source"):
        text = space.source(candidate, name, note)
    if not isinstance(text, str):
        raise InputError(f"{type(space).__name__}.source must give text, got {type(text).__name__}")
    return text


@contextmanager
def printed(text: str, name: str) -> Iterator[Factory]:
    """The factory function `name` of a source. While it is used the source has a file, and its module can be found.

    Raises:
        InputError: the source cannot be run, or lacks the function.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(f"normact_export_{name}", path)
        assert spec and spec.loader
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses and pickles look it up
        try:
            with theirs(f"the source of {name}"):
                spec.loader.exec_module(module)
                factory: Factory = getattr(module, name)
            yield factory
        finally:
            del sys.modules[spec.name]


def compare(space: Space, candidate: Any, name: str, factory: Factory) -> float:
    """The largest relative difference between what a space builds and what its printed factory makes, in float64.

    At every probe site, so at one for each layer where a candidate's layers differ from place to place. Parameters are
    moved from where they start: what begins at 0 would else hide what it multiplies.

    Raises:
        InputError: they compute different things.
    """
    with theirs(f"the source of {name}"):
        subjects = (subject_at(space, candidate, factory, site) for site in space.probe_sites())
        off = max(difference(subject.make(), subject.searched(), subject.site) for subject in subjects)
    if not off <= TOLERANCE:
        raise InputError(f"the exported {name} differs from the layer by {off:.2g} of its size: not written")
    return off


def check_layer(space: Space, candidate: Any, factory: Factory) -> list[Check]:
    """What is checked of a printed layer, at every probe site; see `checks`."""
    sites = space.probe_sites()
    return worst({where(site): run_checks(subject_at(space, candidate, factory, site)) for site in sites})


def where(site: Site) -> str:
    """A probe site in a few words."""
    return f"{site.kind} {site.index}, {site.layout}"


def subject_at(space: Space, candidate: Any, factory: Factory, site: Site) -> Subject:
    """A printed layer and the searched one at a site, in the same state: parameters are moved from their start."""
    state = _moved(space.build(candidate, site)).state_dict()

    def make() -> nn.Module:
        made = factory(**space.source_arguments(site))
        made.load_state_dict(state)
        return made

    def searched() -> nn.Module:
        built = space.build(candidate, site)
        built.load_state_dict(state)
        return built

    return Subject(site, make, searched)


@torch.no_grad()
def _moved(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.1)
    return module

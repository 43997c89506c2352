"""The formats of an export, by the suffix of its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normact.launch.exports import picture
from normact.launch.exports.checks import first_line
from normact.launch.exports.printing import Factory, source_of
from normact.launch.exports.programs import ONNX, missing, onnx_of, program_of
from normact.launch.exports.tex import tex
from normact.spaces.errors import InputError
from normact.spaces.fingerprint import probe_batch
from normact.spaces.graph import LayerGraph
from normact.spaces.graph_space import GraphSpace, has_moment
from normact.spaces.site import Site
from normact.spaces.space import Space

FEATURES = 64
"""Channels of a program, where none are given."""

PICTURES = ("matplotlib",)


@dataclass(frozen=True)
class Place:
    """The site of a program, as far as a person says it; what is None is the space's first probe site's.

    Args:
        features: channels that come in.
        out_features: channels that go out, where a layer can have others than come in.
        layout: how tensors lie.
        index: the place among a candidate's layers, where those differ.
    """

    features: int | None = None
    out_features: int | None = None
    layout: str | None = None
    index: int | None = None

    def site(self, space: Space) -> Site:
        """The site.

        Raises:
            InputError: the space serves no such layout or place, or its layers give out as many channels as they take.
        """
        sites = list(space.probe_sites())
        for name, wanted in (("layout", self.layout), ("index", self.index)):
            known = list(dict.fromkeys(getattr(site, name) for site in sites))
            sites = [site for site in sites if wanted in (None, getattr(site, name))]
            if not sites:
                raise InputError(f"--{name} {wanted}: this layer has none; it has {' and '.join(map(str, known))}")
        site = sites[0]
        if self.out_features and site.kind in ("norm_act", "act"):
            raise InputError(f"--out-features {self.out_features}: a layer of kind {site.kind} keeps its channels")
        features = self.features or FEATURES
        return replace(site, in_features=features, out_features=self.out_features)


@dataclass(frozen=True)
class Export:
    """What is to be written.

    Args:
        space: of the candidate.
        candidate: the layer.
        name: of the factory function.
        factory: the printed one.
        note: what the file says of where it comes from, and of checks that failed.
        place: of a program.
    """

    space: Space
    candidate: Any
    name: str
    factory: Factory
    note: str
    place: Place

    def module(self, site: Site) -> nn.Module:
        """The layer as it starts, the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.factory(**self.space.source_arguments(site))

    def program(self) -> torch.export.ExportedProgram:
        """The layer at its place, in evaluation."""
        site = self.place.site(self.space)
        try:
            return program_of(self.module(site), probe_batch(site, 0)[0].float(), site.layout)
        except Exception as problem:
            raise InputError(f"torch.export cannot take {self.name}: {first_line(problem)}; write it as .py") from None

    @property
    def graph(self) -> LayerGraph:
        """The candidate of a graph space; where there is a fixed norm, behind it."""
        assert isinstance(self.space, GraphSpace)
        return self.space.whole(self.candidate)


def _python(export: Export, path: Path) -> None:
    path.write_text(source_of(export.space, export.candidate, export.name, export.note))


def _program(export: Export, path: Path) -> None:
    torch.export.save(export.program(), path, extra_files={"note": export.note})


def _onnx(export: Export, path: Path) -> None:
    program = export.program()
    try:
        onnx = onnx_of(program)
    except Exception as problem:
        raise InputError(f"ONNX cannot say {export.name}: {first_line(problem)}; write it as .pt2 or .py") from None
    onnx.model.doc_string = export.note
    onnx.save(path)


def _tex(export: Export, path: Path) -> None:
    path.write_text(tex(export.graph, export.note))


def _picture(export: Export, path: Path) -> None:
    picture.save(picture.draw_graph(export.graph), path, export.note)


@dataclass(frozen=True)
class Format:
    """How a file is written, what it needs beside torch, whether it is of a layer at a place, or of a graph alone."""

    write: Callable[[Export, Path], None]
    needs: tuple[str, ...] = ()
    extra: str = ""
    placed: bool = False
    graphs: bool = False


_PICTURE = Format(_picture, PICTURES, "pictures", graphs=True)

FORMATS: dict[str, Format] = {
    ".py": Format(_python),
    ".pt2": Format(_program, placed=True),
    ".onnx": Format(_onnx, ONNX, "onnx", placed=True),
    ".tex": Format(_tex, graphs=True),
    ".svg": _PICTURE,
    ".png": _PICTURE,
    ".pdf": _PICTURE,
}
"""By suffix."""

CURVES = {suffix: found for suffix, found in FORMATS.items() if found is _PICTURE}
"""Those in which a curve can be drawn."""


def check_target(option: str, path: Path, formats: Mapping[str, Format]) -> None:
    """Check that a file can be written, before anything is made for it.

    Raises:
        InputError: an unknown suffix, a library that is missing, a path that exists or has no folder.
    """
    if path.suffix not in formats:
        raise InputError(f"{option} {path} must end in {', '.join(formats)}; got {path.suffix or 'no suffix'!r}")
    found = formats[path.suffix]
    if lacking := missing(found.needs):
        raise InputError(f"{option} {path} needs {' and '.join(lacking)}: pip install 'normact[{found.extra}]'")
    if path.exists():
        raise InputError(f"{path} exists already; choose another name, nothing was overwritten")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; make it first")


def pointwise(space: Space, candidate: Any) -> LayerGraph | None:
    """The candidate's own graph where each output depends on one input: what a curve shows. None for all others."""
    return candidate if isinstance(space, GraphSpace) and not has_moment(candidate) else None

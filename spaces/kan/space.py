"""`KanSpace`: which learnable activation each layer of a network uses, with its normalizer, grid and combination."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from normact.spaces.errors import InputError, unknown_name
from normact.spaces.kan import source, text
from normact.spaces.kan.basis import BASES, Basis, find_basis, register_basis
from normact.spaces.kan.genes import (
    FamilyGene,
    KanCandidate,
    LayerGene,
    Pick,
    Repeating,
    choices_of,
    drawn_from,
    mixing_of,
    mutated,
    suggested_by,
)
from normact.spaces.kan.kinds import KINDS, Menu, Options, find_kind, menu_of_families
from normact.spaces.moments import Layout, check_layout
from normact.spaces.site import Conv, Site, SiteKind
from normact.spaces.space import Cost, Space

VERSION = 1
"""Raised when the meaning of an existing gene changes: a key is of one version."""

MAX_TRIES = 1000
"""Draws before the space gives up finding another candidate."""

LAYOUTS: dict[str, tuple[Layout, ...]] = {"linear": ("NC",), "conv": ("NCHW",), "norm_act": ("NCHW", "NLC")}
"""The kinds of site that a space may be for, and the layouts it then serves unless told otherwise."""


class KanSpace(Space[KanCandidate]):
    """Kolmogorov-Arnold layers: basis families, AF-KAN, selection among families, learnable activations on nodes.

    A candidate has one gene for each of the first `layers` sites, the last of them serves all further ones. A sample
    draws each choice uniformly, define-by-run: kind, number of families, each family and its settings, the options of
    the kind. A mutation makes one choice differently, and draws anew what hangs on it. A crossover takes each choice
    from one of two parents.

    Args:
        site: what is searched: `linear` (KANs), `conv` (convolutional KANs) or `norm_act` (an ordinary net's norms
            and activations; kind `node` alone).
        layers: genes of a candidate.
        kinds: among `kan`, `af`, `selectable`, `node`.
        families: basis families by name, or subclasses of `Basis` of your own; all of ours where empty.
        settings: per family, values for a setting in place of its own choices: `{bspline: {grid: [5, 10]}}`.
        options: per kind, values for an option in place of all that there are: `{kan: {base: [silu, none]}}`.
        most_families: families that one layer may combine.
        layouts: served at `norm_act` sites.

    Raises:
        InputError: an unknown name, a grid, degree or order that cannot be, a family that none of the normalizers
            suits, or no choice left.
    """

    def __init__(
        self,
        site: str = "linear",
        layers: int = 2,
        kinds: Sequence[str] = ("kan", "af", "node"),
        families: Sequence[str | type[Basis] | functools.partial[Basis]] = (),
        settings: Mapping[str, Options] | None = None,
        options: Mapping[str, Options] | None = None,
        most_families: int = 2,
        layouts: Sequence[Layout] = (),
    ) -> None:
        if site not in LAYOUTS:
            raise unknown_name("kind of site", site, LAYOUTS)
        if layers < 1 or most_families < 1:
            raise InputError(f"layers and most_families must be at least 1, got {layers} and {most_families}")
        self.site = site
        self.layers = layers
        self.kinds = tuple(kinds)
        for name in self.kinds:
            if site not in find_kind(name).sites:
                serving = ", ".join(sorted(k for k, kind in KINDS.items() if site in kind.sites))
                raise InputError(f"kind {name!r} has no form for {site} sites; those that have: {serving}")
        if not self.kinds:
            raise InputError(f"a KAN space needs at least one kind of layer: {', '.join(KINDS)}")
        self._layouts = tuple(check_layout(layout) for layout in layouts) or LAYOUTS[site]
        named = [_family_name(family) for family in families] or list(BASES)
        self.menu = Menu(
            menu_of_families(named, settings or {}),
            {name: _menu_of_options(name, (options or {}).get(name, {})) for name in self.kinds},
            most_families,
        )
        if site == "norm_act":  # where there is nothing behind the activation to normalize
            self.menu.options["node"]["post"] = ("none",)
        for name in options or {}:
            if name not in self.kinds:
                raise unknown_name("kind", name, self.kinds, " in options")
        self._check_normalizers()
        self.sample(np.random.default_rng(0))

    def _check_normalizers(self) -> None:
        for kind, options in self.menu.options.items():
            for name in self.menu.families if "normalizer" in options and KINDS[kind].families[1] else ():
                try:
                    KINDS[kind].suiting(find_basis(name).bounded, options["normalizer"])
                except InputError as problem:
                    raise InputError(f"{name}: {problem}") from None

    @property
    def site_kinds(self) -> frozenset[str]:
        return frozenset({self.site})

    @property
    def layouts(self) -> tuple[str, ...]:
        return self._layouts

    def draw(self, pick: Pick) -> KanCandidate:
        """A candidate of picks; see `genes`."""
        genes = []
        for index in range(self.layers):
            kind = pick(f"layer{index}.kind", list(self.kinds))
            genes.append(KINDS[kind].draw(pick, f"layer{index}", self.menu))
        return KanCandidate(tuple(genes))

    def sample(self, rng: np.random.Generator) -> KanCandidate:
        return self.draw(drawn_from(rng))

    def mutate(self, candidate: KanCandidate, rng: np.random.Generator) -> KanCandidate:
        for _ in range(MAX_TRIES):
            child = mutated(self.draw, candidate, rng)
            if child != candidate:
                return child
        return self.sample(rng)

    def crossover(self, a: KanCandidate, b: KanCandidate, rng: np.random.Generator) -> KanCandidate:
        return self.draw(mixing_of(rng, choices_of(a), choices_of(b)))

    def suggest(self, trial: Any) -> KanCandidate:
        return self.draw(suggested_by(trial))

    def trial_parameters(self, candidate: KanCandidate) -> dict[str, Any] | None:
        picks = Repeating(choices_of(candidate))
        return picks.made if self.draw(picks) == candidate else None

    def build(self, candidate: KanCandidate, site: Site) -> nn.Module:
        gene = candidate.at(site.index)
        kind = KINDS[gene.kind]
        if site.kind not in kind.sites:
            raise InputError(f"a KAN layer of kind {gene.kind!r} cannot fill a site of kind {site.kind!r}")
        return kind.build(gene, site)

    def cost(self, candidate: KanCandidate, site: Site, batch: int) -> Cost:
        """Parameters, and bytes while training: weights, gradients, two averages; bases and their gradients."""
        gene = candidate.at(site.index)
        parameters = _parameters(gene, site)
        planes = KINDS[gene.kind].planes(gene)
        activations = 3 * batch * site.positions * planes * site.in_features
        return Cost(parameters, 4 * (4 * parameters + activations))

    def key(self, candidate: KanCandidate) -> str:
        data = json.dumps([VERSION, text.to_json(candidate)], sort_keys=True)
        return hashlib.blake2b(data.encode(), digest_size=16).hexdigest()

    def to_json(self, candidate: KanCandidate) -> Any:
        return text.to_json(candidate)

    def from_json(self, data: Any) -> KanCandidate:
        return self._checked(text.from_json(data))

    def parse(self, text_: str) -> KanCandidate:
        """A baseline's name, or layers as text: `kan(gaussian(grid=8)); node(rational)`."""
        known = self.baselines()
        return known[text_] if text_ in known else self._checked(text.read(text_))

    def describe(self, candidate: KanCandidate) -> str:
        return text.write(candidate)

    def source(self, candidate: KanCandidate, name: str, note: str = "") -> str:
        return source.source(candidate, self.layers, self.site, self._layouts[0], name, note)

    def source_arguments(self, site: Site) -> dict[str, Any]:
        return source.source_arguments(site)

    def baselines(self) -> dict[str, KanCandidate]:
        """Each basis family alone, AF-KAN, and an MLP: its activation is SiLU.

        `gaussian` stands behind a layer norm, as on images; `gaussian_minmax` has its inputs brought to [-1, 1] one by
        one, as functions of few variables need it: a layer norm over two inputs leaves hardly more than a sign.
        """
        of_norm_act = self.site == "norm_act"
        fixed = FamilyGene("graph", (("expression", "silu(x)"),))
        found = {"mlp": LayerGene("node", (fixed,), (("normalizer", "batch" if of_norm_act else "none"),))}
        minmax = (("normalizer", "minmax"),)
        for family in map(FamilyGene, BASES):
            if family.name == "graph":
                continue
            if of_norm_act:
                batch = "batch_tanh" if find_basis(family.name).bounded else "batch"
                found[family.name] = LayerGene("node", (family,), (("normalizer", batch),))
            else:
                found[family.name] = LayerGene("kan", (family,))
                found[f"{family.name}_minmax"] = LayerGene("kan", (family,), minmax)
        if not of_norm_act:
            found |= {"af_kan": LayerGene("af"), "af_kan_minmax": LayerGene("af", (), minmax)}
        return {name: self._checked(KanCandidate((gene,))) for name, gene in found.items()}

    def _checked(self, candidate: KanCandidate) -> KanCandidate:
        """The candidate complete: each gene with its defaults, and as many genes as the space has layers.

        Raises:
            InputError: a gene that cannot be, or more of them than the space has layers.
        """
        count = len(candidate.layers)
        if count > self.layers:
            raise InputError(f"the candidate has {count} layers, the space {self.layers}; give space.layers={count}")
        genes = [find_kind(gene.kind).completed(gene) for gene in candidate.layers]
        return KanCandidate(tuple(genes + genes[-1:] * (self.layers - count)))

    def probe_sites(self) -> Sequence[Site]:
        """One for each gene and layout, of a width that groups of channels divide."""
        if self.site == "norm_act":
            places = [(index, layout) for index in range(self.layers) for layout in self._layouts]
            return [Site("norm_act", index, 8, layout=layout) for index, layout in places]
        conv = Conv(3, padding=1) if self.site == "conv" else None
        kind = "conv" if self.site == "conv" else "linear"
        return [Site(kind, index, 8, 8, layout=self._layouts[0], conv=conv) for index in range(self.layers)]  # type: ignore[arg-type]


def _family_name(family: str | type[Basis] | functools.partial[Basis]) -> str:
    """A family's name; one of a person's own is put in the table."""
    if isinstance(family, str):
        return find_basis(family).name
    cls = family.func if isinstance(family, functools.partial) else family
    if not isinstance(cls, type) or not issubclass(cls, Basis):
        raise InputError(f"a family is a name or a subclass of Basis (in YAML with `_partial_: true`), got {family!r}")
    return register_basis(cls).name


def _menu_of_options(kind: str, wanted: Options) -> dict[str, Sequence[Any]]:
    options = find_kind(kind).options
    for name, values in wanted.items():
        if name not in options:
            raise unknown_name(f"option of {kind}", name, options)
        if not isinstance(values, list | tuple) or not values:
            known = ", ".join(map(str, options[name]))
            raise InputError(f"options.{kind}.{name} must be a list of at least one of {known}, got {values!r}")
        for value in values:
            find_kind(kind).check_option(name, value)
    return {name: tuple(wanted.get(name, values)) for name, values in options.items()}


def _parameters(gene: LayerGene, site: Site) -> int:
    """How many parameters the layer has: a I O / groups + b I + c O + d, told from four small layers."""
    kernel, groups = (site.conv.kernel_size, site.conv.groups) if site.conv else (0, 1)
    count = functools.partial(_count, gene, site.kind, site.layout, kernel)
    if site.kind in ("norm_act", "act"):
        return count(8, 8) + (count(16, 16) - count(8, 8)) * (site.in_features - 8) // 8
    product = (count(16, 16) - count(16, 8) - count(8, 16) + count(8, 8)) // 64
    wide, high = (count(16, 8) - count(8, 8)) // 8 - 8 * product, (count(8, 16) - count(8, 8)) // 8 - 8 * product
    rest = count(8, 8) - 64 * product - 8 * (wide + high)
    inputs, outputs = site.in_features, site.features_out
    return product * inputs * outputs // groups + wide * inputs + high * outputs + rest


@functools.lru_cache(maxsize=4096)
def _count(gene: LayerGene, kind: SiteKind, layout: Layout, kernel: int, wide: int, high: int) -> int:
    site = Site(kind, 0, wide, high, layout, conv=Conv(kernel) if kernel else None)
    with torch.random.fork_rng(devices=[]):
        return sum(p.numel() for p in KINDS[gene.kind].build(gene, site).parameters())

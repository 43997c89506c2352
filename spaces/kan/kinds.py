"""The kinds of layer that a KAN candidate can have at a site: what there is to choose, and how one is built."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

from torch import nn

from normact.spaces.errors import InputError, unknown_name
from normact.spaces.kan.af import AF_ACTIVATIONS, AF_FUNCTIONS, AF_REDUCTIONS, AFKANConv2d, AFKANLinear
from normact.spaces.kan.basis import MOST_FUNCTIONS, Basis, find_basis
from normact.spaces.kan.combine import COMBINATIONS
from normact.spaces.kan.genes import FamilyGene, LayerGene, Pick, Settings
from normact.spaces.kan.layer import BASE_ACTIVATIONS, KANConv2d, KANLinear, make_basis
from normact.spaces.kan.node import SHARING, NodeConv2d, NodeLinear, NormActivation
from normact.spaces.kan.normalizers import BOUNDED, NORMALIZERS, POST_NORMS
from normact.spaces.kan.selectable import GRANULARITIES, SelectableKANConv2d, SelectableKANLinear
from normact.spaces.site import Site

Options = Mapping[str, Sequence[Any]]
"""What each option may be, the default first."""


@dataclass(frozen=True)
class Menu:
    """What a space lets its layers choose.

    Args:
        families: per basis family its settings, and the values of each.
        options: per kind its options, and the values of each.
        most_families: families in one layer.
    """

    families: Mapping[str, Options]
    options: Mapping[str, dict[str, Sequence[Any]]]
    most_families: int = 2


class Kind(ABC):
    """A kind of layer. One instance, without state.

    Attributes:
        name: in genomes and texts.
        sites: the kinds of site it fills.
        options: what there is to choose beside the families, the default first.
        families: fewest and most families it takes.
    """

    name: ClassVar[str]
    sites: ClassVar[frozenset[str]] = frozenset({"linear", "conv"})
    options: ClassVar[Options]
    families: ClassVar[tuple[int, int]]

    @abstractmethod
    def build(self, gene: LayerGene, site: Site) -> nn.Module:
        """A fresh module for a site of a kind in `sites`."""

    @abstractmethod
    def planes(self, gene: LayerGene) -> int:
        """Values an input that a layer holds at once, for estimates of memory."""

    def draw(self, pick: Pick, at: str, menu: Menu) -> LayerGene:
        """A gene of what the menu offers, see `genes`."""
        fewest, most = self.families
        counts = range(fewest, min(most, max(menu.most_families, fewest)) + 1)
        count = pick(f"{at}.{self.name}.families", list(counts))
        families = tuple(self._draw_family(pick, at, number, menu) for number in range(count))
        options = tuple(
            (name, self._draw_option(pick, f"{at}.{self.name}.{name}", name, values, families))
            for name, values in menu.options[self.name].items()
        )
        return self.canonical(LayerGene(self.name, families, options))

    def _draw_family(self, pick: Pick, at: str, number: int, menu: Menu) -> FamilyGene:
        name = pick(f"{at}.{self.name}.family{number}", list(menu.families))
        settings = (
            (key, pick(f"{at}.family{number}.{name}.{key}", list(values)))
            for key, values in menu.families[name].items()
        )
        return FamilyGene(name, tuple(settings))

    def _draw_option(
        self, pick: Pick, at: str, name: str, values: Sequence[Any], families: Sequence[FamilyGene]
    ) -> Any:
        if name == "normalizer" and any(find_basis(family.name).bounded for family in families):
            return pick(f"{at}@bounded", self.suiting(True, values))
        return pick(at, list(values))

    def suiting(self, bounded: bool, normalizers: Sequence[str]) -> list[str]:
        """Those of the normalizers that suit families, bounded or not.

        Raises:
            InputError: none does.
        """
        found = [name for name in normalizers if name in BOUNDED or not bounded]
        if not found:
            raise InputError(
                f"it needs inputs in [-1, 1], which none of the normalizers {', '.join(normalizers)} of {self.name} "
                f"gives; add one of {', '.join(sorted(BOUNDED))}"
            )
        return found

    def check_option(self, name: str, value: Any) -> None:
        """Check an option's value: one of those known, or another whole number where they are numbers.

        Raises:
            InputError: it is none.
        """
        known = self.options[name]
        if type(value) is not type(known[0]) or (value not in known and not isinstance(value, int)):
            raise unknown_name(f"{self.name} {name}", str(value), map(str, known))

    def canonical(self, gene: LayerGene) -> LayerGene:
        """The gene of the same function that stands for all of them."""
        return replace(gene, families=tuple(sorted(gene.families, key=lambda f: (f.name, str(f.settings)))))

    def completed(self, gene: LayerGene) -> LayerGene:
        """The gene with defaults where options or settings are left out, in the usual order, checked.

        Raises:
            InputError: an unknown option, family or setting, a value that cannot be, or too few or many families.
        """
        given = dict(gene.options)
        for name in given:
            if name not in self.options:
                raise unknown_name(f"option of {self.name}", name, self.options)
        fewest, most = self.families
        if not fewest <= len(gene.families) <= most:
            raise InputError(f"{self.name}(...) takes {fewest} to {most} basis families, got {len(gene.families)}")
        families = tuple(_completed(family) for family in gene.families)
        bounded = any(find_basis(family.name).bounded for family in families)
        defaults = {name: values[0] for name, values in self.options.items()}
        if bounded:
            defaults |= {"normalizer": "layer_tanh"}
        options = tuple((name, given.get(name, default)) for name, default in defaults.items())
        for name, value in options:
            self.check_option(name, value)
        complete = LayerGene(self.name, families, options)
        if "normalizer" in self.options:
            for family in families:
                size_of(family, complete.option("normalizer"))
        return self.canonical(complete)


def _completed(gene: FamilyGene) -> FamilyGene:
    cls = find_basis(gene.name)
    given = dict(gene.settings)
    for name in given:
        if name not in cls.choices:
            raise unknown_name(f"setting of {gene.name}", name, cls.choices)
    settings = ((name, _typed(gene.name, name, given, default_of(cls, name))) for name in cls.choices)
    return FamilyGene(gene.name, tuple(settings))


def _typed(family: str, name: str, given: Mapping[str, Any], default: Any) -> Any:
    """The value given, or the default, of the default's type: 8 and 8.0 are equal, and would share a cache's entry.

    Raises:
        InputError: it is of another type, or no finite number.
    """
    value = given.get(name, default)
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default) or (isinstance(value, float) and not math.isfinite(value)):
        wanted = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}
        raise InputError(f"{family} needs {name} to be {wanted[type(default)]} such as {default!r}, got {value!r}")
    return value


def default_of(cls: type[Basis], setting: str) -> Any:
    """The default of a family's setting, from its constructor."""
    return inspect.signature(cls.__init__).parameters[setting].default


@lru_cache(maxsize=4096)
def size_of(family: FamilyGene, normalizer: str) -> int:
    """K, the functions an input that a family has.

    Raises:
        InputError: the family cannot be so.
    """
    return make_basis(family.family, 8, normalizer).size


def _kept(gene: LayerGene) -> int:
    """Values an input that the families of a gene keep for the backward pass."""
    return sum(size_of(f, gene.option("normalizer")) * find_basis(f.name).kept for f in gene.families)


def _families(gene: LayerGene) -> list[tuple[str, dict[str, Any]]]:
    return [family.family for family in gene.families]


def _conv(site: Site) -> dict[str, Any]:
    assert site.conv is not None
    conv = site.conv
    return {
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": conv.padding,
        "groups": conv.groups,
    }


class KanKind(Kind):
    """`KANLinear` or `KANConv2d`: one or more families, mixed."""

    name = "kan"
    options = {
        "normalizer": ("layer", *(n for n in NORMALIZERS if n != "layer")),
        "base": (*BASE_ACTIVATIONS, "none"),
        "combine": COMBINATIONS,
        "post": POST_NORMS,
    }
    families = (1, 4)

    def canonical(self, gene: LayerGene) -> LayerGene:
        if len(gene.families) == 1:
            return replace(gene, options=_with(gene.options, "combine", "sum"))
        return gene if gene.option("combine") == "concat" else super().canonical(gene)

    def _draw_option(
        self, pick: Pick, at: str, name: str, values: Sequence[Any], families: Sequence[FamilyGene]
    ) -> Any:
        if name == "combine" and len(families) == 1:
            return "sum"
        if name == "combine" and len({size_of(family, "tanh") for family in families}) > 1 and len(values) > 1:
            return pick(f"{at}@unequal", [value for value in values if value != "shared"])
        return super()._draw_option(pick, at, name, values, families)

    def build(self, gene: LayerGene, site: Site) -> nn.Module:
        options: dict[str, Any] = dict(gene.options)
        if site.kind == "conv":
            return KANConv2d(site.in_features, site.features_out, **_conv(site), families=_families(gene), **options)
        return KANLinear(site.in_features, site.features_out, _families(gene), **options)

    def planes(self, gene: LayerGene) -> int:
        return _kept(gene) + (gene.option("base") != "none")


class AFKind(Kind):
    """`AFKANLinear` or `AFKANConv2d`."""

    name = "af"
    options = {
        "activation": ("silu", *(n for n in AF_ACTIVATIONS if n != "silu")),
        "function": ("quad1", *(n for n in AF_FUNCTIONS if n != "quad1")),
        "reduction": ("global_attention", *(n for n in AF_REDUCTIONS if n != "global_attention")),
        "functional_norm": (False, True),
        "normalizer": tuple(NORMALIZERS),
        "post": ("layer", "batch", "none"),
        "grid": (3, 5),
        "order": (3, 2),
    }
    families = (0, 0)

    def check_option(self, name: str, value: Any) -> None:
        super().check_option(name, value)
        least = {"grid": 1, "order": 0}
        if name in least and not least[name] <= value <= MOST_FUNCTIONS:
            raise InputError(
                f"af needs {name} to be a whole number from {least[name]} to {MOST_FUNCTIONS}, got {value}"
            )

    def build(self, gene: LayerGene, site: Site) -> nn.Module:
        options: dict[str, Any] = dict(gene.options)
        if site.kind == "conv":
            return AFKANConv2d(site.in_features, site.features_out, **_conv(site), **options)
        return AFKANLinear(site.in_features, site.features_out, **options)

    def planes(self, gene: LayerGene) -> int:
        return 4 * (gene.option("grid") + gene.option("order"))


class SelectableKind(Kind):
    """`SelectableKANLinear` or `SelectableKANConv2d`: families compete, the best stay."""

    name = "selectable"
    options = {
        "granularity": ("node", *(n for n in GRANULARITIES if n != "node")),
        "normalizer": ("layer_tanh", *(n for n in NORMALIZERS if n != "layer_tanh")),
        "base": (*BASE_ACTIVATIONS, "none"),
        "post": POST_NORMS,
    }
    families = (2, 6)

    def build(self, gene: LayerGene, site: Site) -> nn.Module:
        options: dict[str, Any] = dict(gene.options)
        if site.kind == "conv":
            return SelectableKANConv2d(
                site.in_features, site.features_out, **_conv(site), families=_families(gene), **options
            )
        return SelectableKANLinear(site.in_features, site.features_out, _families(gene), **options)

    def planes(self, gene: LayerGene) -> int:
        return _kept(gene) + 1


class NodeKind(Kind):
    """An ordinary map behind a learnable activation; at `norm_act` sites the norm and the activation alone."""

    name = "node"
    sites = frozenset({"linear", "conv", "norm_act"})
    options = {
        "normalizer": ("layer", *(n for n in NORMALIZERS if n != "layer")),
        "sharing": tuple(reversed(SHARING)),
        "start": tuple(BASE_ACTIVATIONS),
        "post": POST_NORMS,
    }
    families = (1, 1)

    def canonical(self, gene: LayerGene) -> LayerGene:
        if size_of(gene.families[0], "tanh") > 1:
            return gene
        options = _with(gene.options, "sharing", SHARING[-1])  # no matter to a function with parameters of its own
        return replace(gene, options=_with(options, "start", "silu"))

    def build(self, gene: LayerGene, site: Site) -> nn.Module:
        family = gene.families[0].family
        options: dict[str, Any] = dict(gene.options)
        if site.kind == "linear":
            return NodeLinear(site.in_features, site.features_out, family, **options)
        if site.kind == "conv":
            assert site.conv is not None
            return NodeConv2d(site.in_features, site.features_out, site.conv, family, **options)
        del options["post"]
        return NormActivation(site.in_features, family, layout=site.layout, activation=site.activation, **options)

    def planes(self, gene: LayerGene) -> int:
        return _kept(gene) + 2


def _with(options: Settings, name: str, value: Any) -> Settings:
    return tuple((key, value if key == name else old) for key, old in options)


KINDS: dict[str, Kind] = {kind.name: kind for kind in (KanKind(), AFKind(), SelectableKind(), NodeKind())}
"""The kinds by name."""


def find_kind(name: str) -> Kind:
    """The kind of that name.

    Raises:
        InputError: there is none; the nearest name is given.
    """
    if name not in KINDS:
        raise unknown_name("kind of KAN layer", name, KINDS)
    return KINDS[name]


def menu_of_families(names: Sequence[str], settings: Mapping[str, Options]) -> dict[str, Options]:
    """Per family its settings and their values: its own `choices`, or what a person wants instead.

    Raises:
        InputError: an unknown family or setting, no value, or a value that cannot be.
    """
    menu: dict[str, Options] = {}
    for name in settings:
        if name not in names:
            raise unknown_name("family", name, names, " in settings")
    for name in names:
        cls = find_basis(name)
        own = settings.get(name, {})
        for key, values in own.items():
            if key not in cls.choices:
                raise unknown_name(f"setting of {name}", key, cls.choices)
            if not isinstance(values, list | tuple) or not values:
                raise InputError(f"settings.{name}.{key} must be a list of at least one value, got {values!r}")
        menu[name] = {key: tuple(own.get(key, choices)) for key, choices in cls.choices.items()}
        for key, values in menu[name].items():
            for value in values:
                others = {k: default_of(cls, k) for k in cls.choices}
                make_basis((name, others | {key: value}), 8, "tanh")
    return menu

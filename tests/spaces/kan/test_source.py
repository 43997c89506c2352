"""Printed KAN layers: equal to the searched ones, standing alone, and fit to be read."""

import ast
import copy
import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from normact.spaces import InputError
from normact.spaces.kan import BASES, COMBINATIONS, NORMALIZERS
from normact.spaces.kan.basis import Basis, register_basis
from normact.spaces.kan.kinds import KINDS
from normact.spaces.kan.source import CLASSES, source, source_arguments
from normact.spaces.kan.space import KanSpace
from normact.spaces.site import Conv, Site

RUNNER = Path(__file__).parents[1] / "run_emitted.py"
SITES = {
    "linear": [Site("linear", 0, 6, 5, layout="NC"), Site("linear", 1, 5, 3, layout="NC")],
    "conv": [
        Site("conv", 0, 4, 6, conv=Conv(3, stride=2, padding=1)),
        Site("conv", 1, 6, 4, conv=Conv(3, padding=1, groups=2)),
    ],
    "norm_act": [
        Site("norm_act", 0, 6, layout="NCHW"),
        Site("norm_act", 1, 6, layout="NLC", activation=False),
        Site("norm_act", 2, 6, layout="NC"),
    ],
}
SPACES = {
    "linear": KanSpace("linear", kinds=list(KINDS), most_families=3),
    "conv": KanSpace("conv", kinds=list(KINDS), most_families=3),
    "norm_act": KanSpace("norm_act", kinds=["node"], layouts=["NCHW", "NLC", "NC"]),
}
SHAPES = {"NC": (5,), "NCHW": (3, 5), "NLC": (4,)}
MORE = {  # combinations, kinds and options beside each family alone
    "linear": [
        *(f"kan(gaussian(grid=5), gaussian(grid=5), combine={combine})" for combine in COMBINATIONS),
        "kan(chebyshev, bspline, normalizer=batch_tanh, base=none, post=batch, combine=quadratic); af()",
        "kan(gaussian, base=none); node(bspline, sharing=layer, start=tanh)",
        "kan(gaussian, base=identity, combine=sum); kan(bspline, rational, base=gelu, combine=max)",
        "af(activation=tanh, function=cubic1, reduction=multistep, functional_norm=True, post=none); kan(sech)",
        "af(reduction=spatial_attention, normalizer=minmax)",
        "node(graph(expression='mul(x, sigmoid(mul(v1, x)))')); kan(graph, graph(expression='tanh(x)'))",
        "selectable(gaussian, rational)",
        "selectable(chebyshev, bspline, granularity=input, base=none); selectable(sech, graph, post=batch)",
        *(f"kan(gaussian, normalizer={normalizer})" for normalizer in NORMALIZERS),
    ],
    "conv": [
        "selectable(gaussian, bspline, granularity=layer)",
        "kan(gaussian, bspline, combine=product); af()",
        "kan(chebyshev, normalizer=layer_tanh, base=none); node(rational)",
        "node(gaussian, normalizer=batch); node(graph)",
    ],
    "norm_act": ["node(graph, normalizer=none)", "node(bspline, normalizer=batch); node(graph, normalizer=batch)"],
}
KIND = {"linear": "kan", "conv": "kan", "norm_act": "node"}
TEXTS = [(site, f"kan({name})") for site in ("linear", "conv") for name in BASES]
TEXTS += [("norm_act", f"node({name})") for name in ("gaussian", "bspline", "rational")]
TEXTS += [(site, text) for site, texts in MORE.items() for text in texts]


def printed(site, candidate):
    return source(candidate, SPACES[site].layers, site, SPACES[site].layouts[0], "mine", "a note\n  of two lines")


def built(site, candidate, place):
    """The searched layer in float64, its parameters away from where they start."""
    with torch.random.fork_rng():
        torch.manual_seed(place.index)
        module = SPACES[site].build(candidate, place).double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.rand_like(parameter))
    return module


def batches(place, module):
    generator = torch.Generator().manual_seed(7)
    shape = list(SHAPES[place.layout])
    shape = [4, *shape, place.in_features] if place.layout == "NLC" else [4, place.in_features, *shape]
    shape = [4, place.in_features] if place.layout == "NC" else shape
    found = []
    for number in range(3):
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * (1 + number) + 0.3 * number
        size = copy.deepcopy(module)(x).shape  # a copy: running statistics are not to move
        found.append((x, torch.randn(size, generator=generator, dtype=torch.float64)))
    return found


def case_of(site, text, place, module):
    candidate = SPACES[site].parse(text)
    return {
        "name": "mine",
        "source": printed(site, candidate),
        "arguments": source_arguments(place),
        "state": {key: value.clone() for key, value in module.state_dict().items()},
        "batches": batches(place, module),
        "dtype": torch.float64,
    }


def assert_close(got, expected, what):
    assert (got is None) == (expected is None), what
    if got is not None:
        assert got.shape == expected.shape, what
        got, expected = got.detach().double(), expected.detach().double()
        assert float((got - expected).abs().max()) <= 1e-11 * max(float(expected.square().mean().sqrt()), 1e-12), what


def test_printed_layers_compute_what_was_searched_where_nothing_but_torch_is_installed(runner, tmp_path):
    searched, cases, names = [], [], []
    for site, text in TEXTS:
        for place in SITES[site] if ";" in text else SITES[site][:1]:
            module = built(site, SPACES[site].parse(text), place)
            cases.append(case_of(site, text, place, module))
            searched.append(runner.respond(module, cases[-1]["batches"]))
            names.append(f"{text} at {place.kind} {place.index}")
    torch.save(cases, tmp_path / "cases.pt")
    files = [str(RUNNER), str(tmp_path / "cases.pt"), str(tmp_path / "results.pt")]
    done = subprocess.run([sys.executable, "-I", "-W", "error", *files], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, got, expected in zip(names, torch.load(tmp_path / "results.pt"), searched, strict=True):
        assert got["state"].keys() == expected["state"].keys(), name
        for phase, wanted in zip(got["phases"], expected["phases"], strict=True):
            assert phase.keys() == wanted.keys(), name
            for key in wanted:
                assert_close(phase[key], wanted[key], f"{key} of {name}")
        for key in expected["state"]:
            assert_close(got["state"][key], expected["state"][key], f"state {key} of {name}")


@pytest.mark.parametrize("site", SITES)
def test_whatever_a_space_draws_can_be_printed(site):
    rng = np.random.default_rng(1)
    for _ in range(6):
        candidate = SPACES[site].sample(rng)
        for place in SITES[site]:
            namespace = {}
            exec(printed(site, candidate), namespace)
            try:
                module = built(site, candidate, place)
            except InputError:  # such as a concatenation in groups
                continue
            other = namespace["mine"](**source_arguments(place)).double()
            other.load_state_dict(module.state_dict())
            x = batches(place, module)[1][0]
            assert_close(other.eval()(x), module.eval()(x), SPACES[site].describe(candidate))


@pytest.mark.parametrize(("site", "text"), TEXTS, ids=lambda value: str(value)[:50])
def test_a_file_imports_torch_and_the_standard_library_alone(site, text):
    tree = ast.parse(printed(site, SPACES[site].parse(text)))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} <= {"torch", *sys.stdlib_module_names}


def test_files_are_as_ruff_would_have_them(tmp_path):
    for number, (site, text) in enumerate(TEXTS):
        (tmp_path / f"file{number}.py").write_text(printed(site, SPACES[site].parse(text)))
    rules = ["--select", "E,F,W,I,UP,B,C4,SIM,RET,PIE", "--line-length", "120"]
    for command in (["check", *rules], ["format", "--check", "--line-length", "120"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", str(tmp_path)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:]


def names_of(text):
    return {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def test_a_file_holds_what_its_layer_uses_and_no_more():
    space = SPACES["linear"]
    text = printed("linear", space.parse("kan(gaussian(grid=5), normalizer=tanh)"))
    names = names_of(text)
    assert {"Gaussian", "KANLinear", "Mixing", "mine"} <= names
    others = {cls.__name__ for name, cls in BASES.items() if name != "gaussian"} | {"KANConv2d", "MinMax"}
    assert not others & names
    assert "FORMS" not in text
    assert "_shares" not in text
    assert "register" not in text.replace("register_buffer", "")
    assert "normact" not in text
    assert "a note\n  of two lines" in text
    assert ast.get_docstring(ast.parse(text)).startswith("mine: kan(gaussian(grid=5), normalizer=tanh")
    both = names_of(printed("linear", space.parse("kan(gaussian, normalizer=minmax); kan(bspline)")))
    assert {"Gaussian", "BSpline", "MinMax"} <= both


def test_a_file_refuses_by_name_what_it_does_not_hold():
    namespace = {}
    exec(printed("linear", SPACES["linear"].parse("kan(gaussian, combine=sum)")), namespace)
    layer = namespace["KANLinear"]
    for settings, message in (
        ({"families": ["bspline"]}, "unknown basis family 'bspline'.*known: gaussian"),
        ({"families": ["gaussian"], "combine": "product"}, "unknown combination 'product'.*known: sum"),
        ({"families": ["gaussian"], "normalizer": "minmax"}, "unknown normalizer 'minmax'.*known: layer"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(3, 2, **settings)


@pytest.mark.parametrize("site", SITES)
def test_places_beyond_the_last_have_the_last_layer(site):
    """And layers that are alike are printed once."""
    kind = KIND[site]
    space = SPACES[site]
    one = printed(site, space.parse(f"{kind}(gaussian)"))
    assert printed(site, space.parse(f"{kind}(gaussian); {kind}(gaussian)")).count("    return ") == one.count(
        "    return "
    )
    namespace = {}
    exec(printed(site, space.parse(f"{kind}(gaussian); {kind}(bspline)")), namespace)
    place = SITES[site][0]
    made = [namespace["mine"](**source_arguments(place) | {"index": index}) for index in range(4)]
    families = ["Gaussian", "BSpline", "BSpline", "BSpline"]
    for module, family in zip(made, families, strict=True):
        assert [type(m).__name__ for m in module.modules() if type(m).__name__ in ("Gaussian", "BSpline")] == [family]


@pytest.mark.parametrize("name", ["Mine", "9x", "for", "a b", "", "torch", "nn", "make_basis", "print"])
def test_a_name_that_cannot_be(name):
    with pytest.raises(InputError, match=re.escape(repr(name))):
        source(SPACES["linear"].parse("kan(gaussian)"), 1, "linear", "NC", name)


def test_every_kind_has_a_class_for_each_site_that_it_fills():
    found = {(kind.name, site) for kind in KINDS.values() for site in kind.sites if site != "act"}
    assert found == set(CLASSES)


OWN = '''
"""A family of a person's own."""

import torch

from normact.spaces.kan import Basis, register_basis

POWER = 3


@register_basis
class Cubes(Basis):
    """x^3."""

    name = "cubes"

    def __init__(self, features: int, reach: float = 2.0) -> None:
        super().__init__(features, 1, reach)

    def planes(self, x: torch.Tensor) -> torch.Tensor:
        return (x**POWER).unsqueeze(-2)
'''


@pytest.fixture
def own_family(tmp_path, monkeypatch):
    (tmp_path / "my_cubes.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("my_cubes").Cubes
    BASES.pop("cubes", None)
    sys.modules.pop("my_cubes", None)


def test_a_family_of_a_persons_own_is_printed_too(own_family):
    space = KanSpace("linear", families=["cubes", "gaussian"])
    candidate = space.parse("kan(cubes)")
    text = source(candidate, 2, "linear", "NC", "mine")
    namespace = {}
    exec(text, namespace)
    assert "my_cubes" not in text
    module = space.build(candidate, SITES["linear"][0])
    other = namespace["mine"](6, 5)
    other.load_state_dict(module.state_dict())
    x = torch.randn(4, 6)
    torch.testing.assert_close(other(x), module(x))


def test_a_family_without_a_source_is_refused():
    namespace = {"Basis": Basis, "__name__": "nowhere"}
    exec(
        "class Typed(Basis):\n    name = 'typed'\n    def planes(self, x):\n        return x.unsqueeze(-2)\n", namespace
    )
    namespace["Typed"].__init__ = lambda self, features, reach=2.0: Basis.__init__(self, features, 1, reach)
    register_basis(namespace["Typed"])
    try:
        space = KanSpace("linear", families=["typed"])
        with pytest.raises(InputError, match="nowhere"):
            source(space.parse("kan(typed)"), 1, "linear", "NC", "mine")
    finally:
        BASES.pop("typed")

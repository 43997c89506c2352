"""The house: who may import whom, what is packaged, how large a module may be."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CODE = ("spaces", "search", "launch")
PACKAGES = ("spaces", "search", "launch", "conf")


def modules(folder):
    return sorted(path for path in (ROOT / folder).rglob("*.py"))


def imports(path):
    """The absolute names that a module imports, wherever in it; a relative import is refused."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def outside(path):
    """Top-level names of what a module imports that is neither ours nor the standard library's."""
    return {name.split(".")[0] for name in imports(path)} - {"normact"} - set(sys.stdlib_module_names)


def ours(path):
    """Which of our folders a module imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("normact.")}


def where(path):
    return str(path.relative_to(ROOT))


ALL = [path for folder in CODE for path in modules(folder)]


def test_the_rules_below_see_the_modules():
    assert {path.relative_to(ROOT).parts[0] for path in ALL} == set(CODE)
    assert "normact.spaces.errors" in set(imports(ROOT / "spaces" / "graph.py"))
    assert outside(ROOT / "spaces" / "layer.py") == {"torch"}


@pytest.mark.parametrize("path", ALL, ids=where)
def test_imports_point_one_way(path):
    allowed = {"spaces": {"spaces"}, "search": {"spaces", "search"}, "launch": {*CODE, "conf"}}
    assert ours(path) <= allowed[path.relative_to(ROOT).parts[0]]


@pytest.mark.parametrize("path", modules("spaces"), ids=where)
def test_spaces_needs_torch_and_numpy_alone(path):
    assert outside(path) <= {"torch", "numpy"}


@pytest.mark.parametrize("path", [p for p in ALL if p.relative_to(ROOT).parts[0] != "launch"], ids=where)
def test_only_launch_knows_ray_hydra_and_the_terminal(path):
    assert not outside(path) & {"ray", "hydra", "omegaconf", "rich"}


WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "optuna", "hydra", "omegaconf", "scipy", "sklearn", "rich"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
try:
    import optuna
except ImportError:
    pass
else:
    raise SystemExit("the test's own refusal does not work")
import normact.spaces as spaces
import torch

layer = spaces.GraphLayer(spaces.named("evonorm_b0").graph, 8)
print(tuple(layer(torch.ones(2, 8, 3, 3)).shape))
"""


def test_spaces_works_where_nothing_but_torch_is_installed():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, cwd=ROOT.anchor)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 8, 3, 3)"


def test_the_packages_listed_are_those_in_the_tree():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(("normact", *path.parent.relative_to(ROOT).parts))
        for folder in PACKAGES
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(listed["packages"]) == sorted(found)
    assert listed["package-dir"] == {f"normact.{folder}": folder for folder in PACKAGES}


@pytest.mark.parametrize("folder", PACKAGES)
def test_every_folder_with_python_in_it_is_a_package(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"


@pytest.mark.parametrize("path", ALL, ids=where)
def test_no_module_is_longer_than_500_lines(path):
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=where)
def test_a_config_is_yaml(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_there_are_configs():
    assert list((ROOT / "conf").rglob("*.yaml"))

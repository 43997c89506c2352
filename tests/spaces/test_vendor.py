"""Sources of classes with all that they use: in order, complete, and nothing else."""

import ast
import importlib
import sys

import pytest

from normact.spaces import InputError
from normact.spaces.definitions import names_in
from normact.spaces.vendor import vendored

MODULES = {
    "parts_tools": '''
"""Tools."""

import math
from collections.abc import Callable
from dataclasses import dataclass

SIZE, OTHER = 3, 4
"""Two sizes."""

UNUSED = 5

TABLE: dict[str, Callable[[float], float]] = {}
"""By name."""

LITERAL = {
    "one": lambda x: x + SIZE,  # a remark
    "two": math.sqrt,
    "three": lambda x: _help(x),
}

NAMES = ("zero", *LITERAL)


def register_tool(cls):
    TABLE[cls.__name__.lower()] = cls
    return cls


# what it is for
def _help(x: float) -> float:
    """Help."""
    return x * math.pi


@dataclass(frozen=True)
class Point:
    x: float
    y: float = OTHER
''',
    "parts_main": '''
from __future__ import annotations

import json as js
import os.path
from functools import lru_cache

import parts_tools
from parts_tools import LITERAL, NAMES, TABLE, Point, _help, register_tool

DEFAULT = 2


class Base:
    """Of all."""

    def run(self, kind: str) -> Point:
        return self._made(kind)

    def _made(self, kind: str) -> Point:
        return Point(LITERAL[kind](DEFAULT))


@register_tool
class Lone(Base):
    """Alone."""

    def _never_called(self) -> str:
        return js.dumps(sorted(unheard(NAMES)))


@register_tool
class Pair(Base):
    def both(self) -> list[Lone]:
        return [TABLE["lone"]() for DEFAULT in range(2)]


@lru_cache
def unheard(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if os.path.exists(name)]


def first(x: float) -> float:
    return second(x - 1) if x > 0 else x


def second(x: float) -> float:
    return first(x) + _help(x)


def whole(x: float) -> float:
    return parts_tools._help(x)
''',
    "parts_twin": '''
from parts_main import first


def _help(x: float) -> float:
    return -x


def twin(x: float) -> float:
    return _help(first(x))


def outside(x: float) -> float:
    import numpy  # its own affair: not seen

    return numpy.abs(x)
''',
    "parts_numpy": '''
import numpy as np


def f(x):
    return np.abs(x)
''',
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    yield [importlib.import_module(name) for name in MODULES]
    sys.path.remove(str(folder))
    for name in MODULES:
        del sys.modules[name]


def of(name):
    module = next(sys.modules[m] for m in reversed(MODULES) if name in vars(sys.modules[m]))
    return getattr(module, name)


def run(text):
    namespace = {}
    exec(compile(text, "file", "exec"), namespace)
    return namespace


def defined(text):
    names = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            names.append(ast.unparse(target))
    return names


def test_what_is_used_is_there_in_an_order_that_runs_and_nothing_else():
    text = vendored([of("Lone")])
    assert sorted(defined(text)) == sorted(["(SIZE, OTHER)", "_help", "LITERAL", "Point", "DEFAULT", "Base", "Lone"])
    assert "register" not in text
    assert "json" not in text  # what the method that is never called used
    assert run(text)["Lone"]().run("two").x == 2**0.5
    assert text.startswith("from __future__ import annotations\n\nimport math\n")
    assert '"""Two sizes."""' in text
    assert "# what it is for\ndef _help" in text
    assert "# a remark" in text


def test_functions_that_call_each_other():
    text = vendored([of("first")])
    assert run(text)["first"](2.0) == of("first")(2.0)
    assert defined(text) == ["_help", "second", "first"]


def test_tables_keep_the_entries_that_are_asked_for():
    text = vendored([of("Pair")], keep={"TABLE": {"lone"}, "LITERAL": {"two"}})
    assert sorted(defined(text)) == sorted(
        ["Point", "(SIZE, OTHER)", "LITERAL", "DEFAULT", "Base", "Lone", "TABLE", "Pair"]
    )
    namespace = run(text)
    assert [type(x).__name__ for x in namespace["Pair"]().both()] == ["Lone", "Lone"]
    assert namespace["LITERAL"] == {"two": of("LITERAL")["two"]}
    assert 'TABLE: dict[str, Callable[[float], float]] = {"lone": Lone}\n"""By name."""' in text
    text = vendored([of("unheard")], keep={"NAMES": {"three"}}, text="def f() -> list[str]:\n    return unheard(NAMES)")
    assert "NAMES" not in defined(text)  # nothing of the objects uses it
    with pytest.raises(InputError, match="cannot keep four of LITERAL: it has one, two, three"):
        vendored([of("Pair")], keep={"LITERAL": {"four"}})
    with pytest.raises(InputError, match="DEFAULT is no table"):
        vendored([of("Pair")], keep={"DEFAULT": {"four"}})


@pytest.mark.parametrize(("kept", "source"), [(["one"], '("one",)'), (["one", "two"], '("one", "two")'), ([], "()")])
def test_a_tuple_keeps_its_order(kept, source):
    text = vendored([of("Lone")], keep={"NAMES": kept}, replace={of("Base"): BASE_WITH_NAMES})
    assert f"NAMES = {source}\n" in text
    assert run(text)["Base"]().names() == tuple(kept)


BASE_WITH_NAMES = """
from parts_tools import NAMES


def helper():
    return NAMES


class Base:
    def names(self):
        return helper()
"""


def test_a_text_may_stand_for_a_definition():
    text = vendored([of("Lone")], replace={of("Base"): BASE_WITH_NAMES})
    assert defined(text)[-3:] == ["helper", "Base", "Lone"]
    assert run(text)["Lone"]().names() == ("zero", "one", "two", "three")
    with pytest.raises(InputError, match="stands for Base defines helper instead"):
        vendored([of("Lone")], replace={of("Base"): "def helper():\n    return 1\n"})


def test_two_definitions_of_one_name_get_two():
    text = vendored([of("twin")])
    assert len(set(defined(text))) == len(defined(text)) == 5
    assert run(text)["twin"](2.5) == of("twin")(2.5)
    assert sum(name.startswith("_help") for name in defined(text)) == 2


def test_branches_that_are_never_taken_pull_nothing_in():
    text = vendored([of("Lone")], settled={"kind": {"two"}}, replace={of("Base"): BASE_THAT_CHOOSES})
    assert defined(text) == ["Base", "Lone"]


BASE_THAT_CHOOSES = """
from parts_tools import Point


class Base:
    def run(self, kind):
        return Point(1) if kind == "one" else kind
"""


def test_methods_can_be_left_out():
    assert "def both" not in vendored([of("Pair")], without=["both"])


def test_a_text_of_the_caller_brings_its_imports():
    text = vendored(
        [of("first")], text="def make(x: Any) -> Tensor:\n    return torch.tensor(first(x)) + nn.Identity()(x)"
    )
    head = text.split("\n\n\n")[0]
    assert "from typing import Any\n\nimport torch\nfrom torch import Tensor, nn" in head
    assert run(text)["make"](0.0) == 0
    for name in ("first", "_help", "len", "torch"):
        with pytest.raises(InputError, match=f"cannot be called '{name}'"):
            vendored([of("first")], text=f"def {name}(x) -> None:\n    return torch.tensor(x)")


def test_what_cannot_stand_alone_is_refused():
    with pytest.raises(InputError, match="it needs numpy, and a file may need torch alone"):
        vendored([of("f")])
    with pytest.raises(InputError, match="'import parts_tools' names no definition"):
        vendored([of("whole")])
    with pytest.raises(InputError, match="no class or function at the top"):
        vendored([of("Lone").run])
    with pytest.raises(InputError, match="no class or function at the top"):
        vendored([3])


NAMES_IN = [
    ("def f(x: A, y=B) -> C:\n    return D(x, y)", {"B"}, {"A", "C", "D"}),
    ("class X(Y, z=Z):\n    a: A = B\n    c: C\n    def f(self):\n        return D", {"Y", "Z", "B"}, {"A", "C", "D"}),
    ("x = [A(y) for y in B]", {"A", "B"}, set()),
    ("x = {'a': lambda y: A(y)}", {"A"}, set()),
    ("def f(A):\n    B = A\n    def g():\n        return B, C\n    return g", set(), {"C"}),
    ("@A\ndef f():\n    f()", {"A"}, {"f"}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "at_once", "later"), NAMES_IN)
def test_names_that_a_definition_uses(text, at_once, later):
    assert names_in(text) == (at_once, later)

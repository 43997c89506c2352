"""Source without the branches that known values never take."""

import ast
import textwrap

import pytest

from normact.spaces.folding import folded, renamed, without_decorators, without_methods

TABLES = {"LARGE": {"product": 1, "max": 2}, "SMALL": ("none",)}


def fold(text, **settled):
    return folded(textwrap.dedent(text).strip(), settled, TABLES.get)


def function(body, signature="f(self, mode, conv, x)"):
    return f"def {signature}:\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ")


THREE = "if {}:\n    x = 1\nelif {}:\n    x = 2\nelse:\n    x = 3\nreturn x"
TWO = "if {}:\n    x = {}\nelse:\n    x = {}\nreturn x"
BRANCHES = [
    ("if mode == 'a':\n    x += 1\nreturn x", "x += 1\nreturn x"),
    ("if mode != 'a':\n    x += 1\nreturn x", "return x"),
    (TWO.format("mode == 'b'", 1, 2), "x = 2\nreturn x"),
    (THREE.format("mode == 'b'", "x"), TWO.format("x", 2, 3)),
    (THREE.format("x", "mode == 'a'"), TWO.format("x", 1, 2)),
    (THREE.format("x", "mode == 'b'"), TWO.format("x", 1, 3)),
    (THREE.format("x", "mode == 'b'").replace("else", "elif y"), TWO.format("x", 1, 3).replace("else", "elif y")),
    ("if x:\n    x = 1\nelif mode == 'b':\n    x = 2\nreturn x", "if x:\n    x = 1\nreturn x"),
    ("if mode == 'b':\n    return 1", "pass"),
    ("if mode == 'a':\n    # why\n    return 1\nx = 2\nreturn x", "# why\nreturn 1"),
    ("if mode in LARGE:\n    return 1\nreturn x", "return x"),
    ("if mode not in LARGE:\n    return 1\nreturn x", "return 1"),
    ("if mode in ELSEWHERE:\n    return 1\nreturn x", None),
    ("if mode not in LARGE:\n    raise ValueError(mode)\nreturn x", None),
    ("if mode == 'b' and x:\n    return 1\nreturn x", "return x"),
    ("if mode == 'a' and x:\n    return 1\nreturn x", "if x:\n    return 1\nreturn x"),
    ("if mode == 'b' or x:\n    return 1\nreturn x", "if x:\n    return 1\nreturn x"),
    ("if x and mode == 'a':\n    return 1\nreturn x", "if x:\n    return 1\nreturn x"),
    ("return x and mode == 'a'", "return x and True"),
    ("if not (mode == 'b'):\n    return 1\nreturn x", "return 1"),
    ("return (x + 1 if mode == 'a' else x) * 2", "return (x + 1) * 2"),
    ("return (x if mode == 'a' else x + 1) * 2", "return x * 2"),
    ("return g(x if mode == 'a' else 0)", "return g(x)"),
    ("return [1] * int(mode != 'b')", "return [1] * 1"),
    ("return mode == 'a' and mode != 'b'", "return True"),
    ("if conv is None:\n    return 1\nreturn x", "return 1"),
    ("return 1 if conv else 2", "return 2"),
    ("return 1 if self.conv and x else 2", "return 2"),
    ("if mode is None:\n    return 1\nreturn x", None),
    ("return 1 if mode else 2", None),
    ("if mode == 1:\n    return 1\nreturn x", None),
    ("if x == 'a':\n    return 1\nreturn x", None),
    ("y = g(x)\nif mode == 'b':\n    x = y\nreturn x", "return x"),
    ("y = g(x)\nreturn x if mode == 'a' else 1", "y = g(x)\nreturn x"),
    ("if mode == 'a':\n    return 'é' if x else (mode == 'a')\nreturn 1", "return 'é' if x else True"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), BRANCHES, ids=[before[:40] for before, _ in BRANCHES])
def test_branches(before, after):
    assert fold(function(before), mode={"a"}, conv={None}) == function(before if after is None else after)


def test_several_values_decide_what_they_agree_on():
    text = function(
        "if mode == 'b':\n    return 1\nif mode == 'c':\n    return 2\nif mode in SMALL:\n    return 3\nreturn 4"
    )
    assert fold(text, mode={"a", "b"}) == function("if mode == 'b':\n    return 1\nreturn 4")
    assert fold(text, mode={"none", "b"}) == text.replace("    if mode == 'c':\n        return 2\n", "")


def test_a_private_method_that_returns_a_constant_counts_as_it():
    text = """
    class A:
        def _has(self, x):
            \"\"\"Whether.\"\"\"
            return self.mode != "b"

        def f(self, x):
            return x if self._has(x) else 0
    """
    expected = """
    class A:
        def _has(self, x):
            \"\"\"Whether.\"\"\"
            return True

        def f(self, x):
            return x
    """
    assert fold(text, mode={"a"}) == textwrap.dedent(expected).strip()


def test_a_value_is_lost_in_the_function_alone_where_nothing_reads_it():
    text = """
    class A:
        def f(self, x):
            y = x + 1
            return x if self.mode == "a" else y

        def g(self, x):
            y = x + 1
            return y
    """
    assert fold(text, mode={"a"}) == textwrap.dedent(text).strip().replace("        y = x + 1\n", "", 1).replace(
        ' if self.mode == "a" else y', ""
    )


def test_what_names_no_settled_variable_stays_to_the_letter():
    text = "def f(x):  # a remark\n    if  x==1 :\n        return   2"
    assert fold(text, mode={"a"}) == text


def test_names_are_changed_where_they_are_names():
    text = (
        'def _help(x, y=_help):\n    """_help"""\n    return _help(x.other) + f"{_help(1)!r} _help" + z._help  # _help'
    )
    assert renamed(text, {"_help": "_aid"}) == (
        'def _aid(x, y=_aid):\n    """_help"""\n    return _aid(x.other) + f"{_aid(1)!r} _help" + z._help  # _help'
    )
    assert renamed("class A(B):\n    c = B()", {"A": "D", "B": "E"}) == "class D(E):\n    c = E()"


def test_methods_and_decorators_go():
    text = """
    @keep
    @register_it("a",
        "b")
    class A:
        x = 1

        # about f
        @property
        def f(self):
            return 1

        def g(self):
            return 2
    """
    text = textwrap.dedent(text).strip()
    shorter = without_methods(text, {"f"})
    assert "about f" not in shorter
    assert "property" not in shorter
    assert shorter.endswith("x = 1\n\n    def g(self):\n        return 2")
    assert without_methods("def f():\n    pass", {"f"}) == "def f():\n    pass"
    assert without_methods("class A:\n    def f(self):\n        return 1", {"f"}) == "class A:\n    pass"
    plain = without_decorators(text, lambda node: "register" in ast.unparse(node))
    assert plain.startswith("@keep\nclass A:")

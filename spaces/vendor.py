"""Collect the source of classes and functions, and of all of ours that they use, into one text that needs torch alone.

Names are resolved in the module where they stand, from definition to definition, so that what is printed is what is
used; tables of parts are cut down to the parts that are kept.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from normact.spaces.definitions import Module, is_library, is_text, names_in, read_module
from normact.spaces.errors import InputError
from normact.spaces.folding import Settled, folded, renamed, without_decorators, without_methods

Key = tuple[str, str]
"""A module's name, and the name of a definition in it."""

REGISTERS = "register_"
"""Decorators whose names begin so put a part into a table of ours; a file of its own has none."""

USUAL = {
    "Any": "from typing import Any",
    "Callable": "from collections.abc import Callable",
    "Mapping": "from collections.abc import Mapping",
    "Sequence": "from collections.abc import Sequence",
    "Tensor": "from torch import Tensor",
    "nn": "from torch import nn",
    "torch": "import torch",
}
"""Imports that a caller's own text may use."""

STANDING_FOR: dict[Key, str] = {
    (InputError.__module__, InputError.__name__): '''class InputError(ValueError):
    """An argument is wrong: which, the values involved, and what to do."""
'''
}
"""Source for what reads otherwise in a file of its own."""

LONGEST = 120
"""Columns of a line, as in the sources."""


def vendored(
    objects: Sequence[object],
    keep: Mapping[str, Collection[str]] | None = None,
    settled: Settled | None = None,
    replace: Mapping[object, str] | None = None,
    without: Collection[str] = (),
    text: str = "",
) -> str:
    """Imports, and the definitions of the objects and of all of ours that they use, in an order in which they run.

    Docstrings, comments and names stay; of two definitions of one name, the second gets its module's name too.
    Registering decorators go, and methods that begin with `_` and are not called.

    Args:
        objects: classes and functions of ours, or of a person's own modules: of any that are not installed.
        keep: of a table in some module (a dict, tuple or frozenset), by its name: the entries that are kept. What
            another entry needs is then not printed.
        settled: names whose values are known, see `folding`: branches that they never take are not printed.
        replace: for a class or function, the source of a module (imports and definitions) whose definition of that
            name stands for it.
        without: methods that are left out of every class.
        text: printed at the end, such as a function that makes a layer; names in it are the objects', or `USUAL`.

    Returns:
        Python source that begins with its imports.

    Raises:
        InputError: an object has no source, or needs a library other than torch; an entry to keep is not there; or
            the text defines a name that has another meaning.
    """
    standing = STANDING_FOR | {_key(obj): source for obj, source in (replace or {}).items()}
    collector = _Collector(keep or {}, settled or {}, standing, without)
    wanted = [_key(obj) for obj in objects]
    return _printed(collector.collect(wanted), wanted, text)


@dataclass
class _Definition:
    """One definition: its source as it will stand in the file, and what it uses."""

    key: Key
    module: Module
    text: str
    first: set[Key] = field(default_factory=set)
    later: set[Key] = field(default_factory=set)
    imports: set[str] = field(default_factory=set)

    @property
    def uses(self) -> list[Key]:
        """What it needs, in the order in which the names are met in it."""
        words = re.findall(r"\w+", self.text)
        place = {word: position for position, word in reversed(list(enumerate(words)))}
        return sorted(self.first | self.later, key=lambda key: (place.get(key[1], len(words)), key))


class _Collector:
    def __init__(
        self,
        keep: Mapping[str, Collection[str]],
        settled: Settled,
        standing: Mapping[Key, str],
        without: Collection[str],
    ) -> None:
        self.keep = keep
        self.settled = settled
        self.standing = standing
        self.without = without
        self.modules: dict[str, Module] = {}
        self.found: dict[Key, _Definition] = {}

    def collect(self, wanted: Sequence[Key]) -> list[_Definition]:
        """All definitions that are needed, each behind what it needs to be defined."""
        self._visit(wanted)
        while dropped := self._drop_methods():
            self._visit(dropped)
        used = _reached(self.found, wanted)
        return _ordered({key: definition for key, definition in self.found.items() if key in used}, wanted)

    def _visit(self, keys: Sequence[Key]) -> None:
        waiting = list(keys)
        while waiting:
            key = waiting.pop()
            if key not in self.found:
                self.found[key] = self._definition(key)
                waiting += [*self.found[key].first, *self.found[key].later]

    def _module(self, key: Key) -> Module:
        """Where a definition's source stands: its module, or a text that stands for it."""
        if key not in self.standing:
            return self.modules.get(key[0]) or read_module(key[0])
        module = Module(f"{key[0]}:{key[1]}", read_module(key[0]).live, self.standing[key])
        if key[1] not in module.places:
            raise InputError(f"the source that stands for {key[1]} defines {', '.join(module.places)} instead")
        return self.modules.setdefault(module.name, module)

    def _definition(self, key: Key) -> _Definition:
        module = self._module(key)
        if key[1] in self.keep:
            return self._table(key, module)
        words = set(re.findall(r"\w+", module.source(key[1])))
        settled = tuple((name, frozenset(values)) for name, values in self.settled.items() if name in words)
        definition = _Definition(key, module, _shortened(module, key[1], settled, tuple(self.without)))
        self._resolve(definition)
        return definition

    def _table(self, key: Key, module: Module) -> _Definition:
        """A table with the entries that are kept; those that were registered are named."""
        statement = module.statement(key[1])
        live, kept = _table_of(module, key[1]), self.keep[key[1]]
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or live is None:
            raise InputError(f"{key[1]} is no table, so there is nothing to keep of it: drop it from keep")
        if missing := sorted(name for name in kept if name not in live):
            raise InputError(f"cannot keep {', '.join(missing)} of {key[1]}: it has {', '.join(map(str, live))}")
        definition = _Definition(key, module, "")
        names = [name for name in (live if not isinstance(live, frozenset) else sorted(map(str, live))) if name in kept]
        source = module.source(key[1])
        head = source.split("=", 1)[0] + "= "
        if isinstance(live, dict):
            entries = [f'"{name}": {self._entry(definition, statement, live, str(name))}' for name in names]
            value = _dict(entries, LONGEST - len(head))
        else:
            value = _plain(names, isinstance(live, tuple))
        definition.text = f"{head}{value}{_docstring_below(source)}"
        self._resolve(definition)
        return definition

    def _entry(
        self, definition: _Definition, table: ast.Assign | ast.AnnAssign, live: Mapping[object, object], name: str
    ) -> str:
        """The source of a table's entry, or, where it was registered, the name of what was."""
        literal = table.value
        for key, value in zip(literal.keys, literal.values, strict=True) if isinstance(literal, ast.Dict) else ():
            if isinstance(key, ast.Constant) and key.value == name:
                return ast.get_source_segment(definition.module.text, value) or ""
        found = _key(live[name])
        definition.first.add(found)
        return found[1]

    def _resolve(self, definition: _Definition) -> None:
        """Find where the names in a definition come from."""
        registered = {name for _, name in definition.first}
        at_once, later = names_in(definition.text)
        for names, keys in ((at_once, definition.first), (later, definition.later)):
            for name in sorted(names - registered):
                found = self._origin(definition.module, name)
                if isinstance(found, str):
                    definition.imports.add(found)
                elif found is not None and found != definition.key:
                    keys.add(found)

    def _origin(self, module: Module, name: str) -> Key | str | None:
        """The definition of ours behind a name, or the import that brings it; None for a builtin."""
        if name in module.places:
            own, _, part = module.name.partition(":")
            return (own, name) if name == part else (module.name, module.first_name[name])
        if name not in module.imports:
            return None
        imported = module.imports[name]
        top = imported.module.split(".")[0]
        if not is_library(top):
            found = self._origin(read_module(imported.module), name) if imported.name == name else None
            if found is None:
                raise InputError(f"cannot export {module.name}: {imported.statement!r} names no definition of its own")
            return found
        if top != "torch" and top not in sys.stdlib_module_names:
            raise InputError(f"cannot export {module.name}: it needs {top}, and a file may need torch alone")
        return imported.statement

    def _drop_methods(self) -> list[Key]:
        """Take out private methods that nothing calls any more, and see what the classes use then."""
        text = "\n".join(definition.text for definition in self.found.values())
        called = set(re.findall(r"\.(_[a-z]\w*)", text))
        changed = []
        for key, definition in self.found.items():
            if unused := _private_methods(definition.text) - called:
                definition.text = without_methods(definition.text, unused)
                definition.first, definition.later, definition.imports = set(), set(), set()
                self._resolve(definition)
                changed.append(key)
        return changed


@lru_cache(maxsize=1024)
def _shortened(
    module: Module, name: str, settled: tuple[tuple[str, frozenset[object]], ...], without: tuple[str, ...]
) -> str:
    """The source of a definition without what a file does not need."""
    text = without_decorators(module.source(name), _registers)
    if not isinstance(module.statement(name), ast.ClassDef | ast.FunctionDef):
        return text
    return folded(without_methods(text, without), dict(settled), lambda table: _table_of(module, table))


def _reached(found: Mapping[Key, _Definition], wanted: Sequence[Key]) -> set[Key]:
    """What is still used."""
    used: set[Key] = set()
    waiting = list(wanted)
    while waiting:
        if (key := waiting.pop()) not in used:
            used.add(key)
            waiting += [*found[key].first, *found[key].later]
    return used


def _ordered(found: Mapping[Key, _Definition], wanted: Sequence[Key]) -> list[_Definition]:
    """What is used before what uses it, as far as that goes; always so for what is needed to be defined."""
    placed: dict[Key, _Definition] = {}
    seen: set[Key] = set()

    def place(key: Key) -> None:
        if key not in placed:
            for needed in sorted(found[key].first):
                place(needed)
            placed[key] = found[key]

    def visit(key: Key) -> None:
        if key not in seen:
            seen.add(key)
            for used in found[key].uses:
                visit(used)
            place(key)

    for key in wanted:
        visit(key)
    return list(placed.values())


def _printed(definitions: Sequence[_Definition], wanted: Sequence[Key], text: str) -> str:
    imports = {"from __future__ import annotations"}.union(*(definition.imports for definition in definitions))
    if text:
        at_once, later = names_in(text)
        own = {name for _, name in wanted}
        imports |= {USUAL[name] for name in (at_once | later) - own if name in USUAL}
    names = _distinct(definitions, wanted)
    _check_free(text, {*names.values(), *(statement.split()[-1] for statement in imports), *dir(builtins)})
    modules = {re.split(r"[.:]", module)[-1] for module, _ in names}
    parts = []
    for definition in definitions:
        used = {key[1]: names[key] for key in (definition.key, *definition.first, *definition.later)}
        changes = {old: new for old, new in used.items() if old != new}
        source = renamed(definition.text, changes) if changes else definition.text
        parts.append(re.sub(r"`(\w+)\.(\w+)`", lambda m: f"`{m[2]}`" if m[1] in modules else m[0], source))
    parts += [text.strip()] if text else []
    gaps = [_gap(before, after) for before, after in zip(["", *parts], parts, strict=False)]
    return _imports(imports) + "".join(gap + part for gap, part in zip(gaps, parts, strict=True)) + "\n"


def _check_free(text: str, taken: Collection[str]) -> None:
    for statement in ast.parse(text).body:
        name = getattr(statement, "name", "")
        if name in taken:
            raise InputError(f"a layer cannot be called {name!r}: the name has a meaning in Python or in the file")


def _gap(before: str, after: str) -> str:
    """One blank line between values, two around classes and functions."""
    lines = [line for part in (before, after) for line in part.split("\n")]
    return "\n\n\n" if any(line.startswith(("class ", "def ", "@")) for line in lines) else "\n\n"


def _distinct(definitions: Sequence[_Definition], wanted: Collection[Key]) -> dict[Key, str]:
    """A name for each definition: its own, or, where another has that already, with its module's name."""
    names: dict[Key, str] = {}
    for definition in sorted(definitions, key=lambda definition: definition.key not in wanted):
        module, name = definition.key
        if name in names.values():
            name = f"{name}_{re.split('[.:]', module)[-1]}"
        if name in names.values():
            raise InputError(f"two definitions in an exported file would be called {name!r}; rename one")
        names[definition.key] = name
    return names


def _imports(statements: Collection[str]) -> str:
    """Import statements, sorted: the standard library, then torch; whole modules first."""
    members: dict[str, list[str]] = {}
    lines = []
    for statement in sorted(statements):
        head, _, names = statement.partition(" import ")
        if names:
            members.setdefault(head.removeprefix("from "), []).append(names)
        else:
            lines.append(statement)
    lines += [_from(module, members[module]) for module in sorted(members)]
    groups: list[list[str]] = [[], [], []]
    for line in lines:
        top = line.split()[1].split(".")[0]
        groups[0 if top == "__future__" else 1 if top in sys.stdlib_module_names else 2].append(line)
    return "\n\n".join("\n".join(group) for group in groups if group)


def _from(module: str, names: list[str]) -> str:
    """Constants, then classes, then the rest, as import sorters like it."""
    line = f"from {module} import {', '.join(sorted(names, key=_rank))}"
    return line if len(line) <= LONGEST else f"from {module} import (\n    " + ",\n    ".join(names) + ",\n)"


def _rank(name: str) -> tuple[int, str]:
    constant = name.isupper() and len(name) > 1
    return (0 if constant else 1 if name[0].isupper() else 2, name)


def _registers(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Name) and decorator.id.startswith(REGISTERS)


@lru_cache(maxsize=1024)
def _private_methods(text: str) -> frozenset[str]:
    definition = ast.parse(text).body[0]
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    methods = {statement.name for statement in body if isinstance(statement, ast.FunctionDef)}
    return frozenset(name for name in methods if name.startswith("_") and not name.startswith("__"))


def _key(obj: object) -> Key:
    module, name = getattr(obj, "__module__", ""), getattr(obj, "__qualname__", "")
    if not module or name not in read_module(module).places:
        raise InputError(f"cannot export {obj!r}: it is no class or function at the top of a module")
    return module, name


def _table_of(module: Module, name: str) -> Mapping[object, object] | tuple[object, ...] | frozenset[object] | None:
    value = getattr(module.live, name, None)
    return value if isinstance(value, dict | tuple | frozenset) else None


def _dict(entries: Sequence[str], width: int) -> str:
    """A literal on one line for one entry that fits, else an entry a line."""
    line = "{" + "".join(entries) + "}"
    if len(entries) <= 1 and len(line) <= width:
        return line
    return "{\n" + "".join(f"    {entry},\n" for entry in entries) + "}"


def _plain(names: Sequence[object], as_tuple: bool) -> str:
    inner = ", ".join(f'"{name}"' for name in names)
    if as_tuple:
        return f"({inner}{',' if len(names) == 1 else ''})"
    return f"frozenset({{{inner}}})" if names else "frozenset()"


def _docstring_below(source: str) -> str:
    """The docstring below a value, with the line break before it."""
    body = ast.parse(source).body
    lines = source.split("\n")
    return "".join(f"\n{line}" for line in lines[body[1].lineno - 1 :]) if len(body) > 1 and is_text(body[1]) else ""

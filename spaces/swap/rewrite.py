"""Change single calls in the forward of a module, and nothing else of it.

A module that is called in several places can stand for different things there (torchvision's residual blocks use one
ReLU behind norms and behind the addition), and a function can be no module's place at all. Then the module whose
forward makes the call gets a class derived from its own, with the forward written out call by call. It stays an
instance of its class, with its parameters, buffers, children and hooks, and can be copied and pickled.
"""

from __future__ import annotations

import copyreg
import importlib
import inspect
import itertools
import linecache
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, cast

import torch
from torch import fx, nn

from normact.spaces.swap.calls import SIMPLE, Frame, is_leaf, module_kind
from normact.spaces.swap.kinds import acts_in_place
from normact.spaces.swap.trace import node_kind

Edits = dict[int, str]
"""For the n-th activation that a forward calls: the child to call in its place, or "" for nothing."""

Named = tuple[tuple[str, object], ...]


class CannotRewriteError(Exception):
    """Why a forward cannot be rewritten."""


def rewritten_class(owner: nn.Module, edits: dict[bool, Edits], frames: list[Frame]) -> type[nn.Module]:
    """The class with a forward in which the activations are edited.

    Args:
        owner: whose class and forward it is; left as it is.
        edits: by mode, True for training; a mode that is missing has those of the other.
        frames: the calls of the owner that were seen.

    Raises:
        CannotRewriteError: its forward cannot be traced by itself.
    """
    if isinstance(owner, torch.jit.ScriptModule | fx.GraphModule):
        kind = "GraphModule" if isinstance(owner, fx.GraphModule) else "ScriptModule"
        raise CannotRewriteError(f"a {kind} cannot be rewritten")
    if "forward" in vars(owner):
        raise CannotRewriteError("its forward was set on the instance")
    base: Any = getattr(type(owner), "_rewritten_from", type(owner))  # rewritten twice: the whole text is in the last
    fixed = _fixed(owner, frames)
    sources = {}
    for training in (False, True):
        sources[training] = _source(owner, edits.get(training, edits[next(iter(edits))]), fixed, training)
    if sources[True] == sources[False]:
        text, names = sources[True]
        return _derived(base, text, names)
    text = "\n".join(
        [_renamed(sources[True][0], "_forward_in_training"), _renamed(sources[False][0], "_forward_in_eval"), _EITHER]
    )
    return _derived(base, text, (*sources[True][1], *sources[False][1]))


_EITHER = '''
def forward(self, *args, **kwargs):
    """The forward of the mode."""
    return (self._forward_in_training if self.training else self._forward_in_eval)(*args, **kwargs)
'''


def _fixed(owner: nn.Module, frames: list[Frame]) -> dict[str, object]:
    """Arguments that never were given something else than their simple default: traced with that."""
    fixed: dict[str, object] = {}
    for p in inspect.signature(owner.forward).parameters.values():
        given = [frame.passed[p.name] for frame in frames if p.name in frame.passed]
        if any(value is not ... and value != p.default for value in given):
            raise CannotRewriteError(f"its forward is given {p.name}={given[0]!r}")
        if p.default is p.empty or (given and all(value is ... for value in given)):
            continue
        if given and any(value is ... for value in given):
            raise CannotRewriteError(f"its forward is called with and without {p.name}")
        if not isinstance(p.default, SIMPLE):
            raise CannotRewriteError(f"its argument {p.name} has a default that cannot be traced")
        fixed[p.name] = p.default
    return fixed


class _Tracer(fx.Tracer):
    """Looks into no child."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _source(owner: nn.Module, edits: Edits, fixed: dict[str, object], training: bool) -> tuple[str, Named]:
    """The edited forward in one mode: its text, and the names that the text needs."""
    before = owner.training
    owner.training = training
    try:
        graph = _Tracer().trace(owner, concrete_args=fixed)
    except Exception as problem:
        raise CannotRewriteError(f"its forward cannot be traced ({first_line(problem)})") from None
    finally:
        owner.training = before
    given = {f"{name}_1": name for name in fixed}  # so fx calls an argument whose value it was given
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            raise CannotRewriteError("its forward makes tensors of its own")
        if node.op == "placeholder":
            node.target = given.get(str(node.target), node.target)
    _edit(graph, owner, dict(edits))
    code = graph.python_code("self")
    lines = [line.rstrip() for line in code.src.strip().splitlines()]
    names = tuple((name, value) for name, value in code.globals.items() if name in code.src)
    return "\n".join(lines) + "\n", names


def _edit(graph: fx.Graph, owner: nn.Module, edits: Edits) -> None:
    ordinal = -1
    for node in list(graph.nodes):
        if not _is_activation(node, owner):
            continue
        ordinal += 1
        if ordinal not in edits:
            continue
        child, x = edits.pop(ordinal), node.all_input_nodes[0]
        gate = _product(node, x)
        replaced = gate if gate is not None else node
        if child:
            with graph.inserting_before(node):
                new = graph.call_module(child, (x,))
            if _in_place(node, owner):
                _redirect(node, x, new)
        else:
            new = x
        replaced.replace_all_uses_with(new)
        for old in dict.fromkeys((replaced, node)):
            graph.erase_node(old)
    if edits:
        raise CannotRewriteError("its forward takes another way when it is traced by itself")


def _in_place(node: fx.Node, owner: nn.Module) -> bool:
    if node.op == "call_module":
        return getattr(owner.get_submodule(str(node.target)), "inplace", False) is True
    return acts_in_place(getattr(node.target, "__name__", str(node.target)), node.kwargs)


def _redirect(node: fx.Node, x: fx.Node, new: fx.Node) -> None:
    """What reads x after an activation in place reads what takes the activation's place."""
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    for user in list(x.users):
        if order[user] > order[node]:
            user.replace_input_with(x, new)


def _product(node: fx.Node, x: fx.Node) -> fx.Node | None:
    """The product of x * sigmoid(x)."""
    users = list(node.users)
    if len(users) == 1 and node_kind(users[0]) == "mul" and set(users[0].all_input_nodes) == {x, node}:
        return users[0]
    return None


def _is_activation(node: fx.Node, owner: nn.Module) -> bool:
    if node.op == "call_module":
        module = owner.get_submodule(str(node.target))
        return is_leaf(module) and module_kind(module) == "act"
    return node.op in ("call_function", "call_method") and node_kind(node) == "act"


def _renamed(text: str, name: str) -> str:
    return text.replace("def forward(", f"def {name}(", 1)


def first_line(problem: BaseException) -> str:
    """The first line of an exception's message."""
    return (str(problem).splitlines() or [type(problem).__name__])[0][:200]


_number = itertools.count()


@cache
def _derived(base: Any, text: str, names: Named) -> type[nn.Module]:
    """The class derived from `base` with the functions of a text. Equal ones are one: the compiler compiles it once."""
    filename = f"<forward of {base.__name__}, rewritten, {next(_number)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    space: dict[str, Any] = dict(names)
    known = set(space)
    exec(compile(text, filename, "exec"), space)
    functions = {name: f for name, f in space.items() if name not in known and name != "__builtins__"}
    recipe = (base, text, tuple((name, _Named(value)) for name, value in names))

    def reduce(self: nn.Module, protocol: Any) -> Any:
        make, arguments, *rest = super(derived, self).__reduce_ex__(protocol)
        if make is copyreg.__newobj__ and arguments[0] is derived:  # type: ignore[attr-defined]
            return (_again, recipe, *rest)
        return (make, arguments, *rest)

    same = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    derived: Any = type(base.__name__, (base,), {**same, **functions, "__reduce_ex__": reduce, "_rewritten_from": base})
    return cast(type[nn.Module], derived)


def _again(base: type[nn.Module], text: str, names: tuple[tuple[str, _Named], ...]) -> nn.Module:
    """An empty instance, for pickle and copy."""
    cls = _derived(cast(Any, base), text, tuple((name, value.value) for name, value in names))
    return cls.__new__(cls)


class _Named:
    """A value that pickles: a module by its name."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Named:
        return self

    def __reduce__(self) -> tuple[Callable[..., _Named], tuple[object, ...]]:
        if isinstance(self.value, ModuleType):
            return _imported, (self.value.__name__,)
        return _Named, (self.value,)


def _imported(name: str) -> _Named:
    return _Named(importlib.import_module(name))

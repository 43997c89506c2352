"""What is checked of an exported layer: that it computes what was searched, and where it can be used."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError, gradcheck

from normact.launch.exports.programs import ONNX, missing, onnx_of, program_of
from normact.spaces.fingerprint import probe_batch
from normact.spaces.site import Site

ROUNDING = 10
"""Two computations in float32 may differ by this many times what float32 itself is off by there."""

NOISE = 1000
"""Differences are relative to a tensor's size, but to no less than this many times what float32 is off by in it: the
gradient of |x| / x is rounding alone, and not told from 0."""

LARGEST_HALF = 65000.0
"""Above it float16 may be infinite: it ends at 65,504."""

STEPS = (1e-6, 1e-7, 1e-8)
"""Of finite differences. A layer that bends within one step may be smooth within a smaller one; a wrong gradient
agrees at none."""


class Check(NamedTuple):
    """One check: `passed` is None where it could not run; `detail` is one line; a larger `figure` is a worse one."""

    name: str
    passed: bool | None
    detail: str
    figure: float = 0.0


class Found(NamedTuple):
    """What a check that was passed has to say."""

    detail: str
    figure: float = 0.0


class CannotRun(Exception):
    """A check that needs what is not there."""


class Subject(NamedTuple):
    """A layer at one place.

    Args:
        site: the place.
        make: a new module of the exported file, in float32, with moved parameters.
        searched: the searched layer in the same state.
    """

    site: Site
    make: Callable[[], nn.Module]
    searched: Callable[[], nn.Module]

    @property
    def x(self) -> Tensor:
        """A batch, in float64."""
        return probe_batch(self.site, 0)[0]


def run_checks(subject: Subject) -> list[Check]:
    """All checks of a layer, none of which stops the others."""
    return [_run(name, check, subject) for name, check in CHECKS.items()]


def _run(name: str, check: Callable[[Subject], Found], subject: Subject) -> Check:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about its own parts
            return Check(name, True, *check(subject))
    except CannotRun as reason:
        return Check(name, None, f"not checked: {reason}")
    except Exception as problem:
        return Check(name, False, first_line(problem), math.inf)


def first_line(problem: Exception) -> str:
    """Of a message, at most 160 characters; the exception's name where there is none."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:160]


def difference(ours: nn.Module, theirs: nn.Module, site: Site, dtype: torch.dtype = torch.float64) -> float:
    """The largest difference of outputs and input gradients, relative to the root mean square of `theirs`; see `NOISE`.

    Over two training batches and one evaluation; `theirs` is computed in float64, `ours` in `dtype`.
    """
    ours, rounded, theirs = ours.to(dtype), copy.deepcopy(theirs).float(), theirs.double()
    worst = 0.0
    for training, number in ((True, 0), (True, 1), (False, 0)):
        batch = probe_batch(site, number)
        expected = _response(theirs.train(training), *batch)
        noisy = _response(rounded.train(training), *(part.float() for part in batch))
        found = _response(ours.train(training), *(part.to(dtype) for part in batch))
        for a, b, c in zip(found, expected, noisy, strict=True):
            noise = float((c - b).abs().max())
            worst = max(worst, _off(a, b, NOISE * noise if math.isfinite(noise) else 0.0))
    return worst


def _size(x: Tensor) -> float:
    """The root mean square."""
    return float(x.double().square().mean().sqrt())


def _response(module: nn.Module, x: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    return y.detach(), gradient


def _off(a: Tensor, b: Tensor, least: float = 0.0) -> float:
    """The largest difference, relative to the root mean square of b, or to `least`; infinite where it is no number."""
    if not b.numel():
        return 0.0
    off = float((a.double() - b.double()).abs().max()) / max(_size(b), least, 1e-30)
    return off if off == off else math.inf


def _close(a: Tensor, b: Tensor, tolerance: float) -> Found:
    return _within(_off(a, b), tolerance)


def _within(off: float, tolerance: float) -> Found:
    if not off <= tolerance:
        raise ArithmeticError(f"differs by {off:.2g} of its size, more than {tolerance:.2g}")
    return Found(f"within {off:.1g}", off)


def _rounding(subject: Subject, training: bool) -> float:
    """By how much float32 itself is off, in outputs of the exported layer: a lot, where it divides by differences."""
    with torch.no_grad():
        exact = subject.make().double().train(training)(subject.x)
        return _off(subject.make().train(training)(subject.x.float()), exact)


def _equal(subject: Subject) -> Found:
    return _within(difference(subject.make(), subject.searched(), subject.site), 1e-10)


def _equal_in_float32(subject: Subject) -> Found:
    rounding = difference(subject.searched(), subject.searched(), subject.site, torch.float32)
    off = difference(subject.make(), subject.searched(), subject.site, torch.float32)
    return _within(off, max(1e-5, ROUNDING * rounding))


def _gradients(subject: Subject) -> Found:
    module, x = subject.make().double().train(), subject.x
    names = [name for name, _ in module.named_parameters()]
    size = max(_size(module(x).detach()), 1e-30)

    def call(x: Tensor, *tensors: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(module, dict(zip(names, tensors, strict=True)), (x,))
        return out / size

    problem: GradcheckError | None = None
    for step in STEPS:
        try:
            gradcheck(call, (x.clone().requires_grad_(), *module.parameters()), eps=step, fast_mode=True)
            return Found("those of finite differences")
        except GradcheckError as found:
            problem = problem or found
    assert problem
    raise problem


def _autocast(dtype: torch.dtype) -> Callable[[Subject], Found]:
    def check(subject: Subject) -> Found:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        module, x = subject.make().to(device), subject.x.float().to(device)
        exact = module.eval()(x).detach()
        with torch.autocast(device, dtype):
            found = module(x).detach()
            y = module.train()(x.requires_grad_())
            y.float().sum().backward()
        if not y.isfinite().all():
            raise ArithmeticError("an output is not finite")
        return _close(found, exact, 8 * torch.finfo(dtype).eps)

    return check


def _half(subject: Subject) -> Found:
    """Finite wherever the same layer with the same numbers, computed in float32, is within float16's range."""
    x = subject.x.half()
    y = subject.make().half().train()(x.requires_grad_())
    y.float().sum().backward()
    wide = subject.make().half().float().train()(x.detach().float()).detach()
    beyond = wide.abs() >= LARGEST_HALF
    if y.dtype != torch.float16 or not y[~beyond].isfinite().all():
        raise ArithmeticError(f"the output is {y.dtype}, finite: {bool(y.isfinite().all())}")
    count = int(beyond.sum())
    return Found(f"finite, but for {count} outputs beyond float16" if count else "finite, in float16", count)


def _compiled(subject: Subject) -> Found:
    x = subject.x.float()
    with ExitStack() as stack:
        stack.callback(torch.compiler.reset)
        found = torch.compile(subject.make().train(), fullgraph=True)(x)
    return _close(found, subject.make().train()(x), max(1e-5, ROUNDING * _rounding(subject, True)))


def _batches(subject: Subject) -> list[Tensor]:
    """One example, 64, and one with twice the positions."""
    x = subject.x.float()
    more = x.repeat(1, 2, 1) if subject.site.layout == "NLC" else x.repeat(1, 1, *[2] * (x.dim() - 2))
    return [more[:1], x[:1], x[torch.arange(64) % x.shape[0]]]


def _exported(subject: Subject) -> Found:
    module, tolerance = subject.make().eval(), max(1e-5, ROUNDING * _rounding(subject, False))
    program = program_of(module, subject.x.float(), subject.site.layout).module()
    return [_close(program(batch), module(batch), tolerance) for batch in _batches(subject)][-1]


def _onnx(subject: Subject) -> Found:
    if lacking := missing([*ONNX, "onnxruntime"]):
        raise CannotRun(f"needs {', '.join(lacking)}: pip install {' '.join(lacking)}")
    import onnxruntime

    module, tolerance = subject.make().eval(), max(1e-4, ROUNDING * _rounding(subject, False))
    onnx = onnx_of(program_of(module, subject.x.float(), subject.site.layout))
    session = onnxruntime.InferenceSession(onnx.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    said = []
    for batch in _batches(subject):
        (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        said.append(_close(torch.from_numpy(found), module(batch), tolerance))
    return said[-1]


def _channels_last(subject: Subject) -> Found:
    x = subject.x.float()
    if x.dim() != 4:
        raise CannotRun(f"inputs have {x.dim()} axes")
    found = subject.make().train()(x.to(memory_format=torch.channels_last))
    return _close(found, subject.make().train()(x), max(1e-5, ROUNDING * _rounding(subject, True)))


def _copied(subject: Subject) -> Found:
    module, x = subject.make().eval(), subject.x.float()
    return _close(copy.deepcopy(module)(x), module(x), 0.0)


def _pickled(subject: Subject) -> Found:
    module, x = subject.make().eval(), subject.x.float()
    return _close(pickle.load(io.BytesIO(pickle.dumps(module)))(x), module(x), 0.0)


def _empty(subject: Subject) -> Found:
    module, x = subject.make().train(), subject.x[:0].float()
    y = module(x)
    if y.shape[0] != 0 or not all(b.isfinite().all() for b in module.buffers()):
        raise ArithmeticError("running statistics are not finite after it")
    return Found(f"shape {tuple(y.shape)}")


COMPILE, PROGRAM, ONNXRUNTIME = "torch.compile, fullgraph", "torch.export, batches 1 and 64", "ONNX in onnxruntime"
"""The costly ones."""

CHECKS: dict[str, Callable[[Subject], Found]] = {
    "as searched, float64": _equal,
    "as searched, float32": _equal_in_float32,
    "gradcheck": _gradients,
    "autocast bfloat16": _autocast(torch.bfloat16),
    "autocast float16": _autocast(torch.float16),
    "half()": _half,
    COMPILE: _compiled,
    PROGRAM: _exported,
    ONNXRUNTIME: _onnx,
    "channels_last": _channels_last,
    "deepcopy": _copied,
    "pickle": _pickled,
    "empty batch": _empty,
}
"""By the name that is printed."""


def worst(places: Mapping[str, list[Check]]) -> list[Check]:
    """Of each check its worst result over places, by name: a failure, which says where, then the largest figure."""
    return [max(_where(places, row), key=_badness) for row in range(len(next(iter(places.values()))))]


def _where(places: Mapping[str, list[Check]], row: int) -> list[Check]:
    several = len(places) > 1
    return [
        found[row]._replace(detail=f"at {place}: {found[row].detail}")
        if several and found[row].passed is False
        else found[row]
        for place, found in places.items()
    ]


def _badness(check: Check) -> tuple[int, float]:
    return {None: 0, True: 1, False: 2}[check.passed], check.figure


def table(checks: list[Check]) -> list[str]:
    """A line a check."""
    words = {True: "ok", False: "FAILED", None: "-"}
    width = max(len(check.name) for check in checks)
    return [f"  {check.name:<{width}}  {words[check.passed]:<6}  {check.detail}" for check in checks]


def failures(checks: list[Check]) -> list[str]:
    """Lines for the file: what failed."""
    return [f"FAILED at export: {check.name}: {check.detail}" for check in checks if check.passed is False]

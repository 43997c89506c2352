"""What is checked of an exported layer, beyond that it computes what was searched: where it can be used."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn

Maker = Callable[[], nn.Module]
"""A new module, in float32, with moved parameters."""


class Check(NamedTuple):
    """One check: `passed` is None where it could not run; `detail` is one line."""

    name: str
    passed: bool | None
    detail: str


class CannotRun(Exception):
    """A check that needs what is not there."""


def run_checks(make: Maker, x: Tensor) -> list[Check]:
    """All checks of a layer, none of which stops the others.

    Args:
        make: of the exported layer.
        x: a batch, in float64.
    """
    return [_run(name, check, make, x) for name, check in CHECKS.items()]


def _run(name: str, check: Callable[[Maker, Tensor], str], make: Maker, x: Tensor) -> Check:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about its own parts
            return Check(name, True, check(make, x))
    except CannotRun as reason:
        return Check(name, None, f"not checked: {reason}")
    except Exception as problem:
        return Check(name, False, (str(problem).strip().splitlines() or [type(problem).__name__])[0][:160])


def _close(a: Tensor, b: Tensor, tolerance: float) -> str:
    size = max(float(b.double().square().mean().sqrt()), 1e-30)
    off = float((a.double() - b.double()).abs().max()) / size if b.numel() else 0.0
    if not off <= tolerance:
        raise ArithmeticError(f"outputs differ by {off:.2g} of their size, more than {tolerance:g}")
    return f"within {off:.1g}"


def _gradients(make: Maker, x: Tensor) -> str:
    module = make().double().train()
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *tensors: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(module, dict(zip(names, tensors, strict=True)), (x,))
        return out

    torch.autograd.gradcheck(call, (x.clone().requires_grad_(), *module.parameters()), fast_mode=True)
    return "those of finite differences"


def _autocast(device: str, dtype: torch.dtype) -> Callable[[Maker, Tensor], str]:
    def check(make: Maker, x: Tensor) -> str:
        if device == "cuda" and not torch.cuda.is_available():
            raise CannotRun("there is no GPU")
        module, x = make().to(device), x.float().to(device)
        exact = module.eval()(x).detach()
        with torch.autocast(device, dtype):
            found = module(x).detach()
            y = module.train()(x)
            y.float().sum().backward()
        if not y.isfinite().all():
            raise ArithmeticError("an output is not finite")
        return _close(found, exact, 8 * torch.finfo(dtype).eps)

    return check


def _half(make: Maker, x: Tensor) -> str:
    module = make().half().train()
    y = module(x.half())
    y.float().sum().backward()
    if y.dtype != torch.float16 or not y.isfinite().all():
        raise ArithmeticError(f"the output is {y.dtype}, finite: {bool(y.isfinite().all())}")
    return "finite, in float16"


def _compiled(make: Maker, x: Tensor) -> str:
    x = x.float()
    with ExitStack() as stack:
        stack.callback(torch.compiler.reset)
        found = torch.compile(make().train(), fullgraph=True)(x)
    return _close(found, make().train()(x), 1e-5)


def _program(make: Maker, x: Tensor) -> tuple[nn.Module, torch.export.ExportedProgram]:
    module = make().eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = torch.cat([x, x]).float()
    return module, torch.export.export(module, (example,), dynamic_shapes=({0: batch},))


def _batches(x: Tensor) -> list[Tensor]:
    return [x[:1].float(), x[torch.arange(64) % x.shape[0]].float()]


def _exported(make: Maker, x: Tensor) -> str:
    module, program = _program(make, x)
    return [_close(program.module()(batch), module(batch), 1e-5) for batch in _batches(x)][-1]


def _onnx(make: Maker, x: Tensor) -> str:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise CannotRun(f"needs {', '.join(missing)}: pip install {' '.join(missing)}")
    import onnxruntime

    module, program = _program(make, x)
    onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None
    session = onnxruntime.InferenceSession(onnx.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    said = []
    for batch in _batches(x):
        (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        said.append(_close(torch.from_numpy(found), module(batch), 1e-4))
    return f"{said[-1]} at batch 64"


def _channels_last(make: Maker, x: Tensor) -> str:
    if x.dim() != 4:
        raise CannotRun(f"inputs have {x.dim()} axes")
    x = x.float()
    return _close(make().train()(x.to(memory_format=torch.channels_last)), make().train()(x), 1e-5)


def _copied(make: Maker, x: Tensor) -> str:
    module, x = make().eval(), x.float()
    return _close(copy.deepcopy(module)(x), module(x), 0.0)


def _pickled(make: Maker, x: Tensor) -> str:
    module, x = make().eval(), x.float()
    return _close(pickle.load(io.BytesIO(pickle.dumps(module)))(x), module(x), 0.0)


def _empty(make: Maker, x: Tensor) -> str:
    module, x = make().train(), x[:0].float()
    y = module(x)
    if y.shape[0] != 0 or not all(b.isfinite().all() for b in module.buffers()):
        raise ArithmeticError("running statistics are not finite after it")
    return f"shape {tuple(y.shape)}"


CHECKS: dict[str, Callable[[Maker, Tensor], str]] = {
    "gradcheck": _gradients,
    "autocast bfloat16": _autocast("cpu", torch.bfloat16),
    "autocast float16, GPU": _autocast("cuda", torch.float16),
    "half()": _half,
    "torch.compile, fullgraph": _compiled,
    "torch.export, batches 1 and 64": _exported,
    "ONNX against onnxruntime": _onnx,
    "channels_last": _channels_last,
    "deepcopy": _copied,
    "pickle": _pickled,
    "empty batch": _empty,
}
"""By the name that is printed."""


def table(checks: list[Check]) -> list[str]:
    """A line a check."""
    words = {True: "ok", False: "FAILED", None: "-"}
    width = max(len(check.name) for check in checks)
    return [f"  {check.name:<{width}}  {words[check.passed]:<6}  {check.detail}" for check in checks]


def failures(checks: list[Check]) -> list[str]:
    """Lines for the file's docstring: what failed."""
    return [f"FAILED at export: {check.name}: {check.detail}" for check in checks if check.passed is False]

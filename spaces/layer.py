"""`GraphLayer`: a layer graph as a module. It interprets the graph; the export prints the same as code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from normact.spaces import tape
from normact.spaces.errors import InputError
from normact.spaces.graph import LayerGraph
from normact.spaces.inputs import trainable
from normact.spaces.moments import (
    Layout,
    Moment,
    at_least_float32,
    check_layout,
    divisor_at_most,
    mean,
    mean_square,
    per_group,
    reduced_axes,
    unusable,
    var,
)
from normact.spaces.ops import OPS
from normact.spaces.tape import Frame, plan_of

RAW = {"mean": mean, "rms": mean_square, "std": var}
"""What each statistic is before the root."""


@dataclass(frozen=True)
class LayerOptions:
    """What decides a layer's function besides its graph.

    Args:
        groups: group count of group moments; falls back to the largest divisor of the channels below it.
        eps: added inside the root of `rms` and `std`.
        momentum: weight of the new value in the running statistics of batch moments.

    Raises:
        InputError: groups below 1, eps not above 0, or momentum outside (0, 1].
    """

    groups: int = 8
    eps: float = 1e-5
    momentum: float = 0.1

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise InputError(f"groups must be at least 1, got {self.groups}")
        if not self.eps > 0:
            raise InputError(f"eps must be above 0, got {self.eps}")
        if not 0 < self.momentum <= 1:
            raise InputError(f"momentum must lie in (0, 1], got {self.momentum}")


def channel_axis(layout: Layout) -> int:
    """Which axis holds the channels."""
    return 2 if layout == "NLC" else 1


def expected_ndim(layout: Layout) -> int | None:
    """The number of axes of a layout; None for NCHW, which takes one or more spatial axes."""
    return {"NCHW": None, "NLC": 3, "NC": 2}[layout]


def check_shape(x: Tensor, features: int, layout: Layout) -> None:
    """Check a tensor against what a layer was made for.

    Raises:
        InputError: another number of axes or of channels.
    """
    ndim = expected_ndim(layout)
    if (x.dim() < 3) if ndim is None else (x.dim() != ndim):
        raise InputError(f"layout {layout} needs {ndim or 'at least 3'} axes, got shape {tuple(x.shape)}")
    if x.shape[channel_axis(layout)] != features:
        got = x.shape[channel_axis(layout)]
        raise InputError(f"the layer was made for {features} channels, got {got} in shape {tuple(x.shape)}")


def running_name(moment: Moment, taken: list[str]) -> str:
    """The name of a batch moment's buffer: `running_var`, then `running_var_2`..."""
    base, number = f"running_{moment.running}", 1
    while (name := base if number == 1 else f"{base}_{number}") in taken:
        number += 1
    return name


def running_start(name: str) -> float:
    """What a buffer of that name holds at first: 0 for a mean, 1 for a mean square or a variance."""
    return 0.0 if name.startswith("running_mean") and "square" not in name else 1.0


class GraphLayer(nn.Module):
    """Apply a layer graph to a tensor: same shape and dtype out as in.

    Every node has, by meaning, the shape of the input: moments are broadcast back. Statistics are taken in
    float32 where the input is float16 or bfloat16. Batch moments use the batch's values in training and
    running ones in evaluation: `running = (1 - momentum) * running + momentum * new`, kept before the root;
    the variance kept is the unbiased one (n / (n - 1)), for n = 1 the biased one, which is 0.

    Large float32 tensors on a CPU go through `tape`, all others node by node: the same function up to rounding.

    Parameters: `weight` and `bias` where the graph has an affine, and one per trainable input, (channels,) or
    (1,). Buffers: one (channels,) per batch moment.

    Args:
        graph: what to compute; only its live nodes are run.
        features: channels.
        layout: NCHW (batch, channels, one or more spatial axes), NLC or NC.
        options: groups, eps, momentum.
        causal: refuse moments that look along the sequence or the batch.

    Raises:
        InputError: the graph has a moment that the layout or causality forbids; at call, a wrong shape.
    """

    momentum: float

    def __init__(
        self,
        graph: LayerGraph,
        features: int,
        layout: Layout = "NCHW",
        options: LayerOptions | None = None,
        causal: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options = options or LayerOptions()
        self.graph = graph.canonical
        self.features = features
        self.layout = check_layout(layout)
        self.groups = divisor_at_most(options.groups, features)
        self.eps = options.eps
        self.momentum = options.momentum
        self._axis = channel_axis(layout)
        if graph.affine:
            self.weight = nn.Parameter(torch.ones(features, device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.zeros(features, device=device, dtype=dtype))
        self._trainables = self.graph.trainables  # kept: the compiler cannot follow how they are found
        self._vector_names: list[str] = []
        for name in self._trainables:
            item = trainable(name)
            assert item is not None
            size = features if item.per_channel else 1
            value = torch.full((size,), item.init, device=device, dtype=dtype)
            self.register_parameter(item.attribute, nn.Parameter(value))
            self._vector_names.append(item.attribute)
        self._vector_names += ["weight", "bias"] if graph.affine else []
        self._running: dict[int, str] = {}
        for i, node in enumerate(self.graph.nodes):
            moment = OPS[node.op].moment
            if moment is None:
                continue
            if reason := unusable(moment.index_set, layout, causal):
                raise InputError(f"cannot build {graph}: {reason}")
            if moment.index_set == "batch":
                self._running[i] = running_name(moment, list(self._running.values()))
                self.register_buffer(self._running[i], torch.zeros(features, device=device, dtype=dtype))
        self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """Running means to 0, running mean squares and variances to 1."""
        for name in self._running.values():
            getattr(self, name).fill_(running_start(name))

    def forward(self, x: Tensor) -> Tensor:
        check_shape(x, self.features, self.layout)
        plan = plan_of(self.graph) if tape.pays(x) else None
        vectors = self._vectors()
        if plan is None or not all(tape.serves(vector) for vector in vectors):
            return self._interpreted(x, vectors, self.training, self._update)
        frame = Frame(self._axis, self.groups, self.eps, None if self.training else self._kept_along(x), self._update)
        replay = partial(self._replayed, self.training)
        return tape.run(plan, frame, replay, x, vectors)

    def _vectors(self) -> list[Tensor]:
        """The parameters, in the order in which a plan takes them."""
        return [getattr(self, name) for name in self._vector_names]

    def _replayed(self, training: bool, x: Tensor, *vectors: Tensor) -> Tensor:
        return self._interpreted(x, vectors, training, lambda node, raw, count: None)

    def _interpreted(
        self, x: Tensor, vectors: Sequence[Tensor], training: bool, keep: Callable[[int, Tensor, int], None]
    ) -> Tensor:
        values: list[Tensor] = []
        inputs = {"x": x, "zero": x.new_zeros((1,) * x.dim())}
        inputs |= {n: self._along_channels(v, x) for n, v in zip(self._trainables, vectors, strict=False)}
        running = None if training else self._kept_along(x)
        for i, (name, arguments) in enumerate(self.graph.nodes):
            args = [values[a] if isinstance(a, int) else inputs[a] for a in arguments]
            op = OPS[name]
            if op.moment is not None:
                values.append(self._moment(i, op.moment, args[0].expand(x.shape), running, keep))
            else:
                assert op.function is not None
                values.append(op.function(*args))
        y = values[-1].expand(x.shape)
        if self.graph.affine:
            y = y * self._along_channels(vectors[-2], x) + self._along_channels(vectors[-1], x)
        return y.to(x.dtype)  # some ops widen under autocast

    def _along_channels(self, vector: Tensor, x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[self._axis] = vector.numel()
        return vector.to(x.dtype).view(shape)

    def _kept_along(self, x: Tensor) -> Callable[[int], Tensor]:
        """Running statistics by node, along the channels of x or of its wider form."""
        wide = at_least_float32(x[:0])
        return lambda node: self._along_channels(getattr(self, self._running[node]), wide)

    def _moment(
        self,
        node: int,
        moment: Moment,
        value: Tensor,
        running: Callable[[int], Tensor] | None,
        keep: Callable[[int, Tensor, int], None],
    ) -> Tensor:
        x = at_least_float32(value)
        if moment.index_set == "batch" and running:
            raw = running(node)
        elif moment.index_set == "group":
            raw = per_group(x, RAW[moment.statistic], self.groups, self._axis)
        else:
            raw = RAW[moment.statistic](x, reduced_axes(moment.index_set, self._axis, x.dim()))
            if moment.index_set == "batch":
                keep(node, raw, x.numel() // self.features)
        return (raw if moment.statistic == "mean" else torch.sqrt(raw + self.eps)).to(value.dtype)

    @torch.no_grad()
    def _update(self, node: int, raw: Tensor, count: int) -> None:
        """Take a batch's moment (before its root, of `count` entries a channel) into the running one."""
        name = self._running[node]
        running = getattr(self, name)
        unbiased = count / max(count - 1, 1) if name.startswith("running_var") else 1.0
        running.lerp_((raw * unbiased).flatten().to(running.dtype), self.momentum)

    def extra_repr(self) -> str:
        return f"{self.graph}, features={self.features}, layout={self.layout}, groups={self.groups}"


class ChannelAffine(nn.Module):
    """y = weight * x + bias per channel: what stands where a norm has no activation after it.

    (EvoNorm's released code, `nonlinearity=False`: no normalization, a per-channel affine.)

    Raises:
        InputError: at call, a shape of another layout or width.
    """

    def __init__(self, features: int, layout: Layout = "NCHW") -> None:
        super().__init__()
        self.features = features
        self.layout = check_layout(layout)
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        check_shape(x, self.features, self.layout)
        shape = [1] * x.dim()
        shape[channel_axis(self.layout)] = self.features
        return x * self.weight.to(x.dtype).view(shape) + self.bias.to(x.dtype).view(shape)

"""AF-KAN layers: a few functions per input, made of one activation, reduced to one value before the mixing."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normact.spaces.errors import InputError, unknown_name
from normact.spaces.kan.basis import MOST_FUNCTIONS
from normact.spaces.kan.layer import check_memory
from normact.spaces.kan.mixing import Mixing
from normact.spaces.kan.normalizers import POST_NORMS, make_normalizer, reach_of
from normact.spaces.site import Conv

AF_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": nn.functional.softplus,
    "sigmoid": torch.sigmoid,
    "silu": nn.functional.silu,
    "relu": nn.functional.relu,
    "leaky_relu": nn.functional.leaky_relu,
    "elu": nn.functional.elu,
    "gelu": nn.functional.gelu,
    "selu": nn.functional.selu,
    "tanh": torch.tanh,
}
"""A of the functions, and of the values before the mixing."""

AF_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quad1": lambda u, v: (u * v).square(),
    "quad2": lambda u, v: u * v + u.square() + v.square(),
    "sum": lambda u, v: u + v,
    "prod": lambda u, v: u * v,
    "sum_prod": lambda u, v: u + v + u * v,
    "cubic1": lambda u, v: (u + v) * (u.square() + v.square()),
    "cubic2": lambda u, v: (u * v).pow(3),
}
"""F(u, v) of u = A(x - s) and v = A(e - x). `quad1` with ReLU is ReLU-KAN's function (arXiv 2406.02075)."""

SAMPLES = 256
"""Draws from the standard normal on which a layer's scale is set at its start."""

SMALLEST_RANGE = 1e-5
"""Of the largest value: what varies less than that is as good as constant, and rounding must not be blown up."""


class Reduction(nn.Module, ABC):
    """From N functions of each of D inputs to one value an input: (..., N, D) to (..., D).

    Args:
        functions: N.
        features: D.
        shift: whether a constant that is added to all of the result would be seen behind it.
    """

    def __init__(self, functions: int, features: int, shift: bool) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, f: Tensor) -> Tensor:
        """(..., N, D) to (..., D)."""

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""


class Mean(Reduction):
    """h_d = mean_j F_jd: what attention over one value comes to. No parameters."""

    def forward(self, f: Tensor) -> Tensor:
        return f.mean(-2)


class GlobalAttention(Reduction):
    """h_d = mean_j F_jd * D softmax_d(sum_j c_j F_jd / max(t, 1)), t at first sqrt(D).

    The published form is N / D times that; a value of order 1 / D would be lost in the epsilon of the norm behind it.
    A bias of the scores would cancel in the softmax, so there is none.
    """

    def __init__(self, functions: int, features: int, shift: bool) -> None:
        super().__init__(functions, features, shift)
        self.features = features
        self.scores = nn.Parameter(torch.empty(functions))
        self.temperature = nn.Parameter(torch.empty(()))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(len(self.scores))
        self.scores.uniform_(-bound, bound)
        self.temperature.fill_(math.sqrt(self.features))

    def forward(self, f: Tensor) -> Tensor:
        scores = torch.einsum("n,...nd->...d", self.scores.to(f.dtype), f) / self.temperature.clamp_min(1.0)
        return f.mean(-2) * (self.features * torch.softmax(scores, -1))


class SpatialAttention(Reduction):
    """h_d = sum_j F_jd softmax_j((w_j * F_j)_d + b_j) / max(t, 1)), * a convolution over the inputs in their order.

    Its kernel has 3 taps, a kernel for each function; zeros pad. t is at first sqrt(D). A single input has one tap.
    """

    def __init__(self, functions: int, features: int, shift: bool) -> None:
        super().__init__(functions, features, shift)
        self.features = features
        self.taps = min(3, 2 * features - 1)
        self.kernel = nn.Parameter(torch.empty(functions * self.taps))
        self.bias = nn.Parameter(torch.empty(functions))
        self.temperature = nn.Parameter(torch.empty(()))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.taps)
        self.kernel.uniform_(-bound, bound)
        self.bias.uniform_(-bound, bound)
        self.temperature.fill_(math.sqrt(max(self.features, 2)))  # at 1 the clamp would leave it without a gradient

    def forward(self, f: Tensor) -> Tensor:
        functions = len(self.bias)
        kernel, bias = self.kernel.view(functions, 1, self.taps).to(f.dtype), self.bias.to(f.dtype)
        rows = f.reshape(-1, functions, self.features)
        scores = nn.functional.conv1d(rows, kernel, bias, padding=self.taps // 2, groups=functions).view(f.shape)
        return (f * torch.softmax(scores / self.temperature.clamp_min(1.0), -2)).sum(-2)


class Multistep(Reduction):
    """h_d = sum_j c_j F_jd + b; no b where a norm takes it away again.

    c starts above 0, and with b = 0: else h may be negative throughout, which a ReLU behind it would not survive.
    """

    bias: nn.Parameter | None

    def __init__(self, functions: int, features: int, shift: bool) -> None:
        super().__init__(functions, features, shift)
        self.scale = nn.Parameter(torch.empty(functions))
        self.register_parameter("bias", nn.Parameter(torch.empty(())) if shift else None)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.scale.uniform_(0, 2 / len(self.scale))
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, f: Tensor) -> Tensor:
        h = torch.einsum("n,...nd->...d", self.scale.to(f.dtype), f)
        return h if self.bias is None else h + self.bias


AF_REDUCTIONS: dict[str, type[Reduction]] = {
    "global_attention": GlobalAttention,
    "spatial_attention": SpatialAttention,
    "multistep": Multistep,
}
"""How the functions of an input become one value."""


class AFKANLayer(nn.Module):
    """y = W A(post(reduce_j(F(A(x - s_j), A(e_j - x))))) + bias, with j from 1 to N = grid + order.

    (AF-KAN: Ta and Tran, arXiv 2503.06112; formulas as in the authors' code.) The ends s_j < e_j are trained, and
    shared by all inputs: s_j runs in steps of 1 / grid from -order / grid, and e_j = s_j + (order + 1) / grid. An
    input has one weight per output, whatever N is, so a layer has hardly more parameters than `nn.Linear`.

    Where this differs from the published code:

    - The functional norm takes its statistics over (D, N) of a sample, in a convolution of a position. The published
      one takes them over the whole batch, so that an example's output depends on the others, in evaluation too.
      It divides by the L2 norm first, which the min-max behind it undoes; here is the min-max alone.
    - Reduced values are of the order of the functions, whatever D and N; see `GlobalAttention`.
    - Only what the chosen reduction uses has parameters, and W is drawn so that the output has about variance 1.
    - There is a bias, as in any layer in the place of a linear one. Its values that could not be told from zero (of
      attention over the inputs; of a step before a norm) do not exist.
    - With a normalizer in front, the ends cover what it gives: [-1, 1] or [-2, 2] in the place of [0, 1].

    Over two features a layer norm leaves a sign alone: layers that narrow want another `post`. All but W has one axis,
    so that recipes do not decay it. Functions are in float32 at least, under autocast too. Channels lie last; see
    `AFKANLinear` and `AFKANConv2d`.

    Args:
        mixing: widths D and O, and a convolution's arguments.
        activation: A, see `AF_ACTIVATIONS`.
        function: F, see `AF_FUNCTIONS`.
        reduction: of N functions to one value, see `AF_REDUCTIONS`.
        functional_norm: bring the functions to [0, 1] first, by the smallest and largest of all of a sample's.
        normalizer: of the inputs.
        post: norm of the reduced values: `none`, `layer` or `batch`.
        grid: G, at least 1.
        order: k, at least 0.
        bias: of the outputs.

    Raises:
        InputError: an unknown name, a grid or order that cannot be, a functional norm of a single value, or
            parameters beyond the machine's memory.
    """

    bias: nn.Parameter | None
    fixed_starts = ("starts", "ends")

    def __init__(
        self,
        mixing: Mixing,
        activation: str = "silu",
        function: str = "quad1",
        reduction: str = "global_attention",
        functional_norm: bool = False,
        normalizer: str = "none",
        post: str = "layer",
        grid: int = 3,
        order: int = 3,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _check_names(activation, function, reduction, post)
        _check_numbers(mixing.inputs, grid, order, functional_norm)
        check_memory(1, mixing)
        self.mixing, self.activation, self.function, self.functional_norm = (
            mixing,
            activation,
            function,
            functional_norm,
        )
        self.normalizer = make_normalizer(normalizer, mixing.inputs)
        self.starts, self.ends = (nn.Parameter(x) for x in _first_ends(grid, order, normalizer))
        self.reduction = make_reduction(reduction, grid + order, mixing.inputs, shift=post == "none")
        self.post = make_normalizer(post, mixing.inputs)
        self.weight = nn.Parameter(torch.empty(mixing.weight_shape(1)))
        self.register_parameter("bias", nn.Parameter(torch.empty(mixing.outputs)) if bias else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw reduction and weight anew, so that the output has about variance 1 for standard normal inputs."""
        self.reduction.reset_parameters()
        energy = self._features(torch.randn(SAMPLES, self.mixing.inputs)).square().mean().clamp_min(1e-12)
        for module in self.modules():
            if hasattr(module, "reset_running_stats"):  # they have followed the draws
                module.reset_running_stats()  # type: ignore[operator]
        self.weight.normal_(0, float((energy * self.mixing.fan).rsqrt()))
        if self.bias is not None:
            self.bias.zero_()

    def functions(self, x: Tensor) -> Tensor:
        """(..., D) to (..., N, D): the functions of normalized inputs, functional norm and all."""
        act, x = AF_ACTIVATIONS[self.activation], x.unsqueeze(-2)
        u, v = act(x - self.starts.unsqueeze(1)), act(self.ends.unsqueeze(1) - x)
        f = AF_FUNCTIONS[self.function](u, v)
        return _min_max(f) if self.functional_norm else f

    def _features(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D): what the weight mixes, in float32 at least."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            h = self.reduction(self.functions(self.normalizer(x)))
            return AF_ACTIVATIONS[self.activation](self.post(h))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., O), in x's dtype; under autocast in its dtype."""
        if x.shape[-1] != self.mixing.inputs:
            raise InputError(f"expected {self.mixing.inputs} features in the last axis, got shape {tuple(x.shape)}")
        return self.mixing(self._features(x).to(self.weight.dtype), self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.mixing.inputs}, {self.mixing.outputs}, {self.activation}, {self.function}"


def make_reduction(name: str, functions: int, features: int, shift: bool) -> Reduction:
    """The reduction of that name; attention over a single value, whose weights could not matter, is a `Mean`."""
    over = {"global_attention": features, "spatial_attention": functions}.get(name)
    return (Mean if over == 1 else AF_REDUCTIONS[name])(functions, features, shift)


def _min_max(f: Tensor) -> Tensor:
    """(..., N, D) to [0, 1] by the smallest and largest value over (N, D)."""
    low, high = f.amin((-1, -2), keepdim=True), f.amax((-1, -2), keepdim=True)
    floor = SMALLEST_RANGE * torch.maximum(low.abs(), high.abs()).detach() + 1e-12
    return (f - low) / torch.maximum(high - low, floor)


def _first_ends(grid: int, order: int, normalizer: str) -> tuple[Tensor, Tensor]:
    """(N,) each: s and e for inputs in [0, 1], or wherever a normalizer brings them."""
    starts = (torch.arange(grid + order) - order) / grid
    ends = starts + (order + 1) / grid
    if normalizer == "none":
        return starts, ends
    reach = reach_of(normalizer)
    return (2 * starts - 1) * reach, (2 * ends - 1) * reach


def _check_names(activation: str, function: str, reduction: str, post: str) -> None:
    if activation not in AF_ACTIVATIONS:
        raise unknown_name("activation", activation, AF_ACTIVATIONS)
    if function not in AF_FUNCTIONS:
        raise unknown_name("function type", function, AF_FUNCTIONS)
    if reduction not in AF_REDUCTIONS:
        raise unknown_name("reduction", reduction, AF_REDUCTIONS)
    if post not in POST_NORMS:
        raise unknown_name("post norm", post, POST_NORMS)


def _check_numbers(features: int, grid: int, order: int, functional_norm: bool) -> None:
    if grid < 1 or order < 0 or grid + order > MOST_FUNCTIONS:
        raise InputError(
            f"AF-KAN needs grid >= 1, order >= 0 and at most {MOST_FUNCTIONS} functions, got grid={grid}, order={order}"
        )
    if functional_norm and features * (grid + order) == 1:
        raise InputError(
            "the functional norm of one function of one input is always 0: use functional_norm=False, or a larger "
            f"grid + order than {grid} + {order}"
        )


class AFKANLinear(AFKANLayer):
    """An AF-KAN layer in the place of `nn.Linear`: (..., D) to (..., O), any leading axes. See `AFKANLayer`.

    Args:
        in_features: D.
        out_features: O.
        settings: of `AFKANLayer`.
    """

    def __init__(self, in_features: int, out_features: int, **settings: Any) -> None:
        super().__init__(Mixing(in_features, out_features), **settings)


class AFKANConv2d(AFKANLayer):
    """An AF-KAN layer in the place of `nn.Conv2d`: (N, D, H, W) to (N, O, H', W').

    Functions, reduction and norms act at each position, over its channels. Zeros pad the reduced values, not the
    image. See `AFKANLayer`.

    Args:
        in_channels: D.
        out_channels: O.
        kernel_size: height and width of the kernel.
        stride: of the convolution.
        padding: of the convolution.
        groups: of channels that are mixed apart.
        settings: of `AFKANLayer`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(Mixing(in_channels, out_channels, Conv(kernel_size, stride, padding, groups)), **settings)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)

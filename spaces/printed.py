"""Parts of a printed layer that do not depend on its graph."""

from __future__ import annotations

ALONG = '''
    def _along(self, vector: Tensor, x: Tensor) -> Tensor:
        """A vector of one entry per channel, or of one, for each sample and channel of x."""
        shape, planes = [1] * x.dim(), [1] * x.dim()
        shape[self.axis] = vector.numel()
        planes[0], planes[self.axis] = x.shape[0], self.num_features
        return vector.to(x.dtype).view(shape).expand(planes)
'''.strip("\n")

RESET = '''
    @torch.no_grad()
    def reset_running_stats(self) -> None:
        """Running means to 0, running mean squares and variances to 1."""
        for name, buffer in self.named_buffers():
            is_mean = name.startswith("running_mean") and "square" not in name
            buffer.fill_(0.0 if is_mean else 1.0)
'''.strip("\n")

BATCH = '''
    def _batch(self, planes: Tensor) -> Tensor:
        """The mean over the samples, those of all ranks of a distributed run."""
        samples = over_ranks(planes.new_tensor(float(planes.shape[0]))) if distributed() else planes.shape[0]
        return (over_ranks(planes.sum(0, keepdim=True)) / samples).expand(planes.shape)
'''.strip("\n")

KEEP = '''
    @torch.no_grad()
    def _keep(self, name: str, planes: Tensor, x: Tensor) -> None:
        """Take a batch's moment into the running one: of a variance the unbiased value."""
        running = getattr(self, name)
        count = x.numel() // self.num_features
        if distributed():
            count = over_ranks(planes.new_tensor(float(count)))
            unbiased = count / (count - 1).clamp(min=1)
        else:
            unbiased = count / max(count - 1, 1)
        unbiased = unbiased if name.startswith("running_var") else 1.0
        if planes.numel():  # of an empty batch there is nothing to keep
            running.lerp_((planes[:1] * unbiased).flatten().to(running.dtype), self.momentum)
'''.strip("\n")

GROUP = '''
    def _group(self, planes: Tensor) -> Tensor:
        """The mean over each sample's groups of channels."""
        grouped = planes.unflatten(self.axis, (self.groups, -1))
        mean = grouped.mean(self.axis + 1, keepdim=True)
        return mean.expand(grouped.shape).flatten(self.axis, self.axis + 1)
'''.strip("\n")

LAYER = '''
    def _layer(self, planes: Tensor) -> Tensor:
        """The mean over each sample's channels."""
        return planes.mean(self.axis, keepdim=True).expand(planes.shape)
'''.strip("\n")

GROUPS = [
    "if group_size:",
    "    if num_features % group_size:",
    '        raise ValueError(f"group_size={group_size} does not divide {num_features} channels")',
    "    groups = num_features // group_size",
    "while num_features % groups:",
    "    groups -= 1",
    "self.groups = groups",
]

HELPERS = {
    "at_least_float32": '''
def at_least_float32(x: Tensor) -> Tensor:
    """The tensor itself, or in float32 where it is float16 or bfloat16."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
''',
    "positions": '''
def positions(x: Tensor, axis: int) -> tuple[int, ...]:
    """The axes of a plane: all but the samples and the channels."""
    return tuple(a for a in range(1, x.dim()) if a != axis)
''',
    "over_positions": '''
def over_positions(x: Tensor, axis: int) -> Tensor:
    """The sum over each plane."""
    axes = positions(x, axis)
    return x.sum(axes, keepdim=True) if axes else x.clone()
''',
    "plane_mean": '''
def plane_mean(x: Tensor, axis: int) -> Tensor:
    """The mean of each plane, that is of each sample's channels."""
    axes = positions(x, axis)
    return x.mean(axes, keepdim=True) if axes else x
''',
    "plane_square": '''
def plane_square(x: Tensor, axis: int) -> Tensor:
    """The mean square of each plane, that is of each sample's channels."""
    axes = positions(x, axis)
    if not axes or torch.is_grad_enabled():
        return x.square().mean(axes, keepdim=True) if axes else x.square()
    norm = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
    return norm.square() * (norm.numel() / x.numel())
''',
    "constant_plane": '''
def constant_plane(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The mean and the variance of each plane, where it has one value: exactly that, where a sum would be rounded."""
    for a in positions(x, axis):
        x = x.narrow(a, 0, 1)
    return x, 0 * x  # a zero that depends on x: it has a gradient, exactly 0
''',
    "plane_mean_var": '''
def plane_mean_var(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The mean and the variance (biased) of each plane, that is of each sample's channels."""
    axes = positions(x, axis)
    if not axes:
        return x, torch.zeros_like(x)
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():  # an export must take planes of any size
        if axis > 1:  # channels last: the compiler has one pass for this
            var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
            return mean, var
        # One pass, around the mean of the first positions: a sixty-fourth of them, so by Cauchy and Schwarz its square
        # distance to the mean is at most 64 variances, and the difference below loses at most two digits.
        near = x.narrow(axes[0], 0, 1 + x.shape[axes[0]] // 64).detach().mean(axes, keepdim=True)
        mean = (x - near).mean(axes, keepdim=True)
        square = (x - near).square().mean(axes, keepdim=True)
        return mean + near, (square - mean.square()).clamp(min=0)
    mean = x.mean(axes, keepdim=True)  # two passes: on a CPU torch.var_mean is several times slower
    if torch.is_grad_enabled():
        return mean, (x - mean).square().mean(axes, keepdim=True)
    count = x.numel() / mean.numel()
    return mean, torch.linalg.vector_norm(x - mean, dim=axes, keepdim=True).square() / count
''',
    "share": '''
def share(a: Tensor, b: Tensor) -> Tensor:
    """How much of max(a, b) is a's: all of it, nothing, or a half where they are equal."""
    # Comparisons into floats: those into bools, and torch.where, are several times slower on a CPU.
    found = torch.gt(a, b, out=a.new_empty(0))
    return found.add_(torch.ge(a, b, out=a.new_empty(0))).mul_(0.5)
''',
    "distributed": '''
def distributed() -> bool:
    """Whether there are several ranks to take statistics over."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return there and torch.distributed.get_world_size() > 1
''',
    "over_ranks": '''
def over_ranks(x: Tensor) -> Tensor:
    """The sum over the ranks of a distributed run; its gradient is summed over them too."""
    return OverRanks.apply(x) if distributed() else x
''',
    "OverRanks": '''
class OverRanks(torch.autograd.Function):
    """A sum over ranks, forward and back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return OverRanks.apply(grad)
''',
}
"""Functions of a file, by name."""

FUNCTION = '''
class {cls}Function(torch.autograd.Function):
    """The layer in one step for autograd. Kept are x and a few numbers per channel; the rest is computed again."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Module, <training: bool, >x: Tensor, *vectors: Tensor) -> Tensor:
        ctx.layer = layer
        [ctx.training = training]
        ctx.save_for_backward(x, *vectors)
        wide = at_least_float32(x)
        planes = tuple(p.detach().requires_grad_() for p in layer._planes(wide<, training>))
        vectors = tuple(v.detach().requires_grad_() for v in vectors)
        with torch.enable_grad():  # so few numbers that autograd can have them
            coefficients = layer._coefficients(wide, planes, <training, True, >*vectors)
        ctx.leaves, ctx.coefficients = (*planes, *vectors), coefficients
        return {name}_in_place(wide, *(c.detach() for c in coefficients)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *vectors = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            tensors = [t for t, need in zip((x, *vectors), ctx.needs_input_grad[{skip}:], strict=True) if need]
            y = ctx.layer._compute(x, <ctx.training, False, >*vectors)
            found = iter(torch.autograd.grad(y, tensors, grad, create_graph=True, allow_unused=True))
            return {nones}*(next(found) if need else None for need in ctx.needs_input_grad[{skip}:])
        wide, axis = at_least_float32(x), ctx.layer.axis
        small = [c.detach() for c in ctx.coefficients]
        d_x, *found = {name}_gradients(at_least_float32(grad), wide, *small, axis=axis)
        pairs = zip(ctx.coefficients, found, strict=True)
        pairs = [(c, d) for c, d in pairs if d is not None and c.requires_grad]
        d_leaves = [torch.zeros_like(leaf) for leaf in ctx.leaves]
        if pairs:
            of, d = zip(*pairs, strict=True)
            d_leaves = torch.autograd.grad(of, ctx.leaves, d, retain_graph=True, materialize_grads=True)
        {planes}
        return {nones}d_x.to(x.dtype), *d_vectors
'''.strip("\n")
"""`<...>` and lines in `[...]` are for layers that have batch moments."""

AGAIN = '''
class {cls}Function(torch.autograd.Function):
    """The layer in one step for autograd. Kept is x; everything is computed again on the way back."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Module, <training: bool, >x: Tensor, *vectors: Tensor) -> Tensor:
        ctx.layer = layer
        [ctx.training = training]
        ctx.save_for_backward(x, *vectors)
        return layer._compute(x, <training, True, >*vectors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *vectors = ctx.saved_tensors
        again = torch.is_grad_enabled()  # to be differentiated again
        tensors = [t for t, need in zip((x, *vectors), ctx.needs_input_grad[{skip}:], strict=True) if need]
        with torch.enable_grad():
            y = ctx.layer._compute(x, <ctx.training, False, >*vectors)
            found = iter(torch.autograd.grad(y, tensors, grad, create_graph=again, allow_unused=True))
        return {nones}*(next(found) if need else None for need in ctx.needs_input_grad[{skip}:])
'''.strip("\n")

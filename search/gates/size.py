"""`Size`: what would take too much memory or has too many parameters is never built."""

from __future__ import annotations

from normact.search.gates.base import Pass, ScreenContext, ScreenGate, Verdict
from normact.spaces.errors import InputError
from normact.spaces.space import Cost


class Size(ScreenGate):
    """The layers of all anchors together, as the space estimates them, stay within limits.

    The anchors are trained side by side, so their costs add up. What the anchors themselves take is not counted. A
    space that gives no estimate (`Space.cost`) is let pass.

    Args:
        memory_gib: of a training, in GiB (2**30 bytes); None for no limit.
        parameters: that are trained; None for no limit.

    Raises:
        InputError: a limit of 0 or less.
    """

    name = "size"

    def __init__(self, memory_gib: float | None = 2.0, parameters: int | None = None) -> None:
        for name, limit in (("memory_gib", memory_gib), ("parameters", parameters)):
            if limit is not None and not limit > 0:
                raise InputError(f"the size gate needs {name} above 0, or null for no limit, got {name}={limit}")
        self.memory_gib = memory_gib
        self.parameters = parameters

    def check(self, ctx: ScreenContext) -> Verdict:
        cost = _cost(ctx)
        if cost is None:
            return Pass()
        gib = cost.bytes / 2**30
        figures = {"parameters": float(cost.parameters), "memory_gib": gib}
        if self.memory_gib is not None and gib > self.memory_gib:
            return self.rejection(
                f"training needs about {gib:.3g} GiB at the recipe's batch size, above memory_gib={self.memory_gib:g}",
                **figures,
            )
        if self.parameters is not None and cost.parameters > self.parameters:
            return self.rejection(f"{cost.parameters} parameters, above parameters={self.parameters}", **figures)
        return Pass(figures)


def _cost(ctx: ScreenContext) -> Cost | None:
    """The sum over all sites; None where one is unknown."""
    task = ctx.task
    if task is None:
        return None
    parameters = memory = 0
    for name, bare in task.sites.items():
        if ctx.space.cost(ctx.candidate, bare[0], task.recipe.batch_size) is None:
            return None  # before an example goes through the anchor
        for site in task.sites_on_data[name]:
            cost = ctx.space.cost(ctx.candidate, site, task.recipe.batch_size)
            if cost is None:
                return None
            parameters, memory = parameters + cost.parameters, memory + cost.bytes
    return Cost(parameters, memory)

"""`Task`: data, anchors and recipe, each replaceable alone; what is measured on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import nn

from normact.search.anchors.base import Anchor, outputs_on, sites_of, sites_on
from normact.search.data.base import Data, Split, Splits
from normact.search.measures import RMSE, Accuracy, Measure, Measured, TrainingLoss, ValidationLoss
from normact.search.objective import Objective
from normact.search.training import (
    STATISTICS_BATCHES,
    Recipe,
    Training,
    drawing_from,
    outputs_of,
    restimate_statistics,
    running_kept,
)
from normact.spaces.errors import InputError, unknown_name
from normact.spaces.site import Site
from normact.spaces.space import Space

__all__ = ["RMSE", "Accuracy", "Measure", "Task", "TrainingLoss", "ValidationLoss"]
# Configs of earlier runs name the measures here.


class Task:
    """What candidates are judged on.

    Args:
        data: examples.
        anchors: networks by name.
        recipe: how they are trained.
        measures: what is measured; the first one's objective leads the search and the gates.
        device: torch device of training.

    Raises:
        InputError: no anchor, no measure, a first one that is none of quality, or a measure that the data cannot give.
    """

    def __init__(
        self,
        data: Data,
        anchors: Mapping[str, Anchor],
        recipe: Recipe,
        measures: Sequence[Measure],
        device: str = "cpu",
    ) -> None:
        if not anchors:
            raise InputError("a task needs at least one anchor, such as anchor=[preact_resnet]")
        if not measures:
            raise InputError("a task needs at least one objective, such as objective=[validation_loss]")
        if not measures[0].quality:
            name = measures[0].objective(data).name
            raise InputError(
                f"{name} cannot lead a search: its gates need a score of quality; put one first, such as "
                f"objective=[validation_loss,{name}]"
            )
        self.data = data
        self.anchors = dict(anchors)
        self.recipe = recipe
        self.device = device
        self._measures = list(measures)

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """The measures by their objective's name, in order."""
        return {measure.objective(self.data).name: measure for measure in self._measures}

    @cached_property
    def objectives(self) -> dict[str, Objective]:
        """The objectives by name; the first leads."""
        return {name: measure.objective(self.data) for name, measure in self.measures.items()}

    def objective(self, name: str = "") -> Objective:
        """The objective of that name; of the first, for an empty name.

        Raises:
            InputError: the task does not measure it.
        """
        if not name:
            return next(iter(self.objectives.values()))
        if name not in self.objectives:
            raise unknown_name("objective", name, self.objectives)
        return self.objectives[name]

    @cached_property
    def splits(self) -> Splits:
        """Train and validation examples on the task's device.

        Raises:
            InputError: they have another shape than the data say, or values that are not finite.
        """
        splits = self.data.load().check_finite()
        if splits.train.x.shape[1:] != torch.Size(self.data.shape):
            raise InputError(f"the data say shape {self.data.shape}, but hold {tuple(splits.train.x.shape[1:])}")
        return Splits(splits.train.to(self.device), splits.validation.to(self.device))

    def test_objective(self, name: str) -> Objective:
        """The objective of that name, which must have a value on the test split.

        Raises:
            InputError: the task does not measure it, or its value does not depend on the examples.
        """
        objective = self.objective(name)
        if not self.measures[objective.name].reads_examples:
            raise InputError(f"{name} has no value on a test split; judge by another objective, such as accuracy")
        return objective

    @cached_property
    def _statistics_examples(self) -> Split:
        """Training examples for running statistics: always the same, and mixed whatever order the data are in."""
        train = self.splits.train
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        picks = order[: STATISTICS_BATCHES * self.recipe.batch_size]
        return Split(train.x[picks], train.y[picks])

    @cached_property
    def sites(self) -> dict[str, list[Site]]:
        """The sites of each anchor."""
        return {name: sites_of(anchor) for name, anchor in self.anchors.items()}

    @cached_property
    def sites_on_data(self) -> dict[str, list[Site]]:
        """The sites of each anchor, with the positions that an example of the data has there."""
        return {name: sites_on(anchor, self.data.shape) for name, anchor in self.anchors.items()}

    def check_meets(self, space: Space) -> None:
        """Check that the space can fill every site of every anchor.

        Raises:
            InputError: a site's kind or layout is none that the space serves, or an anchor has no site.
        """
        for name, sites in self.sites.items():
            if not sites:
                raise InputError(f"anchor {name!r} has no site: it never asks for a layer")
            for site in sites:
                if site.kind not in space.site_kinds:
                    raise InputError(
                        f"anchor {name!r} asks for a layer of kind {site.kind!r}, but {type(space).__name__} "
                        f"serves {', '.join(sorted(space.site_kinds))}; choose another anchor or space"
                    )
                if site.layout not in space.layouts:
                    raise InputError(
                        f"anchor {name!r} has a site of layout {site.layout}, but the space serves "
                        f"{', '.join(space.layouts)}; add it to space.layouts or choose another anchor"
                    )

    def check_outputs(self, anchor: str) -> None:
        """Check that an anchor takes an example of the data and gives what their targets are compared with.

        Raises:
            InputError: it has fewer outputs than there are classes, or not as many as values to predict. What the
                anchor itself raises passes.
        """
        needed, outputs = self.data.outputs, outputs_on(self.anchors[anchor], self.data.load().train.x[:1])
        classes = self.data.loss == "cross_entropy"
        given = outputs.shape[1] if classes else outputs.numel()
        if given < needed or (given > needed and not classes):
            raise InputError(
                f"anchor {anchor!r} has {given} outputs, but the data have {needed} "
                f"{'classes' if classes else 'values'}; choose another anchor, or give this one as many"
            )

    def start(self, anchor: str, make: Callable[[Site], nn.Module], seed: int) -> Training:
        """A fresh training of an anchor, its sites filled by `make`.

        Common random numbers: the anchor's own weights come from one stream, each site's draws from a stream of
        its own, the order of examples from a third. So trainings of two layers under one seed differ by the
        layer alone.
        """
        layers: dict[Site, nn.Module] = {}

        def fill(site: Site) -> nn.Module:
            layers[site] = _made_apart(make, site, seed)
            return layers[site]

        with drawing_from(seed):
            model = self.anchors[anchor](fill)
        return Training(model.to(self.device), self.splits.train, self.recipe, self.data.loss, seed, layers)

    def measure(self, training: Training, examples: Split | None = None) -> dict[str, float]:
        """Values by objective, on the validation examples or others, with running statistics re-estimated.

        What is none of quality is measured where the training has ended; of other examples what reads them.
        """
        validation = self.splits.validation
        ended = training.step >= self.recipe.steps
        with running_kept(training.model):
            restimate_statistics(training.model, self._statistics_examples, self.recipe.batch_size)
            outputs = outputs_of(training.model, (examples or validation).x)
            measured = Measured(training, examples or validation, outputs, validation, self.data.target_unit)
            return {
                name: measure.value(measured)
                for name, measure in self.measures.items()
                if (measure.quality or ended) and (measure.reads_examples or examples is None)
            }


def _made_apart(make: Callable[[Site], nn.Module], site: Site, seed: int) -> nn.Module:
    with drawing_from(1_000_003 * (seed + 1) + site.index):
        return make(site)

"""The training step against a plain loop: the same scores, and the ratio of their times on one thread.

The plain loop is the textbook one: a `TensorDataset` behind a `DataLoader` (default collation, no workers; its batch
sampler gives the same indices as ours, so that scores stay paired), the rate of each step set by hand, `model(x)`,
`cross_entropy`, `zero_grad`, `backward`, `clip_grad_norm_`, AdamW as it comes, `loss.item()`; the graph run node by
node with every value at full shape and `torch.var` for variances. Both sides train the same layers from the same
weights on the same batches, the catalogue and as many random graphs as are asked for that pass every gate, on both
default anchors. `loading_ms_a_step` is what data kept as one tensor gives: the time of the `DataLoader`'s batches, and
of indexing.

Each side has a process of its own, so that what ours sets there (`normact.search.heap`) does not help the other.

Where the time goes decides what can be won: on preact_resnet convolutions take about 2 ms of a step whatever the
layer, at some 70 of the 95 GFLOP/s that products of matrices reach here, so layers that compute little (`abs(x)`) gain
little there. What the last changes gave, as the ratio of a step with to one without, alternating stretches of 4 steps
of one training, medians over 22, two layers on both anchors: AdamW's kernel called at once 0.92 to 0.95, clipping in
two norms 0.96 to 0.98, seeds mixed ahead 0.95 to 0.99; freed memory kept, over whole candidates, 0.94, 0.97 and 0.99
in three pairs of processes. Tried and not taken, ratio to the step without: channels_last on preact_resnet 0.96 to
1.01 with all layers, pooling and shortcuts in it (five layers; a step against itself: 1.01 to 1.02), convolutions in
bfloat16 1.01 to 1.05, candidates side by side in one job (all they could share is the batch: 7 microseconds of some
5 ms). oneDNN's linear maps are no faster than MKL's (43 to 51 against 44 to 55 microseconds forward for 1024 rows
between 32 and 64 channels). Garbage collection takes 2 ms of 8 s once a worker is warm: to freeze or stop it gains
nothing.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from normact.launch.config import compose_config, search_evaluator
from normact.search.anchors import tokens
from normact.search.data.base import Split
from normact.search.evaluate import Evaluator
from normact.search.heap import keep_freed_memory
from normact.search.pool import Job
from normact.search.task import Task
from normact.search.training import Recipe, Training, shuffled_batches
from normact.spaces import CATALOGUE, GraphSpace, LayerGraph, LayerOptions, Site
from normact.spaces.inputs import trainable
from normact.spaces.layer import running_name
from normact.spaces.moments import Moment, divisor_at_most
from normact.spaces.ops import OPS
from tests.benchmarks.machine import spread

RANDOM_GRAPHS = 20
SEEDS = 3
BOUNDS = {"ratio.median": (0, 0.5), "ratio_catalogue.median": (0, 0.5)}


class PlainLayer(nn.Module):
    """A layer graph, node by node, every value at full shape."""

    momentum: float

    def __init__(self, graph: LayerGraph, site: Site, options: LayerOptions) -> None:
        super().__init__()
        self.graph = graph.canonical
        self.channels = site.in_features
        self.axis = 2 if site.layout == "NLC" else 1
        self.groups = divisor_at_most(options.groups, self.channels)
        self.eps, self.momentum = options.eps, options.momentum
        if graph.affine:
            self.weight = nn.Parameter(torch.ones(self.channels))
            self.bias = nn.Parameter(torch.zeros(self.channels))
        for name in self.graph.trainables:
            item = trainable(name)
            assert item is not None
            value = torch.full((self.channels if item.per_channel else 1,), item.init)
            self.register_parameter(item.attribute, nn.Parameter(value))
        self.running: dict[int, str] = {}
        for i, node in enumerate(self.graph.nodes):
            moment = OPS[node.op].moment
            if moment is not None and moment.index_set == "batch":
                self.running[i] = running_name(moment, list(self.running.values()))
                self.register_buffer(self.running[i], torch.zeros(self.channels))
        self.reset_running_stats()

    def reset_running_stats(self) -> None:
        for name in self.running.values():
            getattr(self, name).fill_(0.0 if name.startswith("running_mean") and "square" not in name else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        values: list[Tensor] = []
        for i, node in enumerate(self.graph.nodes):
            args = [values[a] if isinstance(a, int) else self.input(a, x) for a in node.args]
            op = OPS[node.op]
            if op.moment is not None:
                values.append(self.moment(i, op.moment, args[0]))
            else:
                assert op.function is not None
                values.append(op.function(*args))
        y = values[-1]
        return y * self.along(self.weight, x) + self.along(self.bias, x) if self.graph.affine else y

    def input(self, name: str, x: Tensor) -> Tensor:
        if name in ("x", "zero"):
            return x if name == "x" else torch.zeros_like(x)
        item = trainable(name)
        assert item is not None
        return self.along(getattr(self, item.attribute), x)

    def along(self, vector: Tensor, x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[self.axis] = len(vector)
        return vector.view(shape).expand_as(x)

    def moment(self, i: int, moment: Moment, x: Tensor) -> Tensor:
        if moment.index_set == "batch" and not self.training:
            raw = self.along(getattr(self, self.running[i]), x)
        elif moment.index_set == "group":
            split = x.unflatten(self.axis, (self.groups, -1))
            dims = [d for d in range(1, split.dim()) if d != self.axis]
            raw = statistic(split, moment.statistic, dims).expand_as(split).reshape(x.shape)
        else:
            raw = statistic(x, moment.statistic, self.reduced(moment.index_set, x)).expand_as(x)
            if moment.index_set == "batch":
                self.keep(self.running[i], raw.detach(), x)
        return raw if moment.statistic == "mean" else torch.sqrt(raw + self.eps)

    def reduced(self, index_set: str, x: Tensor) -> list[int]:
        if index_set == "channel":
            return [self.axis]
        if index_set == "layer":
            return list(range(1, x.dim()))
        return [d for d in range(0 if index_set == "batch" else 1, x.dim()) if d != self.axis]

    def keep(self, name: str, raw: Tensor, x: Tensor) -> None:
        new = raw.movedim(self.axis, 0).flatten(1)[:, 0]
        if name.startswith("running_var"):
            count = x.numel() // self.channels
            new = new * count / max(count - 1, 1)
        running = getattr(self, name)
        running.mul_(1 - self.momentum).add_(self.momentum * new)


def as_usual(model: nn.Module) -> nn.Module:
    """The anchors' own quick ways replaced by the modules' usual ones; the same parameters."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.forward = partial(nn.Conv2d.forward, module)  # type: ignore[method-assign]
        elif isinstance(module, tokens._LinearMix):
            module.forward = lambda x, mix=module.mix: mix(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[method-assign]
        elif isinstance(module, tokens._Patches):
            module.forward = lambda x, m=module: m.project(x).flatten(2).transpose(1, 2) + m.position  # type: ignore[method-assign]
    return model


def statistic(x: Tensor, name: str, dims: list[int]) -> Tensor:
    """Mean, mean square or biased variance, the axes kept."""
    if name == "std":
        return torch.var(x, dims, unbiased=False, keepdim=True)
    return torch.mean(x if name == "mean" else x**2, dims, keepdim=True)


class BatchSampler(Sampler[list[int]]):
    """The indices of the first `recipe.steps` batches, as lists."""

    def __init__(self, count: int, recipe: Recipe, seed: int) -> None:
        self.count, self.recipe, self.seed = count, recipe, seed

    def __iter__(self) -> Iterator[list[int]]:
        for picks in islice(shuffled_batches(self.count, self.recipe.batch_size, self.seed), self.recipe.steps):
            yield picks.tolist()


def loader(examples: Split, recipe: Recipe, seed: int) -> DataLoader[tuple[Tensor, ...]]:
    """Batches as torch's own classes make them: example by example, then stacked."""
    return DataLoader(TensorDataset(examples.x, examples.y), batch_sampler=BatchSampler(len(examples), recipe, seed))


def loading_ms(examples: Split, recipe: Recipe) -> dict[str, dict[str, float]]:
    """Milliseconds a step that it takes to have the batches, on either side."""

    def indexed() -> Iterator[tuple[Tensor, Tensor]]:
        for picks in islice(shuffled_batches(len(examples), recipe.batch_size, 0), recipe.steps):
            yield examples.x[picks], examples.y[picks]

    sides = {"data_loader": lambda: loader(examples, recipe, 0), "one_tensor": indexed}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(10):
        for name, batches in sides.items():
            start = time.process_time()
            for _ in batches():
                pass
            times[name].append(1000 * (time.process_time() - start) / recipe.steps)
    return {name: spread(values, 3) for name, values in times.items()}


def train_plainly(model: nn.Module, examples: Split, recipe: Recipe, seed: int) -> list[float]:
    """The plain loop: losses by step."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.lr,
    )
    losses = []
    model.train()
    for step, (x, y) in enumerate(loader(examples, recipe, seed)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


@dataclass(frozen=True)
class Run:
    """One training: processor seconds of its steps, and what was measured after."""

    seconds: float
    loss: float
    accuracy: float


Side = Callable[[LayerGraph, str, int], Run]
_evaluator: Evaluator | None = None


def _initialise() -> None:
    """In each side's process."""
    global _evaluator
    torch.set_num_threads(1)
    _evaluator = make_evaluator()


def make_evaluator() -> Evaluator:
    return search_evaluator(compose_config(["objective=[validation_loss,accuracy]", "recipe.steps=100"]))


def _parts() -> tuple[Task, GraphSpace]:
    assert _evaluator is not None and isinstance(_evaluator.space, GraphSpace)
    return _evaluator.task, _evaluator.space


def plain_run(graph: LayerGraph, anchor: str, seed: int) -> Run:
    task, space = _parts()
    training = task.start(anchor, lambda site: PlainLayer(graph, site, space.options), seed)
    start = time.process_time()
    train_plainly(as_usual(training.model), task.splits.train, task.recipe, seed)
    return measured(task, training, time.process_time() - start)


def our_run(graph: LayerGraph, anchor: str, seed: int) -> Run:
    task, space = _parts()
    keep_freed_memory()
    training = task.start(anchor, lambda site: space.build(graph, site), seed)
    start = time.process_time()
    training.run_to(task.recipe.steps)
    return measured(task, training, time.process_time() - start)


def measured(task: Task, training: Training, seconds: float) -> Run:
    values = task.measure(training)
    return Run(seconds, values["validation_loss"], values["accuracy"])


def random_graphs(evaluator: Evaluator, count: int) -> Iterator[LayerGraph]:
    """Random graphs that pass every gate and finish their training."""
    found, number = 0, 0
    while found < count:
        graph = evaluator.space.sample(np.random.default_rng([11, number]))
        job = ((number, evaluator.space.to_json(graph)),)
        number += 1
        if all(not evaluator(Job(0, kind, job, 0))[0].gate for kind in ("screen", "train")):  # type: ignore[arg-type]
            found += 1
            yield graph


Processes = dict[Side, ProcessPoolExecutor]


def one_each() -> Processes:
    spawn = multiprocessing.get_context("spawn")
    return {side: ProcessPoolExecutor(1, mp_context=spawn, initializer=_initialise) for side in (plain_run, our_run)}


def compared(processes: Processes, graph: LayerGraph, anchor: str) -> list[tuple[Run, Run]]:
    """(plain, ours) by seed; which goes first alternates."""
    pairs = []
    for seed in range(SEEDS):
        sides = [plain_run, our_run]
        order = sides if seed % 2 else sides[::-1]
        runs = {side: processes[side].submit(side, graph, anchor, seed).result() for side in order}
        pairs.append((runs[plain_run], runs[our_run]))
    return pairs


Pairs = dict[str, dict[str, list[tuple[Run, Run]]]]
"""By layer, then by anchor."""


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    evaluator = make_evaluator()
    task = evaluator.task
    layers = {name: layer.graph for name, layer in CATALOGUE.items()}
    layers |= {f"random_{i}": graph for i, graph in enumerate(random_graphs(evaluator, RANDOM_GRAPHS))}
    processes = one_each()
    for anchor in task.anchors:  # warm-up
        compared(processes, layers["bn_relu"], anchor)
    pairs: Pairs = {}
    for name, graph in layers.items():
        pairs[name] = {anchor: compared(processes, graph, anchor) for anchor in task.anchors}
        print(f"{name}: {ratio([p for by_seed in pairs[name].values() for p in by_seed]):.3f}  {graph}")
    for process in processes.values():
        process.shutdown()
    known = {name: pairs[name] for name in CATALOGUE}
    drawn = {name: by_anchor for name, by_anchor in pairs.items() if name not in CATALOGUE}
    return {
        "seeds": SEEDS,
        "steps": task.recipe.steps,
        "loading_ms_a_step": loading_ms(task.splits.train, task.recipe),
        "ratio": ratios(pairs),
        "ratio_catalogue": ratios(known),
        "ratio_random": ratios(drawn),
        **{f"on_{anchor}": on_anchor(pairs, anchor) for anchor in task.anchors},
    }


def ratio(pairs: list[tuple[Run, Run]]) -> float:
    """Our seconds over the plain loop's."""
    return sum(ours.seconds for _, ours in pairs) / sum(plain.seconds for plain, _ in pairs)


def ratios(pairs: Pairs) -> dict[str, float]:
    return spread([ratio([p for by_seed in by_anchor.values() for p in by_seed]) for by_anchor in pairs.values()], 3)


def on_anchor(pairs: Pairs, anchor: str) -> dict[str, Any]:
    """Times and agreement of scores on one anchor."""
    runs = [by_anchor[anchor] for by_anchor in pairs.values()]
    return {
        "ratio": spread([ratio(by_seed) for by_seed in runs], 3),
        "plain_ms_a_step": spread([10 * plain.seconds for by_seed in runs for plain, _ in by_seed], 2),
        "our_ms_a_step": spread([10 * ours.seconds for by_seed in runs for _, ours in by_seed], 2),
        "validation_loss": agreement([[(p.loss, o.loss) for p, o in by_seed] for by_seed in runs]),
        "accuracy": agreement([[(p.accuracy, o.accuracy) for p, o in by_seed] for by_seed in runs]),
    }


def agreement(scores: list[list[tuple[float, float]]]) -> dict[str, float]:
    """How far paired scores lie apart, against their spread over seeds; rank correlation of the layers' means."""
    differences = [abs(ours - plain) for by_seed in scores for plain, ours in by_seed]
    noise = statistics.fmean(statistics.variance([plain for plain, _ in by_seed]) for by_seed in scores) ** 0.5
    means = [[statistics.fmean(pair[side] for pair in by_seed) for by_seed in scores] for side in (0, 1)]
    return {
        "median_difference": round(statistics.median(differences), 6),
        "largest_difference": round(max(differences), 6),
        "mean_signed_difference": round(
            statistics.fmean(ours - plain for by_seed in scores for plain, ours in by_seed), 6
        ),
        "sd_over_seeds": round(noise, 6),
        "spearman": round(spearman(*means), 4),
    }


def spearman(a: list[float], b: list[float]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(ranks)[0, 1])

"""Kolmogorov-Arnold networks on Fashion-MNIST at [784, 64, 10]: families, AF-KAN, S-KAN, an MLP, what a search finds.

1. Every family alone with 8 functions an input (rational: one), two seeds, 8 epochs, judged on 10,000 images held out
   of the training files.
2. A search among KAN layers of at most the best family's parameters, from the families on, one epoch a candidate;
   then its ten best as in 1. (`kept_search` in the records: the space as shipped, 300 steps a candidate. It led to
   AF-KAN layers, which learn fastest and end lower: the proxy was too short.)
3. The best three families, AF-KAN's best setting, S-KAN of those three, an MLP of as many parameters, and the best
   find that is none of the families alone: five other seeds, 35 epochs, the 10,000 test images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from normact.launch.config import compose_config, space_of
from normact.search.anchors import MLP, KanNet
from normact.search.outcome import Outcome
from normact.spaces import Space
from normact.spaces.kan.selectable import prune_model
from normact.spaces.site import Site
from tests.benchmarks.flops import flops_of
from tests.benchmarks.kan import measured
from tests.benchmarks.machine import spread
from tests.benchmarks.studies import Study, interval

TRAIN, HELD_OUT, BATCH = 50_000, 10_000, 64
EPOCH = TRAIN // BATCH
SHORT, LONG = 8, 35
SEARCH_MINUTES = 12
FINALISTS = 10
SEEDS = 5
ROUNDS = 30  # of processor time
FAMILIES = (
    "bspline(grid=5, order=3)",
    "gaussian(grid=8)",
    "chebyshev(degree=8)",
    "legendre(degree=8)",
    "jacobi(degree=8)",
    "gram(degree=8)",
    "fourier(frequencies=4)",
    "sine(grid=8)",
    "sech(grid=8)",
    "rswaf(grid=8)",
    "piecewise_linear(grid=8)",
    "relu_kan(grid=5, order=3)",
    "mexican_hat",
    "morlet",
    "dog",
    "rational",
)
ADDED = ("difference_of_gaussians",)
"""Families of a run of their own: they came later."""

AF_KAN = tuple(
    f"af(activation=silu, function=quad1, reduction=global_attention, normalizer={n}, post=layer, grid=3, order=3)"
    for n in ("none", "layer")
)
PUBLISHED = {"name": "BSRBF-KAN, mean of 5 (arXiv 2406.11173)", "accuracy": 0.8933, "parameters": 459_040}
DATA = ("data=fashion_mnist", f"data.validation_size={HELD_OUT}", "budget.minutes=null")
SPACE = ("space=kan", "space.kinds=[kan,af,selectable,node]")


def recipe(epochs: int, final: float | None = None) -> tuple[str, ...]:
    """The published recipe: 0.8 times the learning rate per epoch, from 0.001; or another share at the end."""
    return (
        f"recipe.steps={epochs * EPOCH}",
        f"recipe.final={final or 0.8**epochs}",
        "recipe.lr=0.001",
        f"recipe.batch_size={BATCH}",
    )


def short(study: Study, part: str, starts: Sequence[str]) -> dict[str, float]:
    """Mean accuracy on held-out images over two seeds by the candidate's text, after 8 epochs."""
    alone = ("gates=none", "controller=random", f"budget.proposals={len(starts)}")
    overrides = (*SPACE, *DATA, *recipe(SHORT), *alone)
    by_seed = [study.search(f"{part}_seed{seed}", overrides, starts, seed) for seed in (0, 1)]
    space = space_of(compose_config(SPACE))  # kept texts may be of a release that printed candidates shorter
    accuracies = [
        {space.describe(space.parse(row["text"])): row["scores"].get("accuracy", 0.0) for row in rows}
        for rows in by_seed
    ]
    return {text: float(np.mean([found[text] for found in accuracies])) for text in accuracies[0]}


def run() -> dict[str, Any]:
    study = Study("kan_accuracy")
    families = short(study, "families", [*(f"kan({family})" for family in FAMILIES), *AF_KAN])
    families |= short(study, "families_added", [f"kan({family})" for family in ADDED])
    ranked = sorted(families, key=lambda text: -families[text])
    print(*(f"{families[text]:.4f}  {text}" for text in ranked), sep="\n")
    best = [text for text in ranked if text.startswith("kan(") and "rational" not in text][:3]
    space = space_of(compose_config(SPACE))
    parameters = parameters_of(model_of(space, best[0]))
    limits = (f"budget.minutes={SEARCH_MINUTES}", f"gates.size.parameters={parameters}", "gates.stall_100=null")
    kinds = ("space=kan", "space.kinds=[kan]")
    found = study.search(
        "search", (*kinds, *DATA, *recipe(1, 0.1), *limits), [f"kan({family})" for family in (*FAMILIES, *ADDED)]
    )
    tried = sorted((row for row in found if row["scores"]), key=lambda row: row["scores"]["validation_loss"])
    finalists = short(study, "finalists", [row["text"] for row in tried[:FINALISTS]])
    winner = max((text for text in finalists if text not in families), key=lambda text: finalists[text])
    print(f"{len(found)} distinct candidates; {finalists[winner]:.4f}  {winner}")
    af_kan = next(text for text in ranked if text.startswith("af("))
    entrants = {f"family {space.parse(text).layers[0].families[0].name}": text for text in best}
    entrants |= {"AF-KAN": af_kan, "S-KAN": selectable(space, best), "found": winner}
    overrides = (*DATA, *recipe(LONG), "gates=none")
    outcomes = study.judge("final", (*SPACE, *overrides), entrants, SEEDS)
    hidden = round((parameters - 10) / (784 + 1 + 10))
    mlp = {f"MLP [784, {hidden}, 10]": "node(graph(expression='silu(x)'), normalizer=none)"}
    anchor = ("space=kan_act", "recipe=kan", "space.layouts=[NC]", "anchor=mlp", f"anchor.mlp.hidden=[{hidden}]")
    outcomes |= study.judge("final_mlp", (*anchor, *overrides), mlp, SEEDS)
    models = {name: model_of(space, text) for name, text in entrants.items()}
    models |= {name: mlp_of(hidden, text) for name, text in mlp.items()}
    torch.set_num_threads(1)
    times = measured({name: step_of(model) for name, model in models.items()}, ROUNDS)
    texts = {**entrants, **mlp}
    table = {name: figures(model, texts[name], outcomes[name], times[name]) for name, model in models.items()}
    compare(table, outcomes)
    return {"families": families, "finalists": finalists, "table": table, "published": PUBLISHED}


def selectable(space: Space[Any], best: Sequence[str]) -> str:
    """S-KAN of the families in the texts, choosing one for each node."""
    genes = [space.parse(text).layers[0] for text in best]
    members = ", ".join(text.removeprefix("kan(").split(")")[0] + ")" for text in best)
    normalizer = max((gene.option("normalizer") for gene in genes), key=len)  # layer_tanh suits all that layer suits
    return f"selectable({members}, granularity=node, normalizer={normalizer})"


def model_of(space: Space[Any], text: str) -> nn.Module:
    """The candidate's [784, 64, 10], selected and pruned where it has a choice."""
    candidate = space.parse(text)
    model = KanNet(784, [64], 10)(lambda site: space.build(candidate, site))
    for module in model.modules():
        if hasattr(module, "set_progress"):
            module.set_progress(1.0)
    return prune_model(model)


def mlp_of(hidden: int, text: str) -> nn.Module:
    space = space_of(compose_config(["space=kan_act", "space.layouts=[NC]"]))
    candidate = space.parse(text)
    return MLP(784, [hidden], 10)(lambda site: space.build(candidate, Site("norm_act", 0, hidden, layout="NC")))


def parameters_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def step_of(model: nn.Module) -> Callable[[], None]:
    """A step of training: forward, backward, AdamW."""
    x, y = torch.randn(BATCH, 1, 28, 28), torch.arange(BATCH) % 10
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def figures(model: nn.Module, text: str, outcomes: Sequence[Outcome], times: list[float]) -> dict[str, Any]:
    accuracies = [accuracy_of(outcome) for outcome in outcomes]
    return {
        "text": text,
        "parameters": parameters_of(model),
        "flops_per_image": flops_of(model, torch.zeros(BATCH, 1, 28, 28)) // BATCH,
        "step_ms": spread(times, 3),
        "accuracy": round(float(np.mean(accuracies)), 5),
        "interval": interval(accuracies),
        "n": len(accuracies),
    }


def accuracy_of(outcome: Outcome) -> float:
    """The test accuracy; 0 where the training failed."""
    return next(iter(outcome.final("test_accuracy").values()), 0.0)


def compare(table: dict[str, dict[str, Any]], outcomes: dict[str, list[Outcome]]) -> None:
    """Add each entrant's paired difference to the best family."""
    names = [name for name in table if name.startswith("family ")]
    best = max(names, key=lambda name: table[name]["accuracy"])
    for name, row in table.items():
        differences = [accuracy_of(a) - accuracy_of(b) for a, b in zip(outcomes[name], outcomes[best], strict=True)]
        if name != best:
            row["difference_to_best_family"] = round(float(np.mean(differences)), 5)
            row["difference_interval"] = interval(differences)
        print(name, row)

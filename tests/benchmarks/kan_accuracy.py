"""Kolmogorov-Arnold networks on Fashion-MNIST at [784, 64, 10]: families, AF-KAN, S-KAN, an MLP, what a search finds.

Hours on two cores; each part is a run of its own under `runs/kan_accuracy/` and goes on where it was killed. What the
trainings gave is kept in `results/kan_accuracy.jsonl`, from which another machine goes on too.

1. Every family alone with 8 functions an input (rational: one), two seeds, 8 epochs, judged on 10,000 images held out
   of the training files.
2. A search, then its ten best as in 1.
3. The best three families, AF-KAN's best setting, S-KAN of those three, an MLP of as many parameters, and the best
   find: five other seeds, 35 epochs, the 10,000 test images.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scipy import stats

from normact.launch import commands, run_folder
from normact.launch.config import Config, compose_config, in_worker, pool_of, rerank_evaluator, space_of, task_of
from normact.launch.setting import Setting
from normact.search.anchors import sites_of
from normact.search.history import History
from normact.search.ledger import Event, Ledger
from normact.search.outcome import Outcome
from normact.search.rerank import Entrant, Rerank
from normact.search.task import Task
from normact.spaces import Space
from tests.benchmarks.flops import flops_of

RUNS = Path("runs/kan_accuracy")
KEPT = Path(__file__).parent / "results" / "kan_accuracy.jsonl"
TRAIN, HELD_OUT, BATCH = 50_000, 10_000, 64
EPOCH = TRAIN // BATCH
SHORT, LONG = 8, 35
SEARCH_MINUTES = 20
SEEDS = 5
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
AF_KAN = tuple(
    f"af(activation=silu, function=quad1, reduction=global_attention, normalizer={n}, post=layer, grid=3, order=3)"
    for n in ("none", "layer")
)
MLP = "node(graph(expression='silu(x)'), normalizer=none)"
PUBLISHED = {"name": "BSRBF-KAN, mean of 5 (arXiv 2406.11173)", "accuracy": 0.8933, "parameters": 459_040}

SPACE = ("space=kan", "space.kinds=[kan,af,selectable,node]")
COMMON = (
    "data=fashion_mnist",
    f"data.validation_size={HELD_OUT}",
    "rerank.finalists=0",
    "export.winner=false",
    "budget.minutes=null",
    "limits.train_seconds=7200",
    "pool.workers=2",
)


@dataclass(frozen=True)
class Row:
    """An entrant's line of the final table."""

    name: str
    text: str
    parameters: int
    flops: int
    seconds: float
    accuracies: list[float]


def recipe(epochs: int) -> tuple[str, ...]:
    """The published recipe: 0.8 times the learning rate per epoch, from 0.001."""
    return (
        f"recipe.steps={epochs * EPOCH}",
        f"recipe.final={0.8**epochs}",
        "recipe.lr=0.001",
        f"recipe.batch_size={BATCH}",
    )


def trained(name: str, config: Config, seed: int) -> dict[str, float]:
    """Validation accuracy by the candidate's text, of a run whose starts are trained to the end."""
    config["seed"] = seed
    kept = kept_rows(name)
    if len(kept) < len(config["start_from"]) or (config["start_from"][0].startswith("run:") and not kept):
        folder = RUNS / name
        searched(folder, config)
        keep(name, outcomes_of(folder, space_of(config)))
        kept = kept_rows(name)
    return {row["text"]: row["accuracy"] for row in kept}


def searched(folder: Path, config: Config) -> None:
    """A search, begun or resumed; nothing where it is complete."""
    config["run_dir"] = str(folder)
    setting = Setting(Console(width=140))
    status = commands.resume(setting, folder) if folder.exists() else commands.search(setting, config)
    if status:
        raise SystemExit(status)


def outcomes_of(folder: Path, space: Space[Any]) -> list[dict[str, Any]]:
    with run_folder.open_ledger(folder) as ledger:
        history = History(ledger)
        return [
            {
                "text": space.describe(space.from_json(history.record(number).candidate)),
                "accuracy": outcome.final("accuracy").get("kan", 0.0) if outcome.accepted else 0.0,
                "gate": outcome.gate,
                "seconds": round(outcome.seconds.get("train", 0.0), 1),
            }
            for number, outcome in sorted(history.outcomes.items())
            if outcome.same_as is None
        ]


def keep(part: str, rows: Sequence[dict[str, Any]]) -> None:
    """Append what a part gave to the file that the repository keeps."""
    with KEPT.open("a") as file:
        for row in rows:
            file.write(json.dumps({"part": part, **row}) + "\n")


def kept_rows(part: str) -> list[dict[str, Any]]:
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    return [row for row in map(json.loads, lines) if row["part"] == part]


def short(starts: Sequence[str]) -> Config:
    """A run that trains given candidates for 8 epochs and judges nothing else."""
    count = 10 if starts[0].startswith("run:") else len(starts)
    config = compose_config(
        ["space=kan", "gates=none", "controller=random", *COMMON, *recipe(SHORT), f"budget.proposals={count}"]
    )
    config["space"]["kinds"] = ["kan", "af", "selectable", "node"]
    config["start_from"] = list(starts)
    return config


def families() -> list[tuple[str, float]]:
    """Each family alone and its mean validation accuracy, the best first."""
    starts = [f"kan({family})" for family in FAMILIES] + list(AF_KAN)
    by_seed = [trained(f"families_seed{seed}", short(starts), seed) for seed in (0, 1)]
    means = {text: float(np.mean([found[text] for found in by_seed])) for text in by_seed[0]}
    return sorted(means.items(), key=lambda item: -item[1])


def find(parameters: int) -> tuple[str, float]:
    """What a search finds within a number of parameters: the best, by 8 epochs, of its ten best."""
    name = "search"
    folder = RUNS / name
    finalists = [f"finalists_seed{seed}" for seed in (0, 1)]
    if not all(kept_rows(part) for part in finalists):
        config = compose_config(
            ["space=kan", *COMMON, f"budget.minutes={SEARCH_MINUTES}", f"gates.size.parameters={parameters}"]
        )
        searched(folder, config)
        keep(name, outcomes_of(folder, space_of(config)))
    by_seed = [trained(part, short([f"run:{folder}"]), seed) for seed, part in enumerate(finalists)]
    means = {text: float(np.mean([found[text] for found in by_seed if text in found])) for text in by_seed[0]}
    return max(means.items(), key=lambda item: item[1])


def final(part: str, overrides: Sequence[str], entrants: dict[str, str]) -> dict[str, Row]:
    """Train entrants on fresh seeds to the end, and test them."""
    config = compose_config([*overrides, *COMMON, "rerank.finalists=1", "gates=none"])
    config["rerank"]["anchor"], config["rerank"]["recipe"] = config["anchor"], config["recipe"]
    space = space_of(config)
    folder = RUNS / part
    if not folder.exists():
        run_folder.create(folder, config).close()
    with run_folder.open_ledger(folder, write=True) as ledger:
        recall(part, ledger)
        roles = ["baseline", *["finalist"] * (len(entrants) - 1)] if len(entrants) > 1 else ["baseline"]
        members = [
            Entrant(name, role, space.to_json(space.parse(text)), text)
            for (name, text), role in zip(entrants.items(), roles, strict=True)
        ]
        if len(members) == 1:  # a rerank compares: here with itself, which is trained once
            members.append(Entrant(f"{members[0].name} again", "finalist", members[0].candidate, members[0].text))
        task = task_of(config)
        depends = {"recipe": config["recipe"], "anchor": config["anchor"], "data": config["data"]}
        with closing(pool_of(config, in_worker(rerank_evaluator, config), [])) as pool:
            judged = Rerank(members, SEEDS, task.objective("accuracy"), depends, ledger, pool, 7200.0)
            begin = time.perf_counter()

            def progress(done: int, total: int) -> None:
                remember(part, ledger)
                print(f"{part}: {done} of {total} trainings, {time.perf_counter() - begin:.0f} s", flush=True)

            judged.run(progress)
            results = judged.results
    return {
        member.name: row_of(member, [results[i, seed] for seed in judged.seeds], space, task)
        for i, member in enumerate(members)
        if not member.name.endswith(" again")
    }


def recall(part: str, ledger: Ledger) -> None:
    """Give a new ledger the trainings that the repository keeps."""
    if not any(True for _ in ledger.events("reranked")):
        rows = kept_rows(part)
        if rows:
            ledger.append([Event("reranked", row["number"], row["data"]) for row in rows])


def remember(part: str, ledger: Ledger) -> None:
    """Keep the trainings of a ledger that are not kept yet."""
    known = {json.dumps(row["data"], sort_keys=True) for row in kept_rows(part)}
    fresh = [e for e in ledger.events("reranked") if json.dumps(e.data, sort_keys=True) not in known]
    keep(part, [{"number": event.number, "data": event.data} for event in fresh])


def row_of(member: Entrant, outcomes: Sequence[Outcome], space: Space[Any], task: Task) -> Row:
    anchor = next(iter(task.anchors.values()))
    candidate = space.from_json(member.candidate)
    model = task.start(next(iter(task.anchors)), lambda site: space.build(candidate, site), 0).model
    assert sites_of(anchor)
    model = pruned(model)
    x = torch.zeros(BATCH, *task.data.shape)
    return Row(
        member.name,
        member.text,
        sum(p.numel() for p in model.parameters()),
        flops_of(model, x) // BATCH,
        float(np.median([outcome.seconds["train"] for outcome in outcomes])),
        [next(iter(outcome.final("test_accuracy").values())) for outcome in outcomes],
    )


def pruned(model: torch.nn.Module) -> torch.nn.Module:
    """Selectable layers as they are once selected and pruned."""
    from normact.spaces.kan.selectable import prune_model

    for module in model.modules():
        if hasattr(module, "set_progress"):
            module.set_progress(1.0)
    return prune_model(model)


def run_all() -> dict[str, Row]:
    """All three parts."""
    ranked = families()
    print(*(f"{accuracy:.4f}  {text}" for text, accuracy in ranked), sep="\n")
    best = [text for text, _ in ranked if text.startswith("kan(") and "rational" not in text][:3]
    space = space_of(short(best))
    parameters = parameters_of(space, best[0])
    found, accuracy = find(parameters)
    print(f"found: {accuracy:.4f}  {found}")
    genes = [space.parse(text).layers[0] for text in best]
    members = ", ".join(text.removeprefix("kan(").split(")")[0] + ")" for text in best)
    normalizer = max((gene.option("normalizer") for gene in genes), key=len)  # layer_tanh suits all that layer suits
    entrants = {f"family {gene.families[0].name}": text for gene, text in zip(genes, best, strict=True)}
    entrants |= {"AF-KAN": next(text for text, _ in ranked if text.startswith("af("))}
    entrants |= {"S-KAN": f"selectable({members}, granularity=node, normalizer={normalizer})"}
    entrants |= {"found": found}
    rows = final("final", (*SPACE, *recipe(LONG)), entrants)
    hidden = round((parameters - 10) / (784 + 1 + 10))
    mlp = ("space=kan_act", "space.layouts=[NC]", "anchor=mlp", f"anchor.mlp.hidden=[{hidden}]", *recipe(LONG))
    return rows | final("final_mlp", mlp, {f"MLP [784, {hidden}, 10]": MLP})


def parameters_of(space: Space[Any], text: str) -> int:
    """Parameters of [784, 64, 10]."""
    from normact.search.anchors import KanNet

    candidate = space.parse(text)
    return sum(p.numel() for p in KanNet(784, [64], 10)(lambda site: space.build(candidate, site)).parameters())


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of a mean, by Student's t."""
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def run() -> dict[str, Any]:
    rows = run_all()
    best = max((name for name in rows if name.startswith("family ")), key=lambda name: np.mean(rows[name].accuracies))
    table = {name: line(row, rows[best]) for name, row in rows.items()}
    for name, figures in table.items():
        print(name, figures)
    return {"best_family": best, "table": table, "published": PUBLISHED, "families": dict(families())}


def line(row: Row, best: Row) -> dict[str, Any]:
    """An entrant's figures, and its paired difference to the best family."""
    low, high = interval(row.accuracies)
    figures: dict[str, Any] = {
        "text": row.text,
        "parameters": row.parameters,
        "flops_per_image": row.flops,
        "train_seconds": round(row.seconds, 1),
        "accuracy": round(float(np.mean(row.accuracies)), 5),
        "interval": [round(low, 5), round(high, 5)],
        "n": len(row.accuracies),
    }
    if row is not best:
        differences = np.subtract(row.accuracies, best.accuracies)
        low, high = interval(list(differences))
        figures["difference_to_best_family"] = round(float(differences.mean()), 5)
        figures["difference_interval"] = [round(low, 5), round(high, 5)]
    return figures

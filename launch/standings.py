"""The results of a run's reranks, each with what it was judged on, as the ledger keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from normact.launch.config import Config, rerank_data
from normact.search.ledger import Ledger
from normact.search.rerank import Entrant, Standing
from normact.search.task import Task
from normact.search.trainings import key_of
from normact.spaces.errors import InputError

_KEPT = "standings"


@dataclass(frozen=True)
class Conditions:
    """What the layers of a rerank were trained and judged on.

    Args:
        objective: its name.
        data: what the data are called; empty where an earlier release kept no name.
        held_out: whether they are others than those of the search.
        anchors: their names.
        steps: of a training; None where the run's config does not say.
        first_seed: which of a rerank's seeds they begin with.
    """

    objective: str
    data: str
    held_out: bool
    anchors: tuple[str, ...]
    steps: int | None
    first_seed: int = 0


@dataclass(frozen=True)
class Standings:
    """A rerank's result: its conditions, and how its layers stand, the best first."""

    conditions: Conditions
    rows: Sequence[Standing]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, which `from_json` reads."""
        return {**asdict(self.conditions), "seeds": self.rows[0].seeds, "standings": [asdict(row) for row in self.rows]}

    @staticmethod
    def from_json(data: Any) -> Standings:
        """The standings that `to_json` gave.

        Raises:
            InputError: it is of another form.
        """
        try:
            parts = {name: data[name] for name in ("objective", "data", "held_out", "steps")}
            parts["first_seed"] = data.get("first_seed", 0)  # earlier releases had none
            rows = [Standing(**{**row, "entrant": Entrant(**row["entrant"])}) for row in data["standings"]]
            if not any(row.verdict == "best baseline" for row in rows):
                raise KeyError("best baseline")
            return Standings(Conditions(anchors=tuple(data["anchors"]), **parts), rows)
        except (KeyError, TypeError) as problem:
            raise InputError(f"a rerank of the run cannot be read ({problem!r}); do it again") from None


def depends_on(config: Config) -> Config:
    """What of a config the trainings of its rerank depend on."""
    parts = {part: config[part] for part in ("objective", "space", "task")}
    rerank = {part: config["rerank"].get(part, {}) for part in ("anchor", "recipe")}
    return {**parts, "data": rerank_data(config), "rerank": rerank}


def conditions_of(config: Config, task: Task) -> Conditions:
    """The conditions of a config's rerank, of which this is the task."""
    node = rerank_data(config)
    name = task.data.name or node["_target_"].rpartition(".")[2]
    rerank = config["rerank"]
    steps, first = task.recipe.steps, rerank.get("first_seed", 0)
    return Conditions(rerank["objective"], name, "data" in rerank, tuple(task.anchors), steps, first)


def keep(ledger: Ledger, own: Config, config: Config, standings: Standings) -> None:
    """Keep standings, beside those on other data, anchors, recipes or seeds, in the place of earlier ones on the same.

    Args:
        ledger: of the run.
        own: config of the run.
        config: that of this rerank.
        standings: its result.
    """
    first = standings.conditions.first_seed
    key = key_of({**depends_on(config), **({"first_seed": first} if first else {})})
    others = {other: kept for other, kept in _kept(ledger, own).items() if other != key}
    ledger.set_meta(_KEPT, {**others, key: standings.to_json()})


def standings_of(ledger: Ledger, own: Config) -> list[Standings]:
    """The standings of a run's reranks, the latest last.

    Args:
        ledger: of the run.
        own: config of the run.

    Raises:
        InputError: some cannot be read.
    """
    return [Standings.from_json(data) for data in _kept(ledger, own).values()]


def _kept(ledger: Ledger, own: Config) -> Mapping[str, Any]:
    """Standings as JSON, by what their trainings depend on. Earlier releases kept one, of the run's own config."""
    kept = ledger.meta(_KEPT, {})
    if not isinstance(kept, list):
        return dict(kept)
    anchors, steps = tuple(own["rerank"].get("anchor", {})), own["rerank"]["recipe"].get("steps")
    conditions = Conditions(own["rerank"]["objective"], "", False, anchors, steps)
    return {key_of(depends_on(own)): {**asdict(conditions), "standings": kept}} if kept else {}

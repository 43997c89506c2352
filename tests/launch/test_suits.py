"""A space and the data choose anchors, recipes, objectives and gates that suit them; what a person gives wins."""

import re

import pytest
import yaml
from rich.console import Console

from normact.launch.config import compose_config, rerank_evaluator, search_evaluator
from normact.launch.reranking import check_rerank
from normact.launch.setting import Setting
from normact.search.gates import Pass, ScreenContext
from normact.spaces import InputError
from tests.launch.test_config import CONF

AS_TYPED = {
    "space=kan": (["kan"], ["kan_wide", "kan_deep"], "kan", ["validation_loss", "accuracy"]),
    "space=kan data=functions": (["kan_small"], ["kan_small_wide", "kan_small_deep"], "functions", ["rmse"]),
    "data=functions space=kan": (["kan_small"], ["kan_small_wide", "kan_small_deep"], "functions", ["rmse"]),
    "space=kan_conv": (["kan_conv"], ["kan_conv_deep"], "kan", ["validation_loss", "accuracy"]),
    "space=kan_act": (
        ["preact_resnet", "token_mixer"], ["inverted_residual", "token_transformer"], "default",
        ["validation_loss", "accuracy"],
    ),
    "": (
        ["preact_resnet", "token_mixer"], ["inverted_residual", "token_transformer"], "default",
        ["validation_loss", "accuracy"],
    ),
}  # fmt: skip


def option(group, name):
    return yaml.safe_load((CONF / group / f"{name}.yaml").read_text())


@pytest.mark.parametrize("typed", AS_TYPED)
def test_what_is_typed_is_enough(typed):
    """All parts are made, the space meets the anchors, gates look within the recipe, the baselines are known."""
    anchors, rerank_anchors, gates, objectives = AS_TYPED[typed]
    config = compose_config(typed.split())
    assert list(config["anchor"]) == anchors
    assert list(config["rerank"]["anchor"]) == rerank_anchors
    assert list(config["objective"]) == objectives
    expected = option("gates", "kan") if gates in ("kan", "functions") else option("gates", gates)
    assert set(config["gates"]) == set(expected)
    evaluator = search_evaluator(config)
    evaluator.task.check_meets(evaluator.space)
    check_rerank(Setting(Console()), config, evaluator.space)
    assert rerank_evaluator(config).task.recipe.steps > evaluator.task.recipe.steps


def test_gates_of_functions_do_not_ask_for_speed():
    assert compose_config(["space=kan", "data=functions"])["gates"]["stall_100"] is None
    assert compose_config(["space=kan"])["gates"]["stall_100"]["at"] == 100


def test_gates_of_activations_do_not_take_a_norm_for_a_dead_layer():
    config = compose_config(["space=kan_act"])
    usual = compose_config([])["gates"]
    assert config["gates"] == usual | {"propagation": usual["propagation"] | {"gradient": [0.0, 1e5]}}
    evaluator = search_evaluator(config)
    text = "node(gaussian(grid=8), normalizer=batch, sharing=channel, start=identity, post=none)"
    ctx = ScreenContext(evaluator.space, evaluator.space.parse(text), 0, evaluator.task)
    for gate in evaluator.screen_gates:
        assert isinstance(gate.check(ctx), Pass), gate.name


def test_what_a_person_gives_wins():
    given = [
        "recipe=short", "recipe.lr=0.5", "anchor=[kan_deep]", "anchor.kan_deep.hidden=[7]", "objective=[training_loss]",
        "anchor@rerank.anchor=[kan]", "recipe@rerank.recipe=short", "rerank.baselines=[mlp]", "gates=none",
        "rerank.objective=validation_loss",
    ]  # fmt: skip
    for order in (["space=kan", "data=functions", *given], [*given, "data=functions", "space=kan"]):
        config = compose_config(order)
        assert config["recipe"] == option("recipe", "short") | {"lr": 0.5}
        assert config["anchor"]["kan_deep"]["hidden"] == [7] and list(config["anchor"]) == ["kan_deep"]
        assert list(config["objective"]) == ["training_loss"]
        assert list(config["rerank"]["anchor"]) == ["kan"]
        assert config["rerank"]["recipe"] == option("recipe", "short")
        assert config["rerank"]["baselines"] == ["mlp"] and config["rerank"]["objective"] == "validation_loss"
        assert set(config["gates"]) == {"structure", "duplicate"}


def test_an_experiment_of_a_persons_own_wins_over_what_suits_its_space(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /space: kan\n  - override /recipe: short\n"
        "rerank: {baselines: [gaussian]}\n"
    )
    config = compose_config(["experiment=mine"], tmp_path)
    assert list(config["anchor"]) == ["kan"]
    assert config["recipe"] == option("recipe", "short")
    assert config["rerank"]["baselines"] == ["gaussian"]
    assert compose_config(["experiment=mine", "recipe=longer"], tmp_path)["recipe"]["steps"] == 300


def test_a_space_of_a_persons_own_can_choose_what_suits_it(tmp_path):
    (tmp_path / "space").mkdir()
    (tmp_path / "space/mine.yaml").write_text("defaults: [kan]\nlayers: 1\n")
    assert list(compose_config(["space=mine"], tmp_path)["anchor"]) == ["kan"]


def test_every_file_of_what_suits_is_some_spaces_or_datas():
    texts = [path.read_text() for group in ("space", "data") for path in (CONF / group).glob("*.yaml")]
    for path in (CONF / "suits").glob("*.yaml"):
        assert any(f"/suits/{path.stem}]" in text for text in texts), path.name


@pytest.mark.parametrize("space", ["kan", "kan_conv"])
def test_a_search_with_its_rerank_and_export_runs_as_typed(normact, space):
    data = ["data=functions"] if space == "kan" else []
    small = [
        "pool=local", "budget.minutes=null", "budget.proposals=3", "recipe.steps=8", "rerank.recipe.steps=8",
        "rerank.finalists=1", "rerank.seeds=2", "rerank.baselines=[gaussian]", "run_dir=run",
    ]  # fmt: skip
    late = [] if data else ["~gates.stall_100"]
    status, out, err = normact("search", f"space={space}", *data, *small, *late)
    assert status == 0, err
    assert "Rerank: test " + ("rmse" if data else "accuracy") in out
    assert "exported #" in out


@pytest.mark.parametrize(
    ("typed", "wrong", "nearest"),
    [
        ("space=kan", "recipe.stepps", "recipe.steps"),
        ("space=kan", "anchor.kan.hiden", "anchor.kan.hidden"),
        ("space=kan", "anchor.kan_deep.hidden", "anchor.kan.hidden"),
        ("data=functions space=kan", "data.functon", "data.function"),
    ],
)
def test_the_nearest_setting_is_one_of_those_that_suit(typed, wrong, nearest):
    with pytest.raises(InputError, match=f"no setting '{re.escape(wrong)}'; the nearest is '{re.escape(nearest)}'"):
        compose_config([*typed.split(), f"{wrong}=3", "recipe.lr=0.1"])


def test_a_space_that_overrides_what_is_not_there_is_named(tmp_path):
    (tmp_path / "space").mkdir()
    (tmp_path / "space/mine.yaml").write_text("defaults: [kan, override /recip: kan]\n")
    with pytest.raises(InputError, match=r"no setting 'recip@space\.recip'"):
        compose_config(["space=mine"], tmp_path)

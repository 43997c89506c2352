"""Every YAML in conf/ composes and makes what it says; what is wrong is said in one line."""

import importlib.util
import sys
from pathlib import Path

import pytest

from normact.launch import config as config_module
from normact.launch.config import (
    add_module_paths,
    budget_of,
    compose_config,
    controller_of,
    front_of,
    gates_of,
    limits_of,
    make,
    patch_of,
    rerank_task_of,
    space_of,
    task_of,
)
from normact.launch.schema import check_form
from normact.launch.trust import check_targets
from normact.search.controllers import Controller
from normact.search.pool import Pool
from normact.spaces import InputError

CONF = Path(config_module.__file__).parents[1] / "conf"
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name != "suits")
LISTS = ("anchor", "objective")

NEEDS = {
    ("anchor", "kan"): ["space=kan"],
    ("anchor", "kan_conv"): ["space=kan_conv"],
    ("anchor", "mlp"): ["space=kan_act", "space.layouts=[NCHW,NLC,NC]"],
    ("data", "functions"): ["space=kan"],
    ("objective", "rmse"): ["space=kan", "data=functions"],
    ("recipe", "functions"): ["space=kan", "data=functions"],
    ("recipe", "kan"): ["space=kan"],
    ("gates", "kan"): ["space=kan"],
}
"""What an option goes with, where that is not the default; by the longest beginning of its name."""


def companions(group, option):
    starts = [(g, name) for g, name in NEEDS if g == group and option.startswith(name)]
    return NEEDS[max(starts, key=lambda start: len(start[1]))] if starts else []


def override(group, option):
    if group == "objective" and option not in ("accuracy", "brier", "rmse", "training_loss", "validation_loss"):
        return f"objective=[validation_loss,{option}]"  # what is none of quality cannot lead
    return f"{group}=[{option}]" if group in LISTS else f"{group}={option}"


def test_the_groups_are_those_that_are_documented():
    groups = {group for group, _ in OPTIONS}
    assert groups == {
        "space", "controller", "gates", "data", "anchor", "recipe", "objective", "pool", "experiment",
    }  # fmt: skip


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_yaml_composes_and_makes_its_objects(group, option, require):
    if option == "fashion_mnist":  # what is trivial there depends on its labels
        there = Path("/usr/share/datasets/fashion-mnist").is_dir()
        require(there, "Fashion-MNIST (apt-get install dataset-fashion-mnist)")
    config = compose_config([*companions(group, option), override(group, option)])
    space = space_of(config)
    task = task_of(config)
    task.check_meets(space)
    rerank_task_of(config).check_meets(space)
    gates = gates_of(config)
    if option == "cmaes":  # none of our spaces is of numbers
        with pytest.raises(InputError, match="CmaEsSampler draws numbers alone, but GraphSpace"):
            controller_of(config, space, front_of(config, task), [])
    else:
        assert isinstance(controller_of(config, space, front_of(config, task), []), Controller)
    budget_of(config)
    limits_of(config)
    assert len({gate.name for gate in gates}) == len(gates) > 0
    pool_class = make(config["pool"], "pool").func
    assert issubclass(pool_class, Pool)


@pytest.mark.parametrize(
    ("front", "names"),
    [("[]", ["validation_loss"]), ("[accuracy]", ["accuracy"]), ("[accuracy,validation_loss]", None)],
)
def test_the_controller_optimises_what_the_front_names(front, names):
    config = compose_config([f"front={front}"])
    controller = controller_of(config, space_of(config), front_of(config, task_of(config)), [])
    assert [objective.name for objective in controller.objectives] == (names or ["accuracy", "validation_loss"])
    assert controller.objective is controller.objectives[0]


def test_a_config_from_before_there_was_a_front_has_the_leading_objective():
    config = compose_config([])
    del config["front"]
    check_form(config)
    assert [objective.name for objective in front_of(config, task_of(config))] == ["validation_loss"]


def test_the_input_comes_from_the_data():
    digits = {"channels": 1, "size": 8, "features": 64, "outputs": 10, "patch": 2}
    assert compose_config(["data=digits"])["input"] == digits
    config = compose_config(["data=fashion_mnist"])
    assert config["input"]["size"] == 28
    assert config["anchor"]["token_mixer"]["size"] == 28
    assert config["anchor"]["token_mixer"]["patch"] == 4
    assert config["rerank"]["anchor"]["token_transformer"]["patch"] == 4


@pytest.mark.parametrize(
    ("size", "patch"),
    [(1, 2), (7, 2), (8, 2), (9, 3), (16, 2), (18, 3), (22, 11), (28, 4), (29, 2), (32, 4), (64, 8), (224, 28)],
)
def test_patches_divide_an_image_into_few_tokens(size, patch):
    assert patch_of(size) == patch


@pytest.mark.parametrize("preset", ["evonorm_b", "evonorm_s", "pointwise"])
def test_presets_hold_what_they_say(preset):
    space = space_of(compose_config([f"space={preset}"]))
    moments = {name.split("_")[0] for name in space.ops if name.endswith(("_mean", "_rms", "_std"))}
    expected = {
        "evonorm_b": {"batch", "instance", "layer", "group"},
        "evonorm_s": {"instance", "layer", "group"},
        "pointwise": set(),
    }
    assert moments == expected[preset]
    if preset != "pointwise":
        assert len(space.ops) == 12 + 3 * len(moments)
        assert space.post_affine
    else:
        assert space.site_kinds == {"norm_act", "act"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data=mnist", "unknown option of data 'mnist'.*digits, fashion_mnist"),
        ("data@rerank.data=mnist", "unknown option of data 'mnist'.*digits, fashion_mnist"),
        ("experiment=frist_search", "unknown option of experiment 'frist_search'; the nearest is 'first_search'"),
        ("data=5", "must be a string or a list. Got int: in one of data=5;"),
        ("experiment=null", "experiment=null; to leave a group out, give ~GROUP"),
        ("budget.minuts=3", "no setting 'budget.minuts'; the nearest is 'budget.minutes'"),
        ("budget", "budget"),
        ("space.nodes=0", "space: .*nodes=0"),
        ("space.ops=[sigmod]", "unknown op 'sigmod'.*'sigmoid'"),
        ("space.layouts=[NHWC]", "unknown layout 'NHWC'"),
        ("recipe.lr=-1", "recipe: .*lr=-1"),
        ("anchor.token_mixer.patch=3", "anchor token_mixer: .*8.*patch=3"),
        ("+gates.mine={_target_: no_such_module.Gate}", "gate mine: .*no_such_module"),
        ("controller.window=none", "controller"),
        ("+controller.wings=2", "controller.*wings"),
        ("seed=${no.such.key}", "no.such"),
        ("front=[accurcy]", "unknown objective 'accurcy'.*'accuracy'"),
        ("front=[accuracy,accuracy]", "front.*names 'accuracy' twice"),
        ("front=accuracy", "front must be a list of texts"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(override, message):
    with pytest.raises(InputError, match=message) as caught:
        config = compose_config([override])
        space, task = space_of(config), task_of(config)
        gates_of(config)
        controller_of(config, space, front_of(config, task), [])
    assert "\n" not in str(caught.value)


class TestTargetsOfARunFolder:
    def test_ours_are_trusted(self):
        check_targets(compose_config([]))

    @pytest.mark.parametrize(
        "target",
        [
            "os.system",
            "normact_evil.run",
            "builtins.eval",
            "system",
            "normact.search.pool.os.system",
            "normact.search.pool.os.path.join",
            "normact.search.ledger.Path",
            "normact.spaces.GraphSpace.__class__",
            "normact.spaces.GraphSpace.__init__.__globals__.get",
            "normact.launch.config.compose_config",
            "normact.launch.main.main",
            "normact.launch.ray_pool.ray.init",
            "normact.search",
            "normact..search.pool.Job",
            7,
        ],
    )
    def test_others_are_not(self, target):
        config = {"gates": {"x": [{"_target_": target}]}}
        with pytest.raises(InputError, match="--allow"):
            check_targets(config)

    def test_nothing_foreign_is_imported(self, tmp_path, monkeypatch):
        (tmp_path / "evil_import.py").write_text("raise SystemExit('imported')")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(InputError, match="--allow evil_import"):
            check_targets({"_target_": "evil_import.Gate"})

    def test_an_interpolation_is_refused_for_it_could_become_a_target(self):
        node = {"_target_": "normact.search.gates.Structure", "x": "${oc.decode:'{_target_: os.system}'}"}
        with pytest.raises(InputError, match="interpolation"):
            check_targets({"gates": node})

    def test_unless_they_are_named_again(self, tmp_path, monkeypatch):
        (tmp_path / "mine_parts").mkdir()
        (tmp_path / "mine_parts/__init__.py").write_text("")
        (tmp_path / "mine_parts/parts.py").write_text("import os\nfrom os import system\nclass Gate: ...\n")
        monkeypatch.syspath_prepend(tmp_path)
        for allowed in ("mine_parts", "mine_parts.parts"):
            check_targets({"gates": {"_target_": "mine_parts.parts.Gate"}}, allowed=[allowed])
        for target in ("mine_partsy.Gate", "mine_parts.parts.os.system", "mine_parts.parts.system"):
            with pytest.raises(InputError, match="which is not ours"):
                check_targets({"gates": {"_target_": target}}, allowed=["mine_parts"])
        with pytest.raises(InputError, match="has no 'Gone'"):
            check_targets({"gates": {"_target_": "mine_parts.parts.Gone"}}, allowed=["mine_parts"])
        with pytest.raises(InputError, match=r"no module 'not_here'.*--config-dir"):
            check_targets({"gates": {"_target_": "not_here.Gate"}}, allowed=["not_here"])


def test_a_persons_folders_come_after_the_standard_library(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.setattr("sys.path", list(sys.path))
    add_module_paths([str(tmp_path)])
    assert sys.path[-1] == str(tmp_path)
    assert Path(importlib.util.find_spec("colorsys").origin).parent != tmp_path

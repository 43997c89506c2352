"""Data that the search never saw: what the rerank is then made for, what it leaves alone, and what is kept of it."""

import copy
import json
import sys

import pytest
import yaml

from normact.launch.changes import changed
from normact.launch.config import compose_config, rerank_task_of
from normact.search.ledger import Ledger
from normact.search.rerank import FIRST_TUNING_SEED
from normact.spaces import InputError
from tests.launch.conftest import TINY, TINY_RERANK

PARTS = """
import torch
from torch import nn
from normact.search.data import Data, TensorData

def split(count, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=g)
    x = torch.randn(count, 3, 6, 6, generator=g)
    x[:, 0] += 3 * y.view(-1, 1, 1)
    return x, y

def colours():
    return TensorData(split(120, 0), split(40, 1), split(40, 2), outputs=3)

def heights():
    parts = [(x, x.mean((1, 2, 3)).unsqueeze(1)) for x, _ in (split(40, seed) for seed in range(3))]
    return TensorData(*parts, outputs=1, loss="mse")

class Model:
    def __init__(self, channels, outputs):
        self.channels, self.outputs = channels, outputs
    def __call__(self, make):
        from normact.search.anchors import Sites
        return nn.Sequential(
            nn.Conv2d(self.channels, 8, 3), Sites(make).norm_act(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, self.outputs),
        )
"""
YAML = {
    "data/colours.yaml": "_target_: held_out_parts.colours\n",
    "data/heights.yaml": "_target_: held_out_parts.heights\n",
    "anchor/digits_model.yaml": "digits_model: {_target_: held_out_parts.Model, channels: 1, outputs: 10}\n",
    "anchor/binary_model.yaml": "binary_model: {_target_: held_out_parts.Model, channels: 3, outputs: 2}\n",
    "experiment/elsewhere.yaml": (
        "# @package _global_\ndefaults: [override /data@rerank.data: functions]\nrerank: {data: {function: chirp}}\n"
    ),
}


@pytest.fixture
def mine(tmp_path_factory, monkeypatch):
    """A folder with data, anchors and an experiment of a person's own."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "held_out_parts.py").write_text(PARTS)
    for name, text in YAML.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr("sys.path", [*sys.path, str(folder)])
    monkeypatch.delitem(sys.modules, "held_out_parts", raising=False)
    return folder


def search_part(config):
    return {name: part for name, part in config.items() if name not in ("rerank", "run_dir")}


# -- a search with held-out data -------------------------------------------------------------------------------


def test_anchors_of_the_rerank_are_made_for_its_data_and_the_search_is_as_without():
    config = compose_config(["data@rerank.data=fashion_mnist", "rerank.data.train_size=1000", "rerank.seeds=9"])
    usual = compose_config(["rerank.seeds=9"])
    assert search_part(config) == search_part(usual)
    anchor = usual["rerank"]["anchor"]["token_transformer"]
    there = config["rerank"]["anchor"]["token_transformer"]
    assert [(node["size"], node["patch"]) for node in (there, anchor)] == [(28, 4), (8, 2)]
    assert config["rerank"]["data"]["train_size"] == 1000
    same = ("finalists", "baselines", "seeds", "objective", "recipe")
    assert [config["rerank"][name] for name in same] == [usual["rerank"][name] for name in same]


def test_what_suits_held_out_data_is_for_the_rerank_alone():
    config = compose_config(["space=kan", "data@rerank.data=functions", "rerank.data.function=chirp"])
    assert search_part(config) == search_part(compose_config(["space=kan"]))
    suited = compose_config(["space=kan", "data=functions", "data.function=chirp"])
    assert config["rerank"] == {**suited["rerank"], "data": suited["data"]}
    both = compose_config(["space=kan", "data=functions", "data@rerank.data=functions", "rerank.data.function=chirp"])
    assert both["rerank"] == config["rerank"]
    assert both["data"]["function"] == "exp_sin"


def test_an_experiment_may_name_held_out_data(mine):
    config = compose_config(["experiment=elsewhere", "space=kan"], mine)
    assert config["rerank"]["data"]["function"] == "chirp"
    assert config["data"] == compose_config([])["data"]


def test_the_rerank_trains_on_the_held_out_data(mine):
    config = compose_config(["data@rerank.data=colours"], mine)
    task = rerank_task_of(config)
    assert task.data.shape == (3, 6, 6)
    assert task.splits.train.x.shape == (120, 3, 6, 6)
    assert task.objective("accuracy").trivial == pytest.approx(max(task.splits.train.y.bincount()) / 120)


# -- a rerank of a run with overrides --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved():
    """The config of a run with anchors that are not as their options are."""
    own = ["anchor@rerank.anchor=[deep_resnet,token_mixer]", "rerank.anchor.deep_resnet.width=4"]
    config = compose_config([*own, "rerank.anchor.token_mixer.depth=1", "rerank.recipe.lr=0.5"])
    return yaml.safe_load(yaml.safe_dump(config))


def test_values_are_changed_and_the_rest_stays(saved):
    before = copy.deepcopy(saved)
    config = changed(saved, ["rerank.seeds=16", "rerank.baselines=[bn_relu,bn_silu]", "limits.train_seconds=900"])
    assert saved == before
    rerank = {**saved["rerank"], "seeds": 16, "baselines": ["bn_relu", "bn_silu"]}
    assert config == {**saved, "rerank": rerank, "limits": {**saved["limits"], "train_seconds": 900}}
    assert changed(saved, []) is saved


def test_settings_that_a_run_of_an_earlier_release_lacks_can_be_changed(saved):
    rerank = {name: value for name, value in saved["rerank"].items() if name not in ("only", "first_seed", "longlist")}
    config = changed({**saved, "rerank": rerank}, ["rerank.only=[3]"])
    assert config == {**saved, "rerank": {**saved["rerank"], "only": [3]}}


def test_other_data_change_of_the_anchors_what_they_take_from_the_data(saved, mine):
    config = changed(saved, ["data@rerank.data=colours", "rerank.anchor.token_mixer.width=16"], mine)
    anchors = copy.deepcopy(saved["rerank"]["anchor"])
    anchors["deep_resnet"] |= {"in_channels": 3, "outputs": 3}
    anchors["token_mixer"] |= {"in_channels": 3, "outputs": 3, "size": 6, "width": 16}
    assert anchors["deep_resnet"]["width"] == 4 and anchors["token_mixer"]["depth"] == 1
    assert config["rerank"]["anchor"] == anchors
    assert config["rerank"]["recipe"] == saved["rerank"]["recipe"]
    assert search_part(config) == search_part(saved)

    larger = changed(saved, ["data@rerank.data=fashion_mnist"])["rerank"]["anchor"]["token_mixer"]
    assert (larger["size"], larger["patch"], larger["depth"]) == (28, 4, 1)
    again = changed(config, ["~data@rerank.data"], mine)
    again["rerank"]["anchor"]["token_mixer"]["width"] = 32
    assert again == saved


def test_a_group_that_is_chosen_replaces_what_was_there(saved):
    config = changed(saved, ["anchor@rerank.anchor=[token_transformer]", "recipe@rerank.recipe=short", "pool=local"])
    fresh = compose_config(["anchor@rerank.anchor=[token_transformer]", "recipe@rerank.recipe=short", "pool=local"])
    assert config["rerank"]["anchor"] == fresh["rerank"]["anchor"]
    assert config["rerank"]["recipe"] == fresh["rerank"]["recipe"]
    assert config["pool"] == fresh["pool"]


def test_what_suits_data_does_not_replace_what_the_run_has():
    run = compose_config(["space=kan", "data=functions", "recipe@rerank.recipe=kan", "rerank.baselines=[mlp]"])
    config = changed(run, ["data@rerank.data=functions", "rerank.data.function=cyclic_5d"])
    assert config["rerank"]["recipe"] == run["rerank"]["recipe"] and config["rerank"]["baselines"] == ["mlp"]
    assert [node["inputs"] for node in config["rerank"]["anchor"].values()] == [5, 5]
    assert config["rerank"]["data"] == {**run["data"], "function": "cyclic_5d"}


@pytest.mark.parametrize("name", ["mine", "x],data@rerank.data=[y", "../../evil", "['", "a b", "null", "a=b", ""])
def test_an_anchor_that_is_no_option_stays_as_it_is(saved, mine, name):
    """A run folder may be somebody else's: its names become no override, and name no file elsewhere."""
    node = {"_target_": "normact.search.anchors.PreActResNet", "in_channels": 1, "outputs": 10}
    run = {**saved, "rerank": {**saved["rerank"], "anchor": {name: node}}}
    config = changed(run, ["data@rerank.data=colours"], mine)
    assert config["rerank"]["anchor"] == run["rerank"]["anchor"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=3"], r"changes in rerank\.\*.* alone, got 'seed=3'"),
        (["data=fashion_mnist"], "alone, got 'data=fashion_mnist'"),
        (["anchor=[deep_resnet]"], "alone, got 'anchor="),
        (["space.nodes=3"], "alone, got 'space.nodes=3'"),
        (["hydra.searchpath=[file:///tmp]"], "alone, got 'hydra.searchpath"),
        (["rerank.seedz=9"], "no setting 'rerank.seedz'; the nearest is 'rerank.seeds'"),
        (["rerank.anchor.deep_resnet.widht=9"], "the nearest is 'rerank.anchor.deep_resnet.width'"),
        (["rerank.seeds=1"], "rerank.seeds must be a whole number of at least 2, got '1'"),
        (["rerank.seeds=many"], "rerank.seeds must be a whole number"),
        (["data@rerank.data=mnist"], "unknown option of data 'mnist'"),
        (["recipe@rerank.recipe=long"], "unknown option of recipe 'long'; the nearest is 'longer'"),
        (["data@rerank.data=null"], "data@rerank.data=null; to leave a group out, give ~GROUP"),
        (["rerank.seeds"], "rerank.seeds"),
    ],
)
def test_overrides_that_cannot_be_are_one_line(saved, overrides, message):
    with pytest.raises(InputError, match=message) as caught:
        changed(saved, overrides)
    assert "\n" not in str(caught.value)


# -- what is kept and shown ------------------------------------------------------------------------------------

FEW = [
    "budget.proposals=1", "start_from=[evonorm_b0]", "export.winner=false", "rerank.recipe.steps=4",
    "rerank.recipe.warmup=1",
]  # fmt: skip


def reranks(normact, *options):
    return json.loads(normact("show", "run", "--json", *options)[1])["reranks"]


def names(rerank):
    return {row["entrant"]["name"] for row in rerank["standings"]}


def test_a_run_is_reranked_on_other_data_and_both_results_are_kept(normact, mine, tmp_path):
    assert normact("search", *TINY, *TINY_RERANK, *FEW, "run_dir=run")[0] == 0
    (first,) = reranks(normact)
    assert (first["data"], first["held_out"]) == ("digits", False)
    assert (first["objective"], first["anchors"], first["steps"]) == ("accuracy", ["deep_resnet"], 4)
    config = (tmp_path / "run/config.yaml").read_text()

    there = ["rerank", "run", "data@rerank.data=colours", "--config-dir", mine]
    status, out, err = normact(*there)
    assert status == 0, err
    title = "Rerank: test accuracy on held-out colours, mean of 2 fresh seeds, 4 steps"
    assert title in out
    with Ledger(tmp_path / "run/ledger.sqlite", write=False) as ledger:
        trained = ledger.count("reranked")
    assert trained == 8  # 2 layers, 2 seeds, 2 data sets
    before, second = reranks(normact)
    assert before == first
    assert (second["data"], second["held_out"], second["seeds"]) == ("colours", True, 2)
    assert names(second) == names(first)
    assert [row["test"] for row in second["standings"]] != [row["test"] for row in first["standings"]]
    shown = normact("show", "run")[1]
    assert title in shown and "Rerank: test accuracy on digits, mean of 2 fresh seeds, 4 steps" in shown

    status, out, err = normact(*there, "rerank.seeds=3", "rerank.baselines=[bn_relu,gn_relu]")
    assert status == 0, err
    before, third = reranks(normact)
    assert before == first and (third["data"], third["seeds"], len(third["standings"])) == ("colours", 3, 3)
    with Ledger(tmp_path / "run/ledger.sqlite", write=False) as ledger:
        assert ledger.count("reranked") == trained + 2 + 3  # a third seed of two layers, three of another

    assert normact("rerank", "run")[0] == 0  # of the run's own config: answered from the ledger, and the latest now
    assert [kept["data"] for kept in reranks(normact)] == ["colours", "digits"]
    assert normact("resume", "run")[0] == 0
    assert (tmp_path / "run/config.yaml").read_text() == config
    with Ledger(tmp_path / "run/ledger.sqlite") as ledger:
        assert ledger.count("reranked") == trained + 5
        ledger.set_meta("standings", first["standings"])  # as an earlier release kept it: the rows alone
    assert reranks(normact) == [{**first, "data": ""}]
    assert "Rerank: test accuracy, mean of 2 fresh seeds, 4 steps" in normact("show", "run")[1]
    assert normact(*there)[0] == 0
    assert [kept["data"] for kept in reranks(normact)] == ["", "colours"]
    assert normact("rerank", "run")[0] == 0
    assert [kept["data"] for kept in reranks(normact)] == ["colours", "digits"]


def test_chosen_candidates_are_judged_on_further_seeds_and_both_results_are_kept(normact, tmp_path):
    few = [part for part in FEW if not part.startswith("start_from")]
    starts = "start_from=[evonorm_b0,bn_silu,bn_relu,'neg(x)']"
    assert normact("search", *TINY, *TINY_RERANK, *few, "budget.proposals=4", starts, "run_dir=run")[0] == 0
    (first,) = reranks(normact)
    status, out, err = normact("rerank", "run", "rerank.only=[1,0]", "rerank.first_seed=2", "rerank.finalists=0")
    assert status == 0, err
    assert "mean of 2 further fresh seeds, 4 steps" in out
    before, second = reranks(normact)
    assert before == first and (first["first_seed"], second["first_seed"]) == (0, 2)
    assert names(second) == {"#1 = bn_silu", "#0 = evonorm_b0", "bn_relu"}
    with Ledger(tmp_path / "run/ledger.sqlite", write=False) as ledger:
        assert ledger.count("reranked") == 2 * 2 + 3 * 2  # no seed of the first is one of the second's
    for numbers, words in (
        ("[9]", "the run has no outcome #9"),
        ("[3]", "#3 was rejected by gate linearity"),
        ("[0,2]", "#2 computes the same as the baseline bn_relu"),
        ("[0,0]", "rerank.only must be a list of different candidates' numbers, got '[0, 0]'"),
    ):
        status, _, err = normact("rerank", "run", f"rerank.only={numbers}")
        assert status == 2 and words in err and len(err.strip().splitlines()) == 1
    assert reranks(normact) == [first, second]
    status, out, err = normact("rerank", "run", "rerank.longlist=2")
    assert status == 0, err
    with Ledger(tmp_path / "run/ledger.sqlite", write=False) as ledger:
        tried = [event.data for event in ledger.events("reranked") if event.data["seed"] >= FIRST_TUNING_SEED]
    assert len(tried) == 3 * 2 and len(reranks(normact)[-1]["standings"]) == 2


def test_a_search_that_ended_goes_on_with_a_larger_budget(normact, tmp_path):
    assert normact("search", *TINY, "budget.proposals=3", "run_dir=run")[0] == 0
    config = (tmp_path / "run/config.yaml").read_text()
    status, out, err = normact("resume", "run", "budget.proposals=5")
    assert status == 0, err
    assert "resumed at 3 proposals" in out and "Funnel: 5 proposals" in out
    assert (tmp_path / "run/config.yaml").read_text() == config
    assert "Funnel: 5 proposals" in normact("resume", "run")[1]
    for override in ("seed=3", "task.device=cuda", "space.nodes=3"):
        status, _, err = normact("resume", "run", override)
        assert status == 2 and f"alone, got '{override}'" in err and len(err.strip().splitlines()) == 1


def test_a_search_with_held_out_data_judges_on_them(normact, mine):
    held_out = ["data@rerank.data=colours", "--config-dir", mine]
    status, out, err = normact("search", *TINY, *TINY_RERANK, *FEW, *held_out, "run_dir=run")
    assert status == 0, err
    assert "Rerank: test accuracy on held-out colours, mean of 2 fresh seeds, 4 steps" in out
    status, _, err = normact("show", "run")
    assert status == 2 and "--allow held_out_parts" in err
    trust = ["--allow", "held_out_parts", "--config-dir", mine]
    assert reranks(normact, *trust)[0]["data"] == "colours"
    status, out, err = normact("rerank", "run", *trust, "~data@rerank.data")
    assert status == 0, err
    assert "on digits, mean of 2" in out
    status, out, _ = normact("search", *TINY, *TINY_RERANK, *held_out, "--dry-run", "run_dir=other")
    assert status == 0 and "# rerank: 4 trainings on colours, about" in out


def test_a_result_that_cannot_be_read_is_one_line(normact, tmp_path):
    assert normact("search", *TINY, "budget.proposals=1", "run_dir=run")[0] == 0
    for standings in ({"x": {}}, {"x": 7}, [{"entrant": "bn"}], {"x": {"standings": [], "anchors": []}}):
        with Ledger(tmp_path / "run/ledger.sqlite") as ledger:
            ledger.set_meta("standings", standings)
        status, _, err = normact("show", "run")
        assert status == 2
        assert "a rerank of the run cannot be read" in err and len(err.strip().splitlines()) == 1


# -- what cannot be judged -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data@rerank.data=digits"], ["rerank.data holds nothing out", "Digits"]),
        (["data@rerank.data=heights"], ["with rerank.data: accuracy needs classes", "loss is mse"]),
        (["data@rerank.data=colours", "anchor@rerank.anchor=[digits_model]"], ["anchor digits_model", "(3, 6, 6)"]),
        (
            ["data@rerank.data=colours", "anchor@rerank.anchor=[binary_model]"],
            ["anchor 'binary_model' has 2 outputs, but the data have 3 classes"],
        ),
        (
            ["data@rerank.data=colours", "anchor@rerank.anchor=[token_mixer]", "rerank.anchor.token_mixer.patch=4"],
            ["with rerank.data: anchor token_mixer: image size 6 is not divisible by patch=4"],
        ),
        (
            ["data@rerank.data=fashion_mnist", "rerank.data.folder=/no/such/folder"],
            ["rerank.data", "apt-get install dataset-fashion-mnist"],
        ),
    ],
)
def test_held_out_data_that_cannot_judge_are_refused_before_anything_runs(normact, mine, tmp_path, overrides, words):
    base = [part for part in TINY_RERANK if "rerank.anchor" not in part] if "anchor@" in str(overrides) else TINY_RERANK
    status, _, err = normact("search", *TINY, *base, *overrides, "--config-dir", mine, "run_dir=run")
    assert status == 2
    assert all(word in err for word in words), err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_few_seeds_are_said_to_be_preliminary_before_it_starts(normact):
    note = "# note: rerank.seeds=7 gives preliminary verdicts; a claim needs 8 or more"
    for seeds, noted in ((7, True), (8, False)):
        arguments = [part for part in TINY_RERANK if not part.startswith("rerank.seeds")]
        status, out, _ = normact("search", *TINY, *arguments, f"rerank.seeds={seeds}", "--dry-run", "run_dir=run")
        assert status == 0
        assert (note in out) == noted


def test_a_run_without_finds_has_no_rerank(normact):
    nothing = ["budget.proposals=3", "gates.stall_30.low=-1e9", "gates.stall_30.high=1e9"]
    assert normact("search", *TINY, *TINY_RERANK, *nothing, "run_dir=run")[0] == 0
    status, _, err = normact("rerank", "run")
    assert status == 2
    assert "run has no finalist: nothing passed every gate" in err and len(err.strip().splitlines()) == 1

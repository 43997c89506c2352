"""Each wrong call is answered by one line, and leaves the model as it was."""

import functools

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from normact.spaces import ChannelAffine, GraphLayer, InputError, LayerOptions, named
from normact.spaces.swap import replace_layers
from tests.spaces.swap.swapping import Attributes, Block, Functional, exported, make, post_activation_allowed, unchanged

X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def bn_relu():
    return nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def branching(m, x):
    return m.n(x) if x.sum() > 0 else m.a(m.n(x))


def untraceable():
    return Attributes(branching, n=nn.BatchNorm2d(4), a=nn.ReLU())


def tokens():
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU())


def vectors():
    return nn.Sequential(nn.BatchNorm1d(6), nn.ReLU())


def wide():
    return nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.BatchNorm2d(10), nn.ReLU())


def mixed():
    """What can be replaced comes before what cannot."""
    return nn.Sequential(Block(), Functional(), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(1), *vectors())


S0 = named("evonorm_s0").graph
CASES = [
    # a layer that cannot serve a layout
    (
        vectors,
        "evonorm_b0",
        {},
        "norm '0': cannot build .*: instance moments are left out: the set is empty for layout NC",
    ),
    (vectors, exported("evonorm_b0"), {}, r"my_evonorm_b0 cannot stand at norm '0' \(6 channels, NC\): layout must be"),
    (tokens, timm.layers.EvoNorm2dS0, {"example_inputs": torch.ones(2, 3, 4)}, "EvoNorm2dS0 .* knows no layout='NLC'"),
    (tokens, functools.partial(timm.layers.EvoNorm2dS0, groups=2), {}, "EvoNorm2dS0 .* serves NCHW alone"),
    # group sizes
    (wide, S0, {"group_size": 4}, "group_size=4 does not divide the 10 channels of norm '3'"),
    (wide, S0, {"group_size": 0}, "group_size=0 does not divide the 4 channels"),
    (wide, exported("evonorm_s0"), {"group_size": 4}, r"norm '3' \(10 channels, NCHW\): group_size=4 does not divide"),
    (wide, timm.layers.EvoNorm2dS0, {"group_size": 4}, r"EvoNorm2dS0 cannot stand at norm '3' \(10 channels"),
    # nothing to replace
    (lambda: nn.Sequential(nn.Conv2d(4, 4, 3)), "bn_relu", {}, "Sequential has nothing to replace: no BatchNorm1d"),
    (
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)),
        "bn_relu",
        {},
        "any of its 1 norms, such as '0'; lone=",
    ),
    (
        lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)),
        "bn_relu",
        {},
        "nothing to replace: no activation right behind",
    ),
    (
        lambda: nn.Sequential(nn.LayerNorm((5, 5)), nn.ReLU()),
        "bn_relu",
        {},
        r"'0' was left, it normalizes over several",
    ),
    (lambda: nn.Sequential(nn.LocalResponseNorm(2), nn.ReLU()), "bn_relu", {}, "LocalResponseNorm is no normalization"),
    # reading the model
    (untraceable, "bn_relu", {}, r"forward of Attributes cannot be traced \(symbolically .*; give example_inputs="),
    (bn_relu, "bn_relu", {"example_inputs": torch.ones(2, 3, 5, 5)}, r"Sequential fails on example_inputs \(Given"),
    # what is asked for
    (bn_relu, "bn_rleu", {}, "unknown layer 'bn_rleu'; the nearest is 'bn_relu'"),
    (bn_relu, "bn_relu", {"lone": "drop"}, "unknown lone= 'drop'; .*known: affine, keep, layer"),
    (bn_relu, "bn_relu", {"after_add": "pointwize"}, "unknown after_add= 'pointwize'; the nearest is 'pointwise'"),
    (bn_relu, nn.BatchNorm2d, {}, "BatchNorm2d takes num_features but no apply_act"),
    (bn_relu, nn.ReLU(), {}, "a layer is a LayerGraph, an expression, .* got ReLU"),
    (bn_relu, 3, {}, "got int"),
    (bn_relu, exported("bn_relu"), {"options": LayerOptions()}, "options= is for layer graphs"),
    (bn_relu, make, {"group_size": 2}, "a function of a site decides by itself"),
    (bn_relu, lambda site: None, {}, "for site 0 came a NoneType, not a torch module"),
    (bn_relu, lambda n, apply_act=True: None, {}, "gave a NoneType, not a torch module"),
    # a failure after much was planned, also of modules to rewrite
    (mixed, "evonorm_b0", {}, "norm '5': cannot build"),
    (lambda: nn.Sequential(Block()), timm.layers.EvoNorm2dB0, {"after_add": "pointwise"}, "EvoNorm2dB0 does not tell"),
    (
        lambda: nn.Sequential(Block()),
        "affine(div(add(x, neg(batch_mean(x))), batch_std(x)))",
        {"after_add": "pointwise"},
        "there is no pointwise part",
    ),
]


@pytest.mark.parametrize(("model", "layer", "kw", "match"), CASES, ids=[case[3][:40] for case in CASES])
def test_one_line_says_it_and_the_model_stays(model, layer, kw, match):
    model = model()
    with unchanged(model), post_activation_allowed(), pytest.raises(InputError, match=match) as caught:
        replace_layers(model, layer, **kw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("example", [None, X])
def test_an_error_of_the_maker_leaves_outputs_and_statistics_as_they_were(example):
    model = nn.Sequential(Block(), Functional(), nn.BatchNorm2d(4), nn.ReLU())

    def failing(site):
        if site.index == 3:
            raise ZeroDivisionError
        return ChannelAffine(site.in_features)

    with unchanged(model, X), pytest.raises(ZeroDivisionError):
        replace_layers(model, failing, example_inputs=example)


def test_an_error_while_the_modules_are_put_in_leaves_the_model_as_it_was(monkeypatch):
    class Refuses(dict):
        def __setitem__(self, name, module):
            raise KeyboardInterrupt

    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    model[2]._modules = Refuses(model[2]._modules)
    with unchanged(model, X), pytest.raises(KeyboardInterrupt):
        replace_layers(model, "bn_relu")


def test_a_run_leaves_the_model_and_the_generator_as_they_were():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).train()
    state, generator = model.state_dict(), torch.get_rng_state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    replace_layers(model, "bn_relu", lone="keep", carry=False, example_inputs=X)
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(state[name], kept[name]) for name in kept)


def remembering(m, x):
    m.seen = x
    return F.relu(m.n(x))


def test_what_a_forward_leaves_on_its_module_while_it_is_traced_is_taken_away():
    model = Attributes(remembering, n=nn.BatchNorm2d(4))
    replace_layers(model, "bn_relu")
    assert not hasattr(model, "seen") and isinstance(model.n, GraphLayer)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


def test_a_norm_with_a_forward_of_its_own_is_left():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), OwnNorm(4), nn.ReLU())
    assert replace_layers(model, "bn_relu").left == (("2", "OwnNorm has a forward of its own"),)
    assert type(model[2]) is OwnNorm


def test_a_norm_that_was_not_run_yet_is_left():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.LazyBatchNorm2d(), nn.ReLU())
    assert replace_layers(model, "bn_relu").left == (("2", "its channels are not known before it is first run"),)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_compiled_model_is_refused():
    model = bn_relu().eval()
    for compiled in (torch.compile(model), torch.jit.script(model)):
        with unchanged(model, X), pytest.raises(InputError, match="is compiled already and cannot be changed"):
            replace_layers(compiled, "bn_relu")


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_scripted_child_stays_and_the_rest_is_swapped():
    scripted = torch.jit.script(bn_relu())
    model = nn.Sequential(scripted, nn.BatchNorm2d(4), nn.ReLU())
    expected = model.eval()(X)
    assert replace_layers(model, "bn_relu").pairs == (("1", "2"),)
    assert model[0] is scripted
    torch.testing.assert_close(model(X), expected)


def test_hooks_that_go_with_a_norm_are_said():
    model = bn_relu()
    model[1].register_forward_hook(lambda module, args, y: None)
    assert replace_layers(model, "bn_relu").notes == ("the hooks of a BatchNorm2d went with it; register them anew",)

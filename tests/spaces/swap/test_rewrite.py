import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normact.spaces import GraphLayer
from normact.spaces.swap import replace_layers
from tests.spaces.swap.swapping import (
    Attributes,
    Block,
    Functional,
    check_swapped,
    exported,
    lived_in,
    post_activation_allowed,
)

X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    """Untraceable at the top; its blocks are not."""

    def __init__(self):
        super().__init__()
        self.block, self.functional = Block(), Functional()
        self.norm, self.act = nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        x = self.act(self.norm(self.functional(self.block(x))))
        return x if x.sum() > 0 else -x


class WithAux(nn.Module):
    """A head that is used in training alone, with a function behind a norm."""

    def __init__(self):
        super().__init__()
        self.bn, self.aux_bn = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        if self.training:
            x = x + F.relu(self.aux_bn(x)) * 0.1
        return torch.relu(self.bn(x))


FUNCTIONS = {
    "F.relu": lambda m, x: F.relu(m.n(x)),
    "in place": lambda m, x: F.relu(m.n(x), inplace=True),
    "torch.relu": lambda m, x: torch.relu(m.n(x)),
    "method": lambda m, x: m.n(x).relu(),
    "method in place": lambda m, x: m.n(x).relu_(),
    "clamp": lambda m, x: m.n(x).clamp(min=0),
    "its result ignored": lambda m, x: [y := m.n(x), torch.relu_(y), y * 1.0][-1],
    "asked for its shape": lambda m, x: [y := m.n(x), F.relu(y).view(y.shape[0], y.size(1), 5, 5)][-1],
    "through an identity": lambda m, x: F.relu(m.i(m.n(x))),
}


@pytest.mark.parametrize("example", [None, X], ids=["trace", "run"])
@pytest.mark.parametrize("forward", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function_behind_a_norm_goes_with_it(forward, example):
    model = lived_in(Attributes(forward, n=nn.BatchNorm2d(4), i=nn.Identity()))
    expected = model.eval()(X)
    report = replace_layers(model, "bn_relu", example_inputs=example)
    assert len(report.pairs) == 1 and report.rewritten == ("",)
    torch.testing.assert_close(model(X), expected)
    replaced = Attributes(forward, n=nn.BatchNorm2d(4), i=nn.Identity())
    replace_layers(replaced, "tanh(x)", example_inputs=example)
    torch.testing.assert_close(replaced(X), torch.tanh(X))


@pytest.mark.parametrize("example", [None, X], ids=["trace", "run"])
@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: [y := m.n(x), y * torch.sigmoid(y)][-1],
        lambda m, x: [y := m.n(x), m.s(y) * y][-1],
        lambda m, x: [y := m.n(x), y.mul_(y.sigmoid())][-1],
    ],
)
def test_x_times_its_sigmoid_is_one_activation(forward, example):
    model = Attributes(forward, n=nn.BatchNorm2d(4), s=nn.Sigmoid())
    assert len(replace_layers(model, "tanh(x)", example_inputs=example).pairs) == 1
    torch.testing.assert_close(model(X), torch.tanh(X))


@pytest.mark.parametrize("example", [None, X], ids=["trace", "run"])
def test_a_norm_whose_output_is_used_elsewhere_too_is_alone(example):
    both = {
        "also added": lambda m, x: [y := m.n(x), F.relu(y) + y][-1],
        "also given out": lambda m, x: [y := m.n(x), (F.relu(y), y)][-1],
        "gated by another": lambda m, x: m.n(x) * torch.sigmoid(x),
        "read before it changes": lambda m, x: [y := m.n(x), z := y * 2.0, y.relu_() + z][-1],
    }
    for forward in both.values():
        first = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
        model = nn.Sequential(first, Attributes(forward, n=nn.BatchNorm2d(4)))
        report = replace_layers(model, "bn_relu", example_inputs=example)
        assert (report.pairs, report.norms) == ((("0.0", "0.1"),), ("1.n",))


@pytest.mark.parametrize("example", [None, X], ids=["trace", "run"])
def test_a_shared_relu_goes_from_behind_the_norm_and_stays_behind_the_addition(example):
    model = lived_in(nn.Sequential(Block(), Block())).eval()
    block = copy.deepcopy(model[0])
    with post_activation_allowed():
        report = replace_layers(model, "tanh(x)", lone="keep", example_inputs=example)
    assert report.pairs == (("0.bn1", "0.relu"), ("1.bn1", "1.relu"))
    assert report.rewritten == ("0", "1") and isinstance(model[0], Block) and type(model[0]) is type(model[1])
    expected = F.relu(block.bn2(block.conv2(torch.tanh(block.conv1(X)))) + X)
    torch.testing.assert_close(model[0](X), expected)
    check_swapped(model, X)


def test_a_rewritten_forward_keeps_its_arguments_and_its_two_modes():
    model = lived_in(Functional())
    other = copy.deepcopy(model)
    replace_layers(model, "bn_relu")
    for training in (False, True):
        torch.manual_seed(0)
        expected = other.train(training)(X)
        torch.manual_seed(0)
        torch.testing.assert_close(model.train(training)(X), expected)
    with pytest.raises(AssertionError, match="mask has been specialized"):
        model(X, mask=X)
    check_swapped(model.eval(), X)


def test_a_call_that_is_made_in_training_alone_is_seen_and_taken_out_there():
    model = WithAux()
    report = replace_layers(model, "tanh(x)")
    assert {norm for norm, _ in report.pairs} == {"bn", "aux_bn"}
    torch.testing.assert_close(model.train()(X), torch.tanh(X + torch.tanh(X) * 0.1))
    torch.testing.assert_close(model.eval()(X), torch.tanh(X))


def test_a_forward_that_branches_is_read_from_a_run_and_its_blocks_are_rewritten():
    model = lived_in(Branching()).eval()
    expected = model(X)
    with post_activation_allowed():
        report = replace_layers(model, "bn_relu", example_inputs=(X,))
    assert report.how == "run" and report.rewritten == ("block", "functional")
    assert [norm for norm, _ in report.pairs] == ["block.bn1", "functional.bn1", "functional.bn2", "norm"]
    torch.testing.assert_close(model(X), expected)


def branching_relu(m, x):
    y = F.relu(m.n(x))
    return y if y.sum() > 0 else -y


def own_tensor(m, x):
    return F.relu(m.n(x)) + torch.ones(1)


def on_instance():
    model = Attributes(lambda m, x: x, n=nn.BatchNorm2d(4))
    model.forward = lambda x: F.relu(model.n(x))
    return model


CANNOT = {
    "cannot be traced": Attributes(branching_relu, n=nn.BatchNorm2d(4)),
    "was set on the instance": on_instance(),
    "a GraphModule cannot be rewritten": torch.fx.symbolic_trace(
        Attributes(lambda m, x: F.relu(m.n(x)), n=nn.BatchNorm2d(4))
    ),
}


@pytest.mark.parametrize("why", CANNOT)
def test_what_cannot_be_rewritten_is_left_and_said(why):
    norm = CANNOT[why].n
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), CANNOT[why])
    example = X if "traced" in why else None
    report = replace_layers(model, "bn_relu", example_inputs=example)
    assert report.pairs == (("0", "1"),)
    ((name, reason),) = report.left
    assert name == "2.n" and why in reason and "relu() in 2" in reason
    assert CANNOT[why].n is norm and isinstance(model[0], GraphLayer)


def test_a_block_that_is_used_in_two_ways_is_left():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.Sequential(Attributes(lambda m, x: F.relu(x)), nn.ReLU())
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.relu(self.relu(self.norm(x)))

    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), Shared())
    assert replace_layers(model, "bn_relu").norms == ("2.norm",)  # what follows is not known to be an activation


@pytest.mark.parametrize("mode", [True, False])
def test_a_rewritten_model_exports_and_compiles(mode):
    model = nn.Sequential(Block(), Functional()).train(mode)
    model[1].p = 0.0
    with post_activation_allowed():
        replace_layers(model, exported("bn_silu"))
    state = copy.deepcopy(model.state_dict())
    expected = model(X)
    model.load_state_dict(state)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), expected)
    model.load_state_dict(state)
    program = torch.export.export(model, (X,))
    torch.testing.assert_close(program.module()(X), expected)


def test_state_goes_through_pickle_into_another_swapped_model():
    def swapped():
        model = lived_in(nn.Sequential(Block(), Functional()))
        with post_activation_allowed():
            replace_layers(model, "evonorm_b0")
        return model

    one, two = swapped(), swapped()
    with torch.no_grad():
        for p in one.parameters():
            p.add_(0.1)
    two.load_state_dict(pickle.loads(pickle.dumps(one.state_dict())))
    assert torch.equal(one.eval()(X), two.eval()(X))

"""Measures of cost: counts by hand and by another implementation, BN-ReLU beside itself."""

import weakref

import pytest
import torch
from torch import nn

from normact.search.anchors import KanConvNet, KanNet, PreActResNet, TokenNet
from normact.search.measures import Parameters, RelativeMemory, RelativeTime, ValidationLoss
from normact.search.measures.baseline import baseline_layer
from normact.search.measures.costs import Placed, held_bytes
from normact.search.training import drawing_from
from normact.spaces import CATALOGUE, GraphLayer, InputError, KanSpace, Site
from tests.tasks import layer, small_task

COSTS = [ValidationLoss(), Parameters(), RelativeTime(), RelativeMemory()]


def costs(anchor, make, measures=COSTS, **recipe):
    """The values on an anchor, no step trained."""
    task = small_task(steps=1, anchors={"net": anchor}, measures=measures, **recipe)
    training = task.start("net", make, seed=0)
    training.step = 1
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    found = task.measure(training)
    for name, value in training.model.state_dict().items():
        assert "running" in name or torch.equal(value, before[name])
    return found


@pytest.mark.parametrize("anchor", [PreActResNet(2, 3, width=4, blocks=(1,)), TokenNet(2, 6, 3, width=8, depth=1)])
def test_bn_relu_costs_as_much_as_itself(anchor):
    found = costs(anchor, layer("bn_relu"))
    assert found["parameters"] == found["relative_memory"] == 1
    assert 0.5 < found["relative_time"] < 2


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["evonorm_b0", "evonorm_s0", "frn_tlu"])
def test_parameters_are_those_of_the_whole_net(name):
    anchor = PreActResNet(2, 3, width=4, blocks=(1, 1))
    expected = count(anchor(layer(name))) / count(anchor(layer("bn_relu")))
    assert expected > 1
    assert costs(anchor, layer(name), [ValidationLoss(), Parameters()])["parameters"] == pytest.approx(expected)


def test_kans_are_compared_with_linear_maps():
    """[72, 4, 3]: a linear map has 72 * 4 + 4 and 4 * 3 + 3 parameters."""
    space = KanSpace()
    candidate = space.parse("kan(gaussian(grid=8), base=none, normalizer=none)")
    net = KanNet(72, [4], 3)
    found = costs(net, lambda site: space.build(candidate, site))
    own = count(net(lambda site: space.build(candidate, site)))
    assert own > 8 * (72 * 4 + 4 * 3)
    assert found["parameters"] == pytest.approx(own / (72 * 4 + 4 + 4 * 3 + 3))
    assert found["relative_memory"] > 1


def test_convolutional_kans_are_compared_with_convolutions():
    anchor = KanConvNet(2, 3, widths=(4,), strides=(2,))
    found = costs(anchor, lambda site: nn.Conv2d(2, 4, 3, 2, 1, bias=False), [ValidationLoss(), Parameters()])
    convolution, head = 2 * 4 * 9, 4 * 3 + 3
    assert found["parameters"] == pytest.approx((convolution + head) / (convolution + 4 + head))


def test_a_layer_that_does_more_takes_longer():
    def eight(site):
        return nn.Sequential(*(layer("bn_relu")(site) for _ in range(8)))

    found = costs(PreActResNet(2, 3, width=8, blocks=(1,)), eight, batch_size=64)
    assert found["relative_time"] > 2
    assert found["relative_memory"] > 4


def test_the_baseline_follows_the_site():
    x = torch.randn(4, 6, 5, 5)
    with drawing_from(0):
        bn = baseline_layer(Site("norm_act", 0, 6, activation=False))(x)
    assert torch.allclose(bn, nn.BatchNorm2d(6)(x), atol=1e-4)
    assert torch.allclose(baseline_layer(Site("norm_act", 0, 6))(x), bn.relu(), atol=1e-5)
    assert torch.equal(baseline_layer(Site("act", 0, 6))(x), x.relu())
    assert (baseline_layer(Site("linear", 0, 6, 3, layout="NC"))(x[..., 0, 0]) >= 0).all()
    with pytest.raises(InputError, match="no baseline is known for a site of kind 'conv'"):
        baseline_layer(Site("conv", 0, 6, 3))


# -- memory -----------------------------------------------------------------------------------------------------

MAP = 8 * 4 * 6 * 6 * 4
"""Bytes of a tensor like `place`'s x."""


def place(module):
    x = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    return Placed(module.train(), x.requires_grad_())


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class KeepsThree(torch.autograd.Function):
    """Keeps tensors where hooks on saved tensors do not see them."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = [x + 1, x + 2, x + 3]
        return x + 4

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Identity(), MAP),  # the output, which is the input
        (nn.ReLU(), MAP),  # the output, from which the derivative is computed
        (Function(lambda x: x + 1), MAP),
        (Function(lambda x: x * x), 2 * MAP),  # the input once, and the output
        (Function(lambda x: x.exp().exp()), 2 * MAP),
        (Function(lambda x: (x + 1).view(-1, 6).t()), MAP),  # views of one storage
        (nn.BatchNorm2d(4), 2 * MAP + 2 * 4 * 4),  # input, output, mean and inverse deviation of 4 channels
        (Function(KeepsThree.apply), 4 * MAP),
    ],
)
def test_memory_is_what_is_held_between_forward_and_backward(module, expected):
    assert held_bytes(place(module)) == expected


class Saved:
    """What autograd has instead of a tensor that it saves; gone when the node that saved it is."""

    def __init__(self, tensor):
        self.tensor = tensor


def held_by_hooks(place):
    """Another implementation: what autograd has saved, as its hooks see it, and the output; by storage."""
    alive = weakref.WeakSet()

    def save(tensor):
        saved = Saved(tensor.detach())
        alive.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(save, lambda saved: saved.tensor):
        y = place.layer(place.x.clone())
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in [y, *(s.tensor for s in alive)]}
    for tensor in (*place.layer.parameters(), *place.layer.buffers()):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("name", CATALOGUE)
def test_memory_of_layers_run_node_by_node_is_what_hooks_on_saved_tensors_see(name):
    small = place(GraphLayer(CATALOGUE[name].graph, 4))
    assert held_bytes(small) == held_by_hooks(small)


def test_memory_that_a_layer_keeps_on_its_own_is_seen():
    """Large inputs go through one autograd function with a tape: hooks see no more than x and the vectors."""
    x = torch.randn(64, 16, 8, 8, requires_grad=True)
    large = Placed(GraphLayer(CATALOGUE["evonorm_b0"].graph, 16), x)
    assert held_by_hooks(large) < 2.1 * x.numel() * 4 < held_bytes(large)


@pytest.mark.parametrize("setting", [{"rounds": 0}, {"warmup": -1}])
def test_rounds_out_of_range_are_refused(setting):
    with pytest.raises(InputError, match=r"rounds >= 1 and warmup >= 0"):
        RelativeTime(**setting)

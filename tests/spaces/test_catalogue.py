"""Each named layer against an independent formula, over training steps, then in evaluation."""

import copy

import pytest
import timm.layers as timm_layers
import torch
import torch.nn.functional as F
from torch import nn

from normact.spaces import CATALOGUE, GraphLayer, InputError, LayerOptions, named, parse, read_layer

C = 12
GROUPS = 3
EPS = 1e-4


class Frn(nn.Module):
    """Filter Response Normalization and Thresholded Linear Unit, arXiv 1911.09737, section 3."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, C, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, C, 1, 1))
        self.tau = nn.Parameter(torch.zeros(1, C, 1, 1))

    def forward(self, x):
        nu2 = x.float().pow(2).mean((2, 3), keepdim=True) if x.dtype == torch.bfloat16 else x.pow(2).mean((2, 3), True)
        y = self.gamma * x * torch.rsqrt(nu2 + EPS).to(x.dtype) + self.beta
        return torch.maximum(y, self.tau)


class Crrelu(nn.Module):
    """arXiv 2405.12954: max(0, x) + eps x exp(-x^2 / 2), eps from 0.01."""

    def __init__(self):
        super().__init__()
        self.eps = nn.Parameter(torch.tensor([0.01]))

    def forward(self, x):
        return F.relu(x) + self.eps * x * torch.exp(-x.pow(2) / 2)


class TokenNorm(nn.Module):
    """Layer norm over the channels of NCHW, by moving them last."""

    def __init__(self, act):
        super().__init__()
        self.norm = nn.LayerNorm(C, EPS)
        self.act = act

    def forward(self, x):
        return self.act(self.norm(x.movedim(1, -1)).movedim(-1, 1))


class EvoNorm(nn.Module):
    """The six formulas of the paper's table (arXiv 2004.02967), in plain torch."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.gamma = nn.Parameter(torch.ones(C))
        self.beta = nn.Parameter(torch.zeros(C))
        if kind in ("b0", "s0"):
            self.v = nn.Parameter(torch.ones(C))
        if kind[0] == "b":
            self.register_buffer("running", torch.ones(C))

    def batch_std(self, x):
        if self.training:
            with torch.no_grad():
                columns = x.transpose(0, 1).reshape(C, -1)
                self.running.mul_(0.9).add_(0.1 * columns.var(1, unbiased=True))
            centred = x - x.mean((0, 2, 3), keepdim=True)
            return (centred.pow(2).mean((0, 2, 3), keepdim=True) + EPS).sqrt()
        return (self.running.view(1, C, 1, 1) + EPS).sqrt()

    def group(self, x, centre):
        n, _, h, w = x.shape
        parts = x.view(n, GROUPS, -1)
        if centre:
            parts = parts - parts.mean(2, keepdim=True)
        root = (parts.pow(2).mean(2, keepdim=True) + EPS).sqrt()
        return root.expand_as(parts).reshape(n, C, h, w)

    def forward(self, x):
        gamma, beta = self.gamma.view(1, C, 1, 1), self.beta.view(1, C, 1, 1)
        v = self.v.view(1, C, 1, 1) if hasattr(self, "v") else None
        instance_std = (x.var((2, 3), unbiased=False, keepdim=True) + EPS).sqrt()
        instance_rms = (x.pow(2).mean((2, 3), keepdim=True) + EPS).sqrt()
        y = {
            "b0": lambda: x / torch.maximum(self.batch_std(x), v * x + instance_std),
            "b1": lambda: x / torch.maximum(self.batch_std(x), (x + 1) * instance_rms),
            "b2": lambda: x / torch.maximum(self.batch_std(x), instance_rms - x),
            "s0": lambda: x * torch.sigmoid(v * x) / self.group(x, centre=True),
            "s1": lambda: x * torch.sigmoid(x) / self.group(x, centre=True),
            "s2": lambda: x * torch.sigmoid(x) / self.group(x, centre=False),
        }[self.kind]()
        return y * gamma + beta


def batch_norm(act):
    return nn.Sequential(nn.BatchNorm2d(C, EPS), act)


def group_norm(act):
    return nn.Sequential(nn.GroupNorm(GROUPS, C, EPS), act)


class Found(nn.Module):
    """max(0, y) + s y exp(sigma), sigma the deviation of max(0, y) over each example."""

    def __init__(self):
        super().__init__()
        self.s = nn.Parameter(torch.tensor([0.01]))

    def forward(self, y):
        sigma = (y.relu().var((1, 2, 3), unbiased=False, keepdim=True) + EPS).sqrt()
        return y.relu() + self.s * y * sigma.exp()


BY_FORMULA = {
    "bn_relu": lambda: batch_norm(nn.ReLU()),
    "bn_prelu": lambda: batch_norm(nn.PReLU()),
    "bn_silu": lambda: batch_norm(nn.SiLU()),
    "gn_relu": lambda: group_norm(nn.ReLU()),
    "gn_silu": lambda: group_norm(nn.SiLU()),
    "ln_gelu": lambda: TokenNorm(nn.GELU()),
    "frn_tlu": Frn,
    "bn_crrelu": lambda: batch_norm(Crrelu()),
    "normact_b0": lambda: batch_norm(Found()),
    **{f"evonorm_{kind}": (lambda kind=kind: EvoNorm(kind)) for kind in ("b0", "b1", "b2", "s0", "s1", "s2")},
}

BY_TIMM = {
    "evonorm_b0": lambda: timm_layers.EvoNorm2dB0(C, eps=EPS),
    "evonorm_b1": lambda: timm_layers.EvoNorm2dB1(C, eps=EPS),
    "evonorm_b2": lambda: timm_layers.EvoNorm2dB2(C, eps=EPS),
    "evonorm_s0": lambda: timm_layers.EvoNorm2dS0(C, groups=GROUPS, eps=EPS),
    "evonorm_s1": lambda: timm_layers.EvoNorm2dS1(C, groups=GROUPS, eps=EPS),
    "evonorm_s2": lambda: timm_layers.EvoNorm2dS2(C, groups=GROUPS, eps=EPS),
}

# Ours -> theirs, for parameters and running statistics; longest names first where one is part of another.
NAMES = {
    "v1": ("0.weight", "norm.weight", "gamma", "v"),
    "v0": ("0.bias", "norm.bias", "beta"),
    "v0_2": ("tau",),
    "s0p01": ("1.eps", "1.s"),
    "s0p25": ("1.weight",),
    "weight": ("gamma", "weight"),
    "bias": ("beta", "bias"),
    "running_mean": ("0.running_mean",),
    "running_var": ("0.running_var", "running", "running_var"),
}


def pairs(ours, theirs):
    """The tensors of both states that mean the same."""
    state = {name: t for name, t in theirs.state_dict().items() if "num_batches" not in name}
    found = {}
    for name, tensor in ours.state_dict().items():
        candidates = [other for other in NAMES[name] if other in state and other not in found.values()]
        if name == "v1" and "weight" in dict(ours.named_parameters()):
            candidates = ["v"]
        found[name] = candidates[0]
        assert state[candidates[0]].numel() == tensor.numel()
    assert sorted(found.values()) == sorted(state)
    return [(name, tensor, state[found[name]].flatten()) for name, tensor in ours.state_dict().items()]


def batches(dtype, count=4):
    generator = torch.Generator().manual_seed(3)
    for k in range(count):
        x = torch.randn(6, C, 4, 5, generator=generator, dtype=torch.float64) * (1 + 0.5 * k) + 0.3 * k - 0.2
        target = torch.randn(6, C, 4, 5, generator=generator, dtype=torch.float64)
        yield x.to(dtype), target.to(dtype)


def disturb(ours, theirs):
    """Start both from the same parameters, away from 0 and 1."""
    generator = torch.Generator().manual_seed(11)
    parameters = dict(ours.named_parameters())
    other = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, mine, _ in pairs(ours, theirs):
            if name not in parameters:
                continue
            value = mine + 0.3 * torch.randn(mine.shape, generator=generator, dtype=torch.float64).to(mine.dtype)
            target = next(p for key, p in other.items() if key == partner(ours, theirs, name))
            parameters[name].copy_(value)
            target.copy_(value.view_as(target))


def partner(ours, theirs, name):
    theirs_by_pointer = {t.data_ptr(): key for key, t in theirs.state_dict().items()}
    return next(theirs_by_pointer[t.data_ptr()] for n, _, t in pairs(ours, theirs) if n == name)


def train_step(module, optimiser, x, target):
    x = x.clone().requires_grad_()
    y = module(x)
    optimiser.zero_grad()
    (y * target).mean().backward()
    optimiser.step()
    return y.detach(), x.grad


TOLERANCES = {torch.float64: (1e-9, 1e-10), torch.float32: (2e-4, 2e-5)}


def compare(ours, theirs, dtype):
    rtol, atol = TOLERANCES[dtype]
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    disturb(ours, theirs)
    optimisers = [torch.optim.SGD(m.parameters(), lr=5.0, momentum=0.9) for m in (ours, theirs)]
    before = copy.deepcopy(dict(ours.named_parameters()))
    for x, target in batches(dtype):
        y, grad = train_step(ours, optimisers[0], x, target)
        other, other_grad = train_step(theirs, optimisers[1], x, target)
        torch.testing.assert_close(y, other, rtol=rtol, atol=atol)
        torch.testing.assert_close(grad, other_grad, rtol=rtol, atol=atol)
    for name, mine, other in pairs(ours, theirs):
        torch.testing.assert_close(mine, other, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
    assert all(not torch.equal(p, before[name]) for name, p in ours.named_parameters())
    x = next(batches(dtype))[0]
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=rtol, atol=atol)
    assert not torch.equal(ours(x), ours.train()(x)) or not list(ours.buffers())


def ours_for(name):
    return GraphLayer(named(name).graph, C, "NCHW", LayerOptions(groups=GROUPS, eps=EPS, momentum=0.1))


def test_every_layer_has_an_independent_formula():
    assert set(BY_FORMULA) == set(CATALOGUE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", sorted(BY_FORMULA))
def test_a_layer_equals_its_formula_in_training_and_evaluation(name, dtype):
    compare(ours_for(name), BY_FORMULA[name](), dtype)


# timm takes statistics in float32, whatever the input: so float64 cannot be compared tightly.
@pytest.mark.parametrize("name", sorted(BY_TIMM))
def test_an_evonorm_layer_equals_timms(name):
    compare(ours_for(name), BY_TIMM[name](), torch.float32)


@pytest.mark.parametrize("name", sorted(BY_FORMULA))
def test_in_bfloat16_a_layer_stays_within_rounding_of_its_formula_in_float64(name):
    """At most 15 operations round to 8 bits each: 15 * 2^-9 of the output's size bounds the mean error."""
    ours, theirs = ours_for(name), BY_FORMULA[name]().double()
    disturb(ours.double(), theirs)
    ours = ours.float()
    for x, _ in batches(torch.bfloat16, 3):
        half = ours(x)
        exact = theirs(x.double())
        assert half.dtype == torch.bfloat16
        rms = exact.pow(2).mean().sqrt()
        assert (half.double() - exact).abs().mean() < 15 * 2**-9 * rms
    x = next(batches(torch.bfloat16))[0]
    half, exact = ours.eval()(x), theirs.eval()(x.double())
    assert (half.double() - exact).abs().mean() < 15 * 2**-9 * exact.pow(2).mean().sqrt()


@pytest.mark.parametrize("name", sorted(BY_FORMULA))
def test_parameter_counts_are_those_of_the_formula(name):
    ours, theirs = ours_for(name), BY_FORMULA[name]()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    expected = {"frn_tlu": 3 * C, "evonorm_b0": 3 * C, "evonorm_s0": 3 * C}
    expected |= {"bn_crrelu": 2 * C + 1, "bn_prelu": 2 * C + 1, "normact_b0": 2 * C + 1}
    assert sum(p.numel() for p in ours.parameters()) == expected.get(name, 2 * C)


def test_layer_norm_and_gelu_on_tokens():
    ours = GraphLayer(named("ln_gelu").graph, C, "NLC", LayerOptions(eps=EPS)).double()
    norm = nn.LayerNorm(C, EPS).double()
    with torch.no_grad():
        for mine, other in ((ours.v1, norm.weight), (ours.v0, norm.bias)):
            mine.copy_(torch.randn(C))
            other.copy_(mine)
    x = torch.randn(3, 7, C, dtype=torch.float64)
    torch.testing.assert_close(ours(x), F.gelu(norm(x)))


@pytest.mark.parametrize(("layout", "shape"), [("NLC", (5, 7, C)), ("NC", (9, C))])
def test_batch_norm_and_relu_on_other_layouts(layout, shape):
    ours = GraphLayer(named("bn_relu").graph, C, layout, LayerOptions(eps=EPS)).double()
    norm = nn.BatchNorm1d(C, EPS).double()
    for k in range(3):
        x = torch.randn(shape, dtype=torch.float64) * (k + 1) + k
        expected = F.relu(norm(x.movedim(-1, 1))).movedim(1, -1)
        torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(ours.running_mean, norm.running_mean)
    torch.testing.assert_close(ours.running_var, norm.running_var)
    norm.eval()
    torch.testing.assert_close(ours.eval()(x), F.relu(norm(x.movedim(-1, 1))).movedim(1, -1))


def test_volumes_and_sequences_of_channels_first():
    for norm, shape in ((nn.BatchNorm1d, (5, C, 7)), (nn.BatchNorm3d, (3, C, 2, 3, 4))):
        ours = GraphLayer(named("bn_silu").graph, C, "NCHW", LayerOptions(eps=EPS)).double()
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(ours(x), F.silu(norm(C, EPS).double()(x)))


def test_names_and_expressions_are_both_read():
    assert read_layer("bn_relu") == named("bn_relu").graph
    assert read_layer("relu(x)") == parse("relu(x)")
    with pytest.raises(InputError, match="unknown layer 'bn_rely'; the nearest is 'bn_relu'"):
        read_layer("bn_rely")
    with pytest.raises(InputError, match="alone is no layer"):
        read_layer("x")


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_layer_says_where_its_formula_is_from(name):
    assert CATALOGUE[name].name == name
    assert ("found by a search of ours" if name.startswith("normact") else "arXiv") in CATALOGUE[name].source

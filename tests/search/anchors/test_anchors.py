import pytest
import torch
from torch import nn

from normact.search.anchors import InvertedResidualNet, PreActResNet, SwappedModel, TokenNet, sites_of
from normact.spaces import ChannelAffine, InputError
from tests.tasks import layer


def wide(sites):
    return [site.in_features for site in sites]


# -- sites -----------------------------------------------------------------------------------------------------

ANCHORS = {
    "resnet": PreActResNet(3, 10, width=4, blocks=(2, 1)),
    "inverted": InvertedResidualNet(3, 10, width=4, blocks=(1, 2), expansion=2),
    "mixer": TokenNet(3, 8, 10, patch=2, width=8, depth=2),
    "transformer": TokenNet(3, 8, 10, patch=4, width=8, depth=1, mixing="attention", heads=2),
}
WIDTHS = {
    "resnet": [4, 4, 4, 4, 4, 8, 8],
    "inverted": [4, 8, 8, 4, 8, 8, 8, 16, 16, 8, 8],
    "mixer": [8, 8, 16, 8, 8, 16, 8],
    "transformer": [8, 8, 16, 8],
}


@pytest.mark.parametrize("name", ANCHORS)
def test_sites_are_numbered_and_of_the_kinds_and_widths_documented(name):
    sites = sites_of(ANCHORS[name])
    assert [site.index for site in sites] == list(range(len(sites)))
    assert wide(sites) == WIDTHS[name]
    assert {site.kind for site in sites} == {"norm_act"}
    assert {site.layout for site in sites} == {"NLC" if "mix" in name or "trans" in name else "NCHW"}
    assert not any(site.causal for site in sites)


@pytest.mark.parametrize("name", ANCHORS)
def test_a_site_without_activation_stands_behind_each_projection_alone(name):
    without = [site.index for site in sites_of(ANCHORS[name]) if not site.activation]
    assert without == ([3, 6, 9] if name == "inverted" else [])


def test_asking_for_sites_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    sites_of(ANCHORS["resnet"])
    assert torch.equal(torch.get_rng_state(), before)


# -- shapes and sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 12, 16])
@pytest.mark.parametrize("make", [layer("bn_relu"), layer("evonorm_s0")])
@pytest.mark.parametrize("kind", ["resnet", "inverted", "mixer", "attention"])
def test_outputs_have_a_row_per_image_at_any_size(kind, make, size):
    nets = {"resnet": PreActResNet(3, 5, 4), "inverted": InvertedResidualNet(3, 5, 4)}
    net = nets.get(kind) or TokenNet(3, size, 5, 4, 8, 1, mixing="linear" if kind == "mixer" else "attention")
    model = net(make)
    assert model(torch.randn(2, 3, size, size)).shape == (2, 5)


def parameters(anchor):
    return sum(p.numel() for p in anchor(lambda site: nn.Identity()).parameters())


def test_the_residual_net_has_the_parameters_of_its_convolutions():
    w = 4
    stem, first, second = 3 * w * 9, 2 * w * w * 9, w * w * 9 * 2 + 2 * w * 2 * w * 9 + w * 2 * w
    assert parameters(ANCHORS["resnet"]) == stem + 2 * first + second + 2 * w * 10 + 10


def test_the_inverted_net_has_the_parameters_of_its_convolutions():
    def block(features, out, inner):
        return features * inner + inner * 9 + inner * out

    stem = 3 * 4 * 9
    expected = stem + block(4, 4, 8) + block(4, 8, 8) + block(8, 8, 16) + 8 * 10 + 10
    assert parameters(ANCHORS["inverted"]) == expected


@pytest.mark.parametrize(("name", "patch", "depth"), [("mixer", 2, 2), ("transformer", 4, 1)])
def test_the_token_net_has_the_parameters_of_its_maps(name, patch, depth):
    w, tokens = 8, (8 // patch) ** 2
    stem = 3 * patch**2 * w + w + tokens * w
    mix = tokens * tokens + tokens if name == "mixer" else (w * 3 * w + 3 * w) + (w * w + w)
    channels = (w * 2 * w + 2 * w) + (2 * w * w + w)
    assert parameters(ANCHORS[name]) == stem + depth * (mix + channels) + w * 10 + 10


# -- what they compute -----------------------------------------------------------------------------------------


def test_the_residual_net_is_pre_activation():
    """A layer that gives zero silences every branch, the projected shortcut too, which reads the layer's output."""

    class Zero(nn.Module):
        def forward(self, x):
            return 0 * x

    def only_last(site):
        return nn.Identity() if site.index == 4 else Zero()

    x = torch.randn(2, 3, 8, 8)
    same = PreActResNet(3, 5, 4, blocks=(2,))(only_last)
    expected = same[-1](same[0](x).mean((2, 3)))  # stem, pooled: nothing else is left
    torch.testing.assert_close(same(x), expected)
    halving = PreActResNet(3, 5, 4, blocks=(1, 1))(only_last)
    torch.testing.assert_close(halving(x), halving[-1].bias.expand(2, 5))


def test_an_inverted_block_adds_its_input_where_shapes_agree():
    model = InvertedResidualNet(3, 5, 4, blocks=(1, 1))(lambda site: nn.Identity())
    blocks = [m for m in model.modules() if type(m).__name__ == "_InvertedBlock"]
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(blocks[0](x), x + blocks[0].body(x))
    torch.testing.assert_close(blocks[1](x), blocks[1].body(x))
    assert blocks[1](x).shape == (2, 8, 4, 4)


def test_attention_is_torchs():
    model = TokenNet(3, 8, 5, patch=2, width=8, depth=1, mixing="attention", heads=2)(lambda site: nn.Identity())
    (mix,) = [m for m in model.modules() if type(m).__name__ == "_Attention"]
    reference = nn.MultiheadAttention(8, 2, batch_first=True)
    state = {
        "in_proj_weight": mix.qkv.weight,
        "in_proj_bias": mix.qkv.bias,
        "out_proj.weight": mix.out.weight,
        "out_proj.bias": mix.out.bias,
    }
    reference.load_state_dict(state)
    x = torch.randn(2, 16, 8)
    torch.testing.assert_close(mix(x), reference(x, x, x, need_weights=False)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixing", ["linear", "attention"])
def test_a_token_net_can_be_differentiated_twice(mixing):
    model = TokenNet(3, 8, 5, patch=2, width=8, depth=1, mixing=mixing)(layer("ln_gelu"))
    weights = list(model.parameters())
    gradients = torch.autograd.grad(model(torch.randn(2, 3, 8, 8)).square().sum(), weights, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in gradients), weights, allow_unused=True)
    assert all(torch.isfinite(g).all() for g in second if g is not None)


def test_patches_are_the_images_squares():
    model = TokenNet(1, 4, 5, patch=2, width=8, depth=1)(lambda site: nn.Identity())
    patches = model[0]
    x = torch.arange(16.0).view(1, 1, 4, 4)
    squares = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]).float()
    expected = squares @ patches.project.weight.flatten(1).T + patches.project.bias + patches.position
    torch.testing.assert_close(patches(x)[0], expected)


# -- bad arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PreActResNet(3, 5, width=0), "width=0"),
        (lambda: PreActResNet(3, 5, blocks=()), r"blocks=\(\)"),
        (lambda: InvertedResidualNet(3, 5, blocks=(1, 0)), r"blocks=\(1, 0\)"),
        (lambda: InvertedResidualNet(3, 5, expansion=0), "expansion >= 1, got 0"),
        (lambda: TokenNet(3, 9, 5, patch=2), "9 is not divisible by patch=2"),
        (lambda: TokenNet(3, 8, 5, patch=0), "at least 1"),
        (lambda: TokenNet(3, 8, 5, depth=0), "at least 1"),
        (lambda: TokenNet(3, 8, 5, mixing="conv"), "'conv'"),
        (lambda: TokenNet(3, 8, 5, width=6, mixing="attention", heads=4), "width=6 is not divisible by heads=4"),
    ],
)
def test_an_anchor_that_cannot_be_is_refused(make, match):
    with pytest.raises(InputError, match=match):
        make()


# -- a person's own model --------------------------------------------------------------------------------------


class Block(nn.Module):
    """Norm and activation as attributes, in another order than they are used."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


def own_model():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return nn.Sequential(Block(), nn.Conv2d(6, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.BatchNorm2d(8), *head)


def test_a_persons_model_is_an_anchor():
    sites = sites_of(SwappedModel(own_model))
    assert [(s.index, s.in_features, s.activation) for s in sites] == [(0, 6, True), (1, 8, True), (2, 8, False)]
    model = SwappedModel(own_model)(layer("evonorm_s0"))
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    kinds = [type(m) for m in model.modules()]
    assert not {nn.BatchNorm2d, nn.GroupNorm, nn.ReLU, nn.SiLU} & set(kinds)
    assert kinds.count(ChannelAffine) == 1


class Residual(nn.Module):
    """As torchvision's blocks are: one activation for all, and one that is a function."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return torch.nn.functional.silu(self.bn2(self.relu(x + self.conv(self.relu(self.bn1(x))))))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.norm, self.act = Residual(), nn.LayerNorm(8), nn.GELU()

    def forward(self, x):
        x = self.block(x) if x.shape[-1] == 8 else x
        return self.act(self.norm(x))


def test_shared_and_functional_activations_of_a_persons_model_are_sites():
    sites = sites_of(SwappedModel(Residual))
    assert [(s.in_features, s.activation) for s in sites] == [(3, True), (3, True)]
    model = SwappedModel(Residual)(lambda site: nn.Identity())
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(model(x), torch.relu(x + model.conv(x)))


def test_a_persons_model_that_branches_is_read_from_a_run_on_an_example():
    with pytest.raises(InputError, match="cannot be traced"):
        sites_of(SwappedModel(Branching))
    sites = sites_of(SwappedModel(Branching, example=[3, 8, 8]))
    assert [(s.in_features, s.layout) for s in sites] == [(3, "NCHW"), (3, "NCHW"), (8, "NLC")]
    model = SwappedModel(Branching, example=(3, 8, 8))(layer("evonorm_s0"))
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 3, 8, 8)


def test_a_run_on_an_example_takes_no_random_numbers_and_no_state_of_the_model():
    factory = lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout())
    torch.manual_seed(0)
    drawn = torch.rand(2)
    torch.manual_seed(0)
    model = SwappedModel(factory, example=(3, 8, 8))(layer("bn_relu"))
    assert torch.equal(torch.rand(2), drawn)
    assert torch.equal(model[0].running_mean, torch.zeros(3))


def test_each_call_takes_a_fresh_model():
    anchor = SwappedModel(own_model)
    one, two = anchor(layer("bn_relu")), anchor(layer("bn_relu"))
    assert not {id(p) for p in one.parameters()} & {id(p) for p in two.parameters()}


@pytest.mark.parametrize(
    ("factory", "match"),
    [(lambda: "model", "gave a str, not a torch module"), (lambda: nn.Linear(2, 2), "Linear has nothing to replace")],
)
def test_a_factory_that_gives_no_such_model_is_refused(factory, match):
    with pytest.raises(InputError, match=match):
        SwappedModel(factory)(layer("bn_relu"))


# -- quick ways are the usual modules ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 7])
def test_a_shortcut_is_its_convolution(size):
    net = PreActResNet(1, 10, width=4, blocks=(1, 1))(lambda site: nn.Identity())
    (shortcut,) = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    x = torch.randn(3, 4, size, size)
    torch.testing.assert_close(shortcut(x), nn.functional.conv2d(x, shortcut.weight, stride=2))


def test_patches_are_their_convolution_and_mixing_is_linear_over_tokens():
    net = TokenNet(2, 8, 10, patch=2, width=6, depth=1)(lambda site: nn.Identity())
    patches, block = net[0], net[1]
    x = torch.randn(3, 2, 8, 8)
    expected = patches.project(x).flatten(2).transpose(1, 2) + patches.position
    torch.testing.assert_close(patches(x), expected)
    mixed = block.mix.mix(expected.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(block.mix(expected), mixed)

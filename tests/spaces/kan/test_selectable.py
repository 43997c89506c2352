import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from normact.search.data import Split
from normact.search.training import Recipe, Training
from normact.spaces import InputError
from normact.spaces.kan.pruned import PrunedKANConv2d, PrunedKANLinear
from normact.spaces.kan.selectable import GRANULARITIES, SelectableKANConv2d, SelectableKANLinear, prune_model
from tests.spaces.kan.families import EXTREMES, FAMILIES

POOL = ["bspline", "gaussian", "chebyshev", "rational"]
SIZES = [8, 8, 4, 1]
"""Their functions an input, by the families' own defaults."""

CHOICES = st.fixed_dictionaries(
    {
        "families": st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=4),
        "granularity": st.sampled_from(GRANULARITIES),
        "normalizer": st.sampled_from(["layer_tanh", "clamp", "batch_tanh"]),
        "base": st.sampled_from(["silu", "none"]),
        "post": st.sampled_from(["none", "layer"]),
    }
)


def drawn(layer):
    """Gates and biases off their equal start."""
    with torch.no_grad():
        layer.logits.normal_()
        layer.bias.normal_()
    return layer


def linear(inputs=5, outputs=6, families=POOL, **options):
    return drawn(SelectableKANLinear(inputs, outputs, families, **options))


def count(module):
    return sum(p.numel() for p in module.parameters())


# -- the formula ------------------------------------------------------------------------------------------------


def functions_of(layer, x):
    """By family, the values of its functions at the normalized inputs: (B, I, K)."""
    return [basis(layer.normalizer(x)) for basis in layer.bases]


def coefficients_of(layer, outputs, inputs, sizes):
    """By family (O, I, K), and of the base branch (O, I)."""
    *own, base = layer.weight.view(outputs, sum(sizes) + 1, inputs).split([*sizes, 1], 1)
    return [c.transpose(1, 2) for c in own], base.squeeze(1)


def contributions(layer, x, gates, sizes=SIZES):
    """By family (B, O): what it gives to the output, gate and all, as a sum over edges; gates (rows, M)."""
    own, _ = coefficients_of(layer, 6, 5, sizes)
    subscripts = {"layer": "bik,oik,r->bo", "node": "bik,oik,o->bo", "input": "bik,oik,i->bo"}[layer.granularity]
    return [
        torch.einsum(subscripts, f, c, g) for f, c, g in zip(functions_of(layer, x), own, gates.unbind(1), strict=True)
    ]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_output_is_the_gated_sum_over_families_and_the_base_branch(granularity):
    layer = linear(granularity=granularity, temperature=0.7).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    rows = {"layer": 1, "node": 6, "input": 5}[granularity]
    gates = torch.exp(layer.logits.view(rows, 4) / 0.7)
    gates = gates / gates.sum(1, keepdim=True)
    _, base = coefficients_of(layer, 6, 5, SIZES)
    expected = sum(contributions(layer, x, gates)) + (x * torch.sigmoid(x)) @ base.t() + layer.bias
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.gates(), gates)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_each_family_has_the_same_part_in_a_new_output(granularity):
    torch.manual_seed(1)
    layer = SelectableKANLinear(64, 256, POOL, granularity=granularity)
    x = torch.randn(512, 64)
    stds = []
    for number in range(len(POOL)):
        alone = copy.deepcopy(layer)
        with torch.no_grad():
            parts = alone.weight.view(256, sum(SIZES) + 1, 64).split([*SIZES, 1], 1)
            for other in range(len(POOL) + 1):
                if other != number:
                    parts[other].zero_()
        stds.append(float(alone(x).detach().std()))
    assert max(stds) / min(stds) < 1.25
    assert sum(std**2 for std in stds) == pytest.approx(0.5, rel=0.25)  # the base branch has the other half


@pytest.mark.parametrize("width", [8, 64, 512])
@pytest.mark.parametrize("base", ["silu", "none"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_output_starts_with_variance_about_1(granularity, base, width):
    layer = SelectableKANLinear(width, 128, POOL, granularity=granularity, base=base)
    assert 0.7 < layer(torch.randn(256, width)).std() < 1.4


# -- stages -----------------------------------------------------------------------------------------------------


def test_the_largest_gates_are_kept():
    layer = SelectableKANLinear(3, 2, POOL)
    layer.logits.data = torch.tensor([0.0, 3.0, 2.0, 1.0, 9.0, -1.0, 5.0, 7.0])
    layer.select(2)
    assert layer.kept.tolist() == [[False, True, True, False], [True, False, False, True]]
    gates = layer.gates()
    expected = torch.tensor([[0, 3.0, 2.0, 0], [9.0, 0, 0, 7.0]]).exp() * layer.kept
    torch.testing.assert_close(gates, expected / expected.sum(1, keepdim=True))
    layer.select(1)
    assert layer.gates().tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


def test_gates_that_underflow_do_no_harm():
    layer = SelectableKANLinear(3, 2, POOL)
    layer.logits.data = torch.tensor([900.0, 1.0, 0.0, 2.0] * 2)
    x = torch.randn(4, 3)
    before = layer(x)
    layer.select(2)
    assert layer.kept[0].tolist() == [True, False, False, True]
    torch.testing.assert_close(layer(x), before)


def test_what_is_dropped_stays_dropped():
    layer = linear()
    layer.select(1)
    before = layer.kept.clone()
    with torch.no_grad():
        layer.logits.neg_()
    layer.select(3)
    assert torch.equal(layer.kept, before)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_selecting_takes_away_what_the_dropped_families_gave_and_nothing_else(granularity, keep):
    layer = linear(granularity=granularity).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    before, gates = layer(x), layer.gates()
    parts = torch.where(
        gates >= gates.sort(1, descending=True).values[:, keep - 1 : keep], torch.zeros_like(gates), gates
    )
    dropped = sum(contributions(layer, x, parts))
    layer.select(keep)
    torch.testing.assert_close(layer(x), before - dropped)
    assert float(dropped.detach().std()) > 0.05


def gradients(layer):
    layer.zero_grad()
    (layer(torch.randn(32, 5)) * torch.randn(32, 6)).sum().backward()
    return {name: p.grad for name, p in layer.named_parameters()}


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_in_the_full_stage_every_parameter_and_each_gate_has_a_gradient(granularity):
    layer = linear(granularity=granularity)
    found = gradients(layer)
    assert layer.stage == "full"
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    assert (found["logits"] != 0).all()
    assert [name for name, p in layer.named_parameters() if p.dim() > 1] == ["weight"]


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_in_the_selective_stage_what_is_dropped_has_gradients_of_zero(granularity, keep):
    layer = linear(granularity=granularity)
    layer.select(keep)
    found = gradients(layer)
    assert layer.stage == "selective"
    assert all(gradient is not None for gradient in found.values())
    assert ((found["logits"] != 0) == (layer.kept.flatten() if keep > 1 else False)).all()
    parts = found["weight"].view(6, sum(SIZES) + 1, 5).split([*SIZES, 1], 1)
    for number, part in enumerate(parts[:-1]):
        kept = layer.kept[:, number]
        kept = kept.view(1, 1, 5) if granularity == "input" else kept.view(-1, 1, 1)
        assert ((part != 0) == kept).all()
    assert (parts[-1] != 0).all()


def test_a_family_that_nothing_keeps_is_not_computed():
    layer = linear(granularity="layer")
    layer.logits.data = torch.tensor([0.0, 0.0, 1.0, 0.0])
    layer.select(1)
    for number in (0, 1, 3):
        layer.bases[number].planes = None  # not to be called
    found = gradients(layer)
    assert all((found[f"bases.3.{name}"] == 0).all() for name in ("numerator", "denominator"))
    assert (layer(torch.randn(2, 5)).isfinite()).all()


def test_progress_selects_once_at_its_time():
    layer = SelectableKANLinear(3, 4, POOL, keep=2, select_at=0.5)
    stages = []
    for fraction in (0.0, 0.49, 0.5, 0.9):
        layer.set_progress(fraction)
        stages.append((layer.stage, int(layer.kept.sum())))
    assert stages == [("full", 16), ("full", 16), ("selective", 8), ("selective", 8)]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_training_drives_the_stages_and_its_parameters_stay_flat(granularity):
    x = torch.rand(64, 2) * 2 - 1
    examples = Split(x, (3 * x[:, :1]).sin() * x[:, 1:])
    options = {"granularity": granularity, "normalizer": "clamp", "select_at": 0.5}
    model = nn.Sequential(*(SelectableKANLinear(*widths, POOL, **options) for widths in ((2, 4), (4, 1))))
    training = Training(model, examples, Recipe(steps=40, batch_size=32, optimizer="adamw", lr=0.01), "mse", 0)
    training.run_to(20)
    assert [layer.stage for layer in model] == ["full", "full"]
    training.run_to(40)
    assert [layer.stage for layer in model] == ["selective", "selective"]
    assert training._flats
    assert sum(training.losses[-5:]) < 0.75 * sum(training.losses[:5])
    torch.testing.assert_close(prune_model(model)(x), model(x), rtol=0, atol=1e-6)


# -- pruning ----------------------------------------------------------------------------------------------------


@given(chosen=CHOICES, inputs=st.integers(1, 7), outputs=st.integers(1, 7), data=st.data())
def test_a_pruned_layer_has_the_same_outputs(chosen, inputs, outputs, data):
    keep = data.draw(st.integers(1, len(chosen["families"])))
    layer = linear(inputs, outputs, **chosen).eval()
    layer.select(keep)
    x = torch.randn(9, inputs)
    torch.testing.assert_close(layer.prune()(x), layer(x), rtol=1e-6, atol=1e-6)
    layer, x = layer.double(), x.double()
    torch.testing.assert_close(layer.prune()(x), layer(x), rtol=1e-12, atol=1e-12)


@settings(max_examples=30)
@given(chosen=CHOICES, stride=st.integers(1, 2), padding=st.integers(0, 2), data=st.data())
def test_a_pruned_convolution_has_the_same_outputs(chosen, stride, padding, data):
    keep = data.draw(st.integers(1, len(chosen["families"])))
    layer = drawn(SelectableKANConv2d(3, 4, 3, stride, padding, **chosen)).double().eval()
    layer.select(keep)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    pruned = layer.prune()
    assert isinstance(pruned, PrunedKANConv2d)
    torch.testing.assert_close(pruned(x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_pruned_layer_has_the_same_gradients(granularity):
    layer = linear(granularity=granularity).double()
    layer.select(1)
    pruned = layer.prune()
    first = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    second = first.detach().clone().requires_grad_()
    layer(first).square().sum().backward()
    pruned(second).square().sum().backward()
    torch.testing.assert_close(first.grad, second.grad)
    assert all(p.grad is not None for p in pruned.parameters())


def flops(module, x):
    with FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_pruning_takes_away_parameters_and_operations(granularity):
    """One family each: K functions of those that have it, where there were the functions of all four."""
    layer = SelectableKANLinear(12, 10, POOL, granularity=granularity)
    layer.logits.data.view(-1, 4)[:] = torch.eye(4).repeat(3, 1)[: len(layer.kept)]
    x = torch.randn(32, 12)
    before = flops(layer, x)
    layer.select(1)
    pruned = layer.prune()
    picks = layer.kept.sum(0).tolist()
    edges = {"layer": 12 * 10, "node": 12, "input": 10}[granularity]  # that hang on one choice
    weights = edges * sum(n * size for n, size in zip(picks, SIZES, strict=True)) + 12 * 10
    others = 10 + 2 * 12  # bias; the layer norm in front
    rational = 8 * (6 + 4) if picks[3] else 0
    assert count(pruned) == weights + others + rational
    assert count(layer) == 12 * 10 * (sum(SIZES) + 1) + others + 8 * (6 + 4) + len(layer.logits)
    assert flops(pruned, x) == 2 * 32 * weights < 0.6 * before


def test_by_input_a_family_is_computed_at_its_inputs_alone(monkeypatch):
    layer = SelectableKANLinear(6, 3, ["gaussian", "sine"], granularity="input")
    layer.logits.data = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 2).flatten()
    layer.select(1)
    pruned = layer.prune()
    seen = {}
    for basis in pruned.terms[0].bases:
        planes = type(basis).planes
        monkeypatch.setattr(type(basis), "planes", lambda b, x, f=planes: seen.update({b.name: x.shape[-1]}) or f(b, x))
    pruned(torch.randn(2, 6))
    assert seen == {"gaussian": 4, "sine": 6}  # a sine's phases differ from input to input


def test_a_pruned_layer_shares_nothing_with_its_origin():
    layer = linear(post="layer").eval()
    layer.select(1)
    x = torch.randn(3, 5)
    before, pruned = layer(x), layer.prune()
    with torch.no_grad():
        for p in pruned.parameters():
            p.add_(1.0)
    assert torch.equal(layer(x), before)


def test_pruning_before_a_selection_folds_the_gates_and_keeps_all():
    layer = linear().double()
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer.prune()(x), layer(x))


@pytest.mark.parametrize("training", [True, False])
def test_a_pruned_layer_is_in_the_same_mode(training):
    pruned = linear(normalizer="batch_tanh", post="batch").train(training).prune()
    assert all(module.training == training for module in pruned.modules())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = SelectableKANLinear(4, 6, POOL, granularity="node")
        self.rest = nn.Sequential(nn.LayerNorm(6), SelectableKANLinear(6, 6, POOL, granularity="input"))
        self.again = self.rest[1]

    def forward(self, x):
        return self.again(self.rest(self.first(x)))


def test_a_whole_model_is_pruned_and_left_as_it_is():
    model = Net()
    for layer in (model.first, model.again):
        drawn(layer).select(1)
    x = torch.randn(3, 4)
    pruned = prune_model(model)
    torch.testing.assert_close(pruned(x), model(x), rtol=1e-6, atol=1e-6)
    assert isinstance(pruned.first, PrunedKANLinear)
    assert pruned.again is pruned.rest[1]
    assert isinstance(model.first, SelectableKANLinear)
    assert count(pruned) < count(model) / 2


def test_a_model_that_is_one_layer_is_pruned():
    assert isinstance(prune_model(linear()), PrunedKANLinear)


# -- what every layer promises ----------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_kernel_of_1_is_a_linear_layer_at_each_position(granularity):
    conv = drawn(SelectableKANConv2d(5, 6, 1, families=POOL, granularity=granularity)).double()
    other = linear(granularity=granularity).double()
    state = conv.state_dict()
    other.load_state_dict({**state, "weight": state["weight"].flatten(1)})
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(conv(x), other(x.movedim(1, -1)).movedim(-1, 1))


def test_a_convolution_in_groups_is_one_of_each_group():
    options = {"padding": 1, "families": POOL, "granularity": "layer", "normalizer": "tanh"}
    layer = drawn(SelectableKANConv2d(4, 6, 3, groups=2, **options)).double()
    layer.select(2)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    parts = []
    for group in range(2):
        part = SelectableKANConv2d(2, 3, 3, **options).double()
        state = layer.state_dict()
        state = {name: value for name, value in state.items() if name in part.state_dict()}
        state["weight"], state["bias"] = (state[name].chunk(2)[group] for name in ("weight", "bias"))
        state["bases.3.group"] = state["bases.3.group"][:2]
        state |= {f"bases.3.{name}": part.state_dict()[f"bases.3.{name}"] for name in ("numerator", "denominator")}
        part.load_state_dict(state)
        parts.append(part(x.chunk(2, 1)[group]))
    torch.testing.assert_close(layer(x), torch.cat(parts, 1))
    torch.testing.assert_close(layer.prune()(x), layer(x))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_state_dict_carries_stage_and_choice(granularity):
    first, second = (linear(granularity=granularity) for _ in range(2))
    first.select(1)
    second.load_state_dict(first.state_dict())
    x = torch.randn(3, 5)
    assert second.stage == "selective"
    assert torch.equal(first(x), second(x))
    pruned, other = first.prune(), second.prune()
    other.load_state_dict(pruned.state_dict())
    assert torch.equal(pruned(x), other(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_copies(granularity, copied):
    layer, x = linear(granularity=granularity), torch.randn(3, 5)
    for _ in range(2):
        assert torch.equal(copied(layer)(x), layer(x))
        assert torch.equal(copied(layer.prune())(x), layer.prune()(x))
        layer.select(1)


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 3, 5), (2, 0, 3, 5)])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_any_leading_axes(granularity, shape):
    layer = linear(granularity=granularity)
    x = torch.randn(shape, requires_grad=True)
    for module in (layer, layer.prune()):
        assert module(x).shape == (*shape[:-1], 6)
    layer(x).sum().backward()
    assert x.grad.shape == shape


@given(chosen=CHOICES)
def test_gradients_are_finite_far_outside(chosen):
    layer = linear(len(EXTREMES), 3, **chosen)
    far = torch.tensor(EXTREMES)
    x = torch.cat([far.unsqueeze(1).expand(-1, len(EXTREMES)), far.unsqueeze(0)]).clone().requires_grad_()
    layer(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in [x, *layer.parameters()])


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_sample_does_not_depend_on_its_batch(granularity):
    layer, x = linear(granularity=granularity).double(), torch.randn(4, 5, dtype=torch.float64)
    for module in (layer, layer.prune()):
        torch.testing.assert_close(module(x)[1], module(x[1]))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_under_autocast_bases_are_in_float32(granularity):
    layer = linear(granularity=granularity, families=["chebyshev", "legendre"])
    layer.select(1)
    x = 3 * torch.randn(64, 5)
    expected = layer(x)
    for module in (layer, layer.prune()):
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), expected, rtol=0.03, atol=0.06)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_layer_in_half_precision(granularity):
    layer, x = linear(granularity=granularity), torch.randn(8, 5)
    expected = layer(x)
    for module in (layer, layer.prune()):
        y = module.bfloat16()(x.bfloat16())
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1)


# -- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"families": []}, "needs at least one basis family, got none"),
        ({"granularity": "nod"}, "unknown granularity 'nod'; the nearest is 'node'"),
        ({"base": "silo"}, "unknown base activation 'silo'; the nearest is 'silu'"),
        ({"post": "bach"}, "unknown post norm 'bach'"),
        ({"normalizer": "layer"}, "chebyshev needs inputs in .* which normalizer 'layer' does not give; use "),
        ({"keep": 5}, "keep=5 of 4 families cannot be kept; choose 1 to 4"),
        ({"keep": 0}, "keep=0 of 4 families"),
        ({"temperature": 0.0}, "above 0, got 0.0 and 0.2"),
        ({"select_at": 0.0}, "above 0, got 1.0 and 0.0"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        SelectableKANLinear(3, 2, **{"families": POOL, **options})


def test_a_selection_of_more_than_there_are_is_refused():
    with pytest.raises(InputError, match="keep=5 of 4 families"):
        linear().select(5)


@pytest.mark.parametrize("granularity", ["node", "input"])
def test_gates_of_channels_in_groups_are_refused(granularity):
    with pytest.raises(InputError, match=f"granularity={granularity} .* granularity=layer, .* groups=2"):
        SelectableKANConv2d(4, 4, 3, groups=2, families=POOL, granularity=granularity)


def test_a_wrong_width_is_refused():
    for module in (linear(), linear().prune()):
        with pytest.raises(InputError, match=r"expected 5 features in the last axis, got shape \(2, 4\)"):
            module(torch.zeros(2, 4))

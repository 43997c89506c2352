"""What every family promises, alone and in a layer."""

import copy
import pickle
from unittest import mock

import cloudpickle
import pytest
import torch

from normact.spaces import InputError
from normact.spaces.kan import BASES, Basis, KANLinear, find_basis, packed, register_basis
from tests.spaces.kan.families import EXTREMES, FAMILIES, PAIRS, a_basis, a_normalizer, inputs


def a_layer(family, wide=3, out=4, **settings):
    return KANLinear(wide, out, (family,), **{"normalizer": a_normalizer(family), **settings})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_basis_has_k_functions_of_each_input_and_parameters_without_decay(family):
    basis, x = a_basis(family), inputs(family, 2, 5, 3)
    assert basis(x).shape == (2, 5, 3, basis.size)
    assert torch.equal(basis(x), basis.planes(x).transpose(-1, -2))
    assert basis.relative_std().shape == (basis.size,)
    assert (basis.relative_std() > 0).all()
    assert all(parameter.dim() == 1 for parameter in basis.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_that_a_search_may_set_makes_a_basis(family):
    for key, values in BASES[family].choices.items():
        assert len(set(values)) == len(values) > 0
        for value in values:
            assert a_basis(family, **{key: value}).planes(inputs(family, 4, 3)).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_functions_of_an_input_see_no_other_input_and_no_other_sample(family):
    basis, x = a_basis(family), inputs(family, 4, 3)
    other = x.clone()
    other[1, 2] = -x[1, 2] / 2
    changed = (basis(other) != basis(x)).any(-1)
    assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("family", FAMILIES)
def test_first_and_second_derivatives_against_finite_differences(family):
    bases = [a_basis(family, 2).double() for _ in range(2)]
    x = (0.6 * inputs(family, 3, 2, dtype=torch.float64)).requires_grad_()
    base = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    parameters = [p for basis in bases for p in basis.parameters()]

    def planes(x, base, *_):
        return packed.pack(bases, x, base)

    assert torch.autograd.gradcheck(planes, (x, base, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(planes, (x, base, *parameters), fast_mode=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_own_gradient_is_autograds(family):
    """Of every input, whatever the blocks; with a second family and a base branch beside it."""
    bases = [a_basis(family), a_basis("gaussian" if not BASES[family].bounded else "legendre"), a_basis(family)]
    x, base = inputs(family, 50, 3).requires_grad_(), torch.randn(50, 3, requires_grad=True)
    wanted = [x, base, *(p for basis in bases for p in basis.parameters())]
    above = torch.randn(50, sum(basis.size for basis in bases) + 1, 3)
    plain = torch.cat([*(basis.planes(x) for basis in bases), base.unsqueeze(-2)], -2)
    expected = torch.autograd.grad(plain, wanted, above)
    with mock.patch.object(packed, "BLOCK", 70):
        found = torch.autograd.grad(packed.pack(bases, x, base), wanted, above)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_is_right_for_parameters_that_were_swapped_for_the_call(family):
    layer = a_layer(family).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    swapped = {name: (1.1 * p.detach()).requires_grad_() for name, p in layer.named_parameters()}
    y = torch.func.functional_call(layer, swapped, (x,))
    found = torch.autograd.grad(y.square().sum(), list(swapped.values()))
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(swapped[name])
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "normalizer"), PAIRS)
def test_gradients_are_finite_far_out(family, normalizer, dtype):
    layer = a_layer(family, normalizer=normalizer)
    rows = [torch.tensor(EXTREMES).roll(shift) for shift in (0, 1, 3)]
    x = torch.stack(rows, 1).to(dtype).requires_grad_()
    for mode in (True, False):
        y = layer.train(mode)(x)
        assert y.isfinite().all()
        gradients = torch.autograd.grad(y.float().sum(), [x, *layer.parameters()])
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_gradients_are_finite_at_the_ends_of_the_range(family, end):
    x = torch.full((2, 3), end, requires_grad=True)
    (gradient,) = torch.autograd.grad(a_basis(family).planes(x).sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("family", "normalizer"), PAIRS)
def test_a_sample_does_not_depend_on_its_batch(family, normalizer):
    layer = a_layer(family, normalizer=normalizer)
    x = torch.randn(64, 3)
    layer(x)
    layer.eval()
    torch.testing.assert_close(layer(x)[0], layer(x[:1])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
        lambda layer: pickle.loads(cloudpickle.dumps(layer)),
    ],
    ids=["deepcopy", "pickle", "cloudpickle"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_can_be_copied_and_pickled(family, copied):
    layer = trained(a_layer(family))
    twin, x = copied(layer), torch.randn(5, 3)
    assert torch.equal(twin(x), layer(x))
    assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(p.data_ptr() for p in layer.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_makes_another_layer_the_same(family, tmp_path):
    layer, other, x = trained(a_layer(family)), a_layer(family), torch.randn(5, 3)
    assert not torch.equal(other(x), layer(x))
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(x), layer(x))


def trained(layer):
    """One step of gradient descent away from where it was."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(16, layer.mixing.inputs)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return layer


@pytest.mark.parametrize(("family", "normalizer"), PAIRS)
def test_every_parameter_is_trained(family, normalizer):
    layer = a_layer(family, normalizer=normalizer)
    for _ in range(2):
        layer.zero_grad()
        layer(torch.randn(32, 3)).square().sum().backward()
        assert [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.any()] == []
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.sub_(0.01 * parameter.grad / parameter.grad.norm())


@pytest.mark.parametrize("width", [8, 64, 512])
@pytest.mark.parametrize(("family", "normalizer"), PAIRS)
def test_a_new_layer_keeps_the_variance(family, normalizer, width):
    layer = a_layer(family, width, 64, normalizer=normalizer)
    assert 0.5 <= layer(torch.randn(256, width)).std() <= 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(3,), (0, 3), (1, 3), (2, 0, 3), (2, 2, 2, 3)])
def test_any_leading_axes_and_empty_batches(family, shape):
    layer = a_layer(family)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    assert y.shape == (*shape[:-1], 4)
    rows = [layer(row) for row in x.reshape(-1, 3)]
    torch.testing.assert_close(y.reshape(-1, 4), torch.stack(rows) if rows else torch.empty(0, 4))
    y.sum().backward()
    assert x.grad.shape == shape


@pytest.mark.parametrize(("family", "normalizer"), PAIRS)
def test_a_single_input(family, normalizer):
    layer = a_layer(family, 1, normalizer=normalizer)
    x = torch.randn(16, 1)
    y = layer(x)
    assert y.shape == (16, 4)
    assert (y.std(0) > 1e-3).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_bases_are_in_float32_under_autocast(family):
    layer, x = a_layer(family), torch.randn(5, 3)
    mixed = layer._features(layer.normalizer(x), x)[0]
    weight, bias = layer.weights[0], layer.bias
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        expected = torch.nn.functional.linear(mixed, weight, bias)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)


@pytest.mark.parametrize(("family", "normalizer"), PAIRS)
def test_a_layer_in_half_precision(family, normalizer):
    layer, x = a_layer(family, normalizer=normalizer), torch.randn(5, 3)
    half = copy.deepcopy(layer).half()
    y = half(x.half())
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), layer(x), atol=0.03, rtol=0.03)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float16 and p.grad.isfinite().all() for p in half.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_double_precision_is_kept(family):
    layer = a_layer(family).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    assert layer(x).dtype == torch.float64
    torch.testing.assert_close(layer(x).float(), layer.float()(x.float()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("bspline", {"grid": 0}, "bspline needs grid to be a whole number from 1 to .*, got 0"),
        ("bspline", {"order": 0}, "bspline needs order to be a whole number from 1 to 7, got 0"),
        ("bspline", {"order": 8}, "from 1 to 7, got 8"),
        ("bspline", {"grid": 5.0}, "a whole number from 1 to .*, got 5.0"),
        ("gaussian", {"grid": 1}, "gaussian needs grid to be a whole number from 2 to .*, got 1"),
        ("sech", {"grid": True}, "got True"),
        ("rswaf", {"grid": 10**6}, "from 2 to 4096, got 1000000"),
        ("piecewise_linear", {"grid": 1}, "from 2 to .*, got 1"),
        ("chebyshev", {"degree": 0}, "chebyshev needs degree to be a whole number from 1 to 64, got 0"),
        ("gram", {"degree": 1}, "from 2 to 64, got 1"),
        ("jacobi", {"alpha": -1.0}, "above -1, got alpha=-1.0 and beta=1.0"),
        ("jacobi", {"beta": float("inf")}, "above -1, got alpha=1.0 and beta=inf"),
        ("jacobi", {"beta": float("nan")}, "above -1, got alpha=1.0 and beta=nan"),
        ("fourier", {"frequencies": 0}, "from 1 to 64, got 0"),
        ("sine", {"grid": 0}, "from 1 to 4096, got 0"),
        ("morlet", {"levels": 11}, "from 1 to 10, got 11"),
        ("relu_kan", {"order": -1}, "got -1"),
        ("rational", {"groups": 0}, "got 0"),
        ("rational", {"below": 5}, "from 2 to 4, got 5"),
        ("rational", {"above": 3, "below": 3}, "from 2 to 2, got 3"),
        ("rational", {"start": "slu"}, "unknown start of rational 'slu'; the nearest is 'silu'"),
    ],
)
def test_settings_that_cannot_be_are_refused(family, settings, message):
    with pytest.raises(InputError, match=message):
        a_basis(family, **settings)


def test_features_and_reach_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="at least 1 input feature, got 0"):
        BASES["gaussian"](0)
    with pytest.raises(InputError, match="reach must be a finite number above 0, got nan"):
        BASES["gaussian"](1, float("nan"))


def test_an_unknown_family_is_answered_by_the_nearest():
    with pytest.raises(InputError, match="unknown basis family 'chebychev'; the nearest is 'chebyshev'"):
        find_basis("chebychev")


def test_a_family_needs_a_name_of_its_own():
    class Nameless(Basis):
        def planes(self, x):
            return x.unsqueeze(-2)

    class Second(Nameless):
        name = "gaussian"

    with pytest.raises(InputError, match=r"Nameless\.name must be a word, got ''"):
        register_basis(Nameless)
    with pytest.raises(InputError, match="two families named 'gaussian'"):
        register_basis(Second)
    assert "Gaussian" in str(BASES["gaussian"])


def test_a_family_without_a_gradient_of_its_own_gets_autograds(monkeypatch):
    class Cubes(Basis):
        name = "cubes"

        def __init__(self, features, reach=2.0):
            super().__init__(features, 2, reach)
            self.scale = torch.nn.Parameter(torch.ones(1))

        def planes(self, x):
            return torch.stack([self.scale * x**3, x], -2)

    monkeypatch.setitem(BASES, "cubes", Cubes)
    layer = KANLinear(3, 1, ("cubes",), normalizer="none", base="none")
    with torch.no_grad():
        layer.weights[0].fill_(1.0)
    x = torch.randn(5, 3, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, 3 * x.detach() ** 2 + 1)
    torch.testing.assert_close(layer.bases[0].scale.grad, (x.detach() ** 3).sum().view(1))

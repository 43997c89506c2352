import math

import numpy as np
import pytest
import torch
from scipy import special

from normact.spaces import ACTIVATIONS, EVONORM_MOMENTS, EVONORM_POINTWISE, OPS, InputError, Op, register
from normact.spaces.moments import Moment
from normact.spaces.ops import BENCHMARK_ONLY, find_op

erf = np.vectorize(math.erf)


def np_sigmoid(a):
    return 1 / (1 + np.exp(-a))


def np_elu(a, alpha=1.0):
    return np.where(a > 0, a, alpha * (np.exp(a) - 1))


NUMPY = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": np.maximum,
    "neg": lambda a: -a,
    "sigmoid": np_sigmoid,
    "tanh": np.tanh,
    "exp": np.exp,
    "log": lambda a: np.sign(a) * np.log(np.abs(a)),
    "abs": np.abs,
    "square": lambda a: a**2,
    "sqrt": lambda a: np.sign(a) * np.sqrt(np.abs(a)),
    "sub": lambda a, b: a - b,
    "min": np.minimum,
    "sin": np.sin,
    "cos": np.cos,
    "relu": lambda a: np.maximum(a, 0),
    "relu6": lambda a: np.minimum(np.maximum(a, 0), 6),
    "leaky_relu": lambda a: np.where(a > 0, a, 0.01 * a),
    "elu": np_elu,
    "selu": lambda a: 1.0507009873554805 * np_elu(a, 1.6732632423543772),
    "gelu": lambda a: a * 0.5 * (1 + erf(a / math.sqrt(2))),
    "silu": lambda a: a * np_sigmoid(a),
    "mish": lambda a: a * np.tanh(np.log1p(np.exp(a))),
    "softplus": lambda a: np.log1p(np.exp(a)),
    "softsign": lambda a: a / (1 + np.abs(a)),
    "log_sigmoid": lambda a: -np.log1p(np.exp(-a)),
    "hard_sigmoid": lambda a: np.clip(a / 6 + 0.5, 0, 1),
    "erf": erf,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "zeros": lambda a: 0 * a,
    "ones": lambda a: 0 * a + 1,
    "identity": lambda a: a,
    "erfc": lambda a: 1 - erf(a),
    "sinh": lambda a: (np.exp(a) - np.exp(-a)) / 2,
    "cosh": lambda a: (np.exp(a) + np.exp(-a)) / 2,
    "expm1": lambda a: np.exp(a) - 1,
    "bessel_i0e": lambda a: special.iv(0, a) * np.exp(-np.abs(a)),
    "bessel_i1e": lambda a: special.iv(1, a) * np.exp(-np.abs(a)),
    "reciprocal": lambda a: 1 / a,
    "plain_div": lambda a, b: a / b,
    "plain_pow": np.power,
}


def points(dtype):
    """Away from every guard, both signs, up to where exp is still finite in float32."""
    size = torch.tensor([2e-5, 1e-3, 0.1, 0.5, 1.0, 2.0, 3.7, 7.0, 15.0], dtype=dtype)
    return torch.cat([-size.flip(0), size])


def arguments(op, values):
    """All pairs of the values for arity 2, in one flat tensor per argument."""
    return torch.cartesian_prod(*[values] * op.arity).T if op.arity > 1 else values[None]


def test_every_pointwise_op_of_the_table_has_an_independent_formula():
    assert set(NUMPY) == {name for name, op in OPS.items() if op.moment is None}


@pytest.mark.parametrize("name", sorted(NUMPY))
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_a_pointwise_op_equals_its_formula(name, dtype, rtol):
    args = arguments(OPS[name], points(dtype))
    got = OPS[name].function(*args)
    assert got.dtype == dtype
    with np.errstate(invalid="ignore", over="ignore"):  # a power of a negative number; 15^15 / 1e-5 in float32
        expected = NUMPY[name](*(a.double().numpy() for a in args)).astype(got.numpy().dtype).astype(float)
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", sorted(NUMPY))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_pointwise_op_keeps_half_precision(name, dtype):
    args = arguments(OPS[name], points(dtype))
    assert OPS[name].function(*args).dtype == dtype


@pytest.mark.parametrize("name", ["div", "log", "sqrt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_guard_is_the_exact_identity_away_from_zero(name, dtype):
    size = torch.logspace(-4.9, 10, 400, dtype=dtype)
    b = torch.cat([-size, size])
    plain = {
        "div": lambda a, b: a / b,
        "log": lambda b: torch.sign(b) * torch.log(b.abs()),
        "sqrt": lambda b: torch.sign(b) * torch.sqrt(b.abs()),
    }[name]
    args = (torch.linspace(-3, 3, b.numel(), dtype=dtype), b)[2 - OPS[name].arity :]
    assert torch.equal(OPS[name].function(*args), plain(*args))


def test_the_guards_at_zero_have_the_values_that_continue_them():
    zero = torch.zeros(1, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    assert OPS["div"].function(one, zero).item() == pytest.approx(1e5, rel=1e-12)
    assert OPS["div"].function(one, zero - 1e-9).item() == pytest.approx(-1e5, rel=1e-12)
    assert OPS["log"].function(zero).item() == 0
    assert OPS["sqrt"].function(zero).item() == 0
    edge = torch.tensor([0.999999e-6, 1.000001e-6], dtype=torch.float64)
    inside, outside = OPS["sqrt"].function(edge)
    assert inside.item() == pytest.approx(outside.item(), rel=1e-5)


GUARDED = [name for name in BENCHMARK_ONLY if OPS[name].guarded]


@pytest.mark.parametrize("name", [*EVONORM_POINTWISE, *GUARDED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_first_and_second_derivative_are_finite_everywhere(name, dtype):
    """Zero of both signs, smallest normal, around each guard, large (exp is finite up to 88 in float32)."""
    op = OPS[name]
    size = [0.0, 1e-38, 1e-30, 1e-12, 0.99e-6, 1e-6, 1.01e-6, 0.99e-5, 1e-5, 1.01e-5, 1.0, 80.0]
    if name not in ("exp", "expm1", "sinh", "cosh"):
        size += [1e3, 1e6]
    values = torch.tensor([*size, *(-s for s in size)], dtype=dtype)
    args = [a.clone().requires_grad_() for a in arguments(op, values)]
    y = op.function(*args) + 0 * sum(args)
    first = torch.autograd.grad(y.sum(), args, create_graph=True)
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(g).all() for g in first)
    norm = sum((g * torch.linspace(0.5, 1.5, g.numel(), dtype=dtype)).sum() for g in first)
    if norm.requires_grad:
        second = torch.autograd.grad(norm, args, allow_unused=True)
        assert all(torch.isfinite(g).all() for g in second if g is not None)


def test_only_the_plain_operators_of_a_benchmark_are_not_guarded():
    """And the mark is true of them: each is not finite at its singular point."""
    unguarded = {name for name, op in OPS.items() if not op.guarded}
    assert unguarded == {"reciprocal", "plain_div", "plain_pow"}
    assert not unguarded & {*EVONORM_POINTWISE, *EVONORM_MOMENTS, *ACTIVATIONS}
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert OPS["reciprocal"].function(zero).item() == math.inf
    assert OPS["plain_div"].function(-one, zero).item() == -math.inf
    assert OPS["plain_pow"].function(zero, -one).item() == math.inf
    assert math.isnan(OPS["plain_pow"].function(-one, one / 2).item())


@pytest.mark.parametrize("name", [name for name in NUMPY if name not in ("max", "min")])
def test_the_derivatives_are_those_of_the_formula(name):
    """Central differences of the independent formula: the guards must not bend the gradient beside them."""
    op = OPS[name]
    values = torch.tensor([-5.3, -1.7, -0.31, 0.27, 0.9, 2.2], dtype=torch.float64)
    args = [a.clone().requires_grad_() for a in arguments(op, values)]
    y = op.function(*args) + 0 * sum(args)  # a constant has a derivative as well
    grads = torch.autograd.grad(y.sum(), args)
    plain = [a.detach().numpy() for a in args]
    step = 1e-6
    for k, grad in enumerate(grads):
        up = [a + step * (j == k) for j, a in enumerate(plain)]
        down = [a - step * (j == k) for j, a in enumerate(plain)]
        with np.errstate(invalid="ignore"):
            slope = (NUMPY[name](*up) - NUMPY[name](*down)) / (2 * step)
        np.testing.assert_allclose(grad.numpy(), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in NUMPY if OPS[name].arity == 2])
def test_an_op_is_marked_commutative_if_and_only_if_it_is(name):
    a, b = torch.randn(2, 50, dtype=torch.float64)
    commutes = torch.equal(OPS[name].function(a, b), OPS[name].function(b, a))
    assert OPS[name].commutative == commutes


def test_the_presets_are_the_papers_tables():
    assert len(EVONORM_POINTWISE) == 12
    assert len(EVONORM_MOMENTS) == 12
    assert all(OPS[name].moment is None for name in EVONORM_POINTWISE)
    assert {OPS[name].moment.index_set for name in EVONORM_MOMENTS} == {"batch", "instance", "layer", "group"}
    assert not set(ACTIVATIONS) & {*EVONORM_POINTWISE, *BENCHMARK_ONLY}
    assert {"relu", "gelu", "silu", "softplus", "erf"} <= set(ACTIVATIONS)
    assert all(OPS[name].arity == 1 for name in ACTIVATIONS)


def test_every_latex_template_takes_the_ops_arguments():
    for op in OPS.values():
        text = op.latex.format(*(f"<{k}>" for k in range(op.arity)))
        assert all(f"<{k}>" in text for k in range(op.arity)), op.name
        assert text.count("{") == text.count("}"), op.name


def twice(a):
    return 2 * a


def thrice(a):
    return 3 * a


def test_an_op_of_ones_own_is_found_and_may_be_registered_again(op_table):
    op = register(Op("twice", 1, twice))
    assert find_op("twice") is op
    assert register(Op("twice", 1, twice)) is op


def test_an_op_from_a_reloaded_module_is_the_same_op(op_table):
    namespaces = ({}, {})
    for namespace in namespaces:
        exec(compile("def half(a):\n    return a / 2\n", "mine.py", "exec"), namespace)
    first = register(Op("half", 1, namespaces[0]["half"]))
    assert register(Op("half", 1, namespaces[1]["half"])) is first


@pytest.mark.parametrize(
    "second",
    [
        Op("twice", 1, thrice),
        Op("twice", 1, twice, passes=4.0),
        Op("twice", 2, lambda a, b: a),
        Op("twice", 1, None, moment=Moment("batch", "mean")),
    ],
    ids=["another function", "another cost", "another arity", "a moment"],
)
def test_another_op_of_the_same_name_is_refused(op_table, second):
    register(Op("twice", 1, twice))
    with pytest.raises(InputError, match="'twice' is already registered"):
        register(second)
    assert OPS["twice"].function is twice


def test_two_lambdas_of_one_name_are_two_functions(op_table):
    register(Op("scaled", 1, lambda a: 2 * a))
    with pytest.raises(InputError, match="already registered"):
        register(Op("scaled", 1, lambda a: 3 * a))


@pytest.mark.parametrize("name", ["x", "zero", "v0", "v1", "v1_2", "s3", "affine"])
def test_an_op_may_not_hide_an_input(op_table, name):
    with pytest.raises(InputError, match=f"cannot be called '{name}'"):
        register(Op(name, 1, twice))


@pytest.mark.parametrize("name", ["", "1st", "a b", "a-b", "f(x)", "λ"])
def test_an_ops_name_is_an_identifier(name):
    with pytest.raises(InputError, match="identifier"):
        Op(name, 1, twice)


@pytest.mark.parametrize("arity", [0, -1])
def test_an_op_has_arguments(arity):
    with pytest.raises(InputError, match="at least 1 argument"):
        Op("constant", arity, twice)


def test_an_op_is_a_function_or_a_moment():
    with pytest.raises(InputError, match="exactly one"):
        Op("nothing", 1, None)
    with pytest.raises(InputError, match="exactly one"):
        Op("both", 1, twice, moment=Moment("batch", "mean"))


def test_an_unknown_op_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="unknown op 'sigmoyd' at node 3; the nearest is 'sigmoid'; known: abs"):
        find_op("sigmoyd", " at node 3")

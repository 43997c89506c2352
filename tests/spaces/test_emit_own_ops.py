"""Printed layers with ops of one's own: their source is copied, or it is said why it cannot be."""

import numpy as np
import pytest
import torch

from normact.spaces import (
    GraphLayer,
    InputError,
    Op,
    emit,
    parse,
    register,
)
from tests.spaces.emitted import FEATURES, SHAPES, compare_apart, layouts_of, load


def squeeze(a):
    """Several lines, with a comment and a nested function."""
    size = a.abs()  # a comment stays

    def inner(b):
        return b + 1

    return a / inner(size)


def with_default(a, slope=0.25):
    return torch.where(a > 0, a, slope * a)


def said_in_one_line(a, b):
    return torch.nn.functional.softplus(a, beta=2.0) * b


SCALE = 2.0


def uses_a_global(a):
    return a * SCALE


def uses_numpy(a):
    return a * float(np.pi)


def widened(a):
    return a.float()


def div_1(a):
    a = a + 1
    return a * a


def make_share():
    def share(a):
        a = a * 2
        return a + 1

    return share


def make_other_share(k):
    def share(a):
        a = a * k
        return a + 1

    return share


@pytest.mark.parametrize(
    ("op", "text", "line"),
    [
        (Op("squeeze", 1, squeeze), "affine(squeeze(div(x, batch_std(x))))", "# a comment stays"),
        (Op("bent", 1, with_default), "bent(group_std(x))", "def with_default(a, slope=0.25):"),
        (Op("one_line", 2, said_in_one_line), "one_line(neg(x), v1)", "softplus(neg_1, beta=2.0) * v1"),
        (Op("mine", 1, make_share()), "mul(mine(x), batch_std(x))", "def share_op(a):"),
        (Op("like_a_local", 1, div_1), "div(like_a_local(x), v1)", "def div_1_op(a):"),
    ],
    ids=lambda value: value.name if isinstance(value, Op) else None,
)
def test_an_op_of_ones_own_is_printed_from_its_source(op_table, runner, tmp_path, op, text, line):
    register(op)
    graph = parse(text)
    assert line in emit(graph, "layer")
    assert compare_apart([graph], layouts_of, torch.float32, tmp_path, runner) == 3


def test_an_op_that_widens_does_not_widen_the_layer(op_table):
    register(Op("widened", 1, widened))
    graph = parse("affine(add(widened(x), group_mean(x)))")
    x = torch.randn(SHAPES["NCHW"]).bfloat16()
    layer = load(emit(graph, "layer"))(FEATURES)
    assert layer(x).dtype == GraphLayer(graph, FEATURES)(x).dtype == torch.bfloat16
    assert torch.equal(layer(x), layer(x.float()).bfloat16())


def test_functions_of_one_name_stay_apart(op_table):
    def bump(a):
        a = a + 1
        return a * 2

    first = bump

    def bump(a):
        a = a + 3
        return a * 4

    register(Op("first", 1, first))
    register(Op("second", 1, bump))
    layer = load(emit(parse("add(first(x), second(first(x)))"), "layer"))(3)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), (x + 1) * 2 + ((x + 1) * 2 + 3) * 4)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda a: a * 2, "op 'own' .*write it as a `def`"),
        (uses_a_global, "op 'own' uses SCALE, which an exported file would lack"),
        (uses_numpy, "op 'own' uses np, which an exported file would lack"),
        (make_other_share(3), "op 'own' uses k, which an exported file would lack"),
        (torch.relu, "op 'own' has no source to export"),
        (load("def layer(a):\n    return a\n"), "op 'own' has no source to export"),
    ],
    ids=["lambda", "global", "numpy", "closure", "builtin", "no file"],
)
def test_an_op_that_cannot_stand_alone_is_refused(op_table, function, message):
    register(Op("own", 1, function))
    with pytest.raises(InputError, match=message) as error:
        emit(parse("own(x)"), "layer")
    assert "\n" not in str(error.value)

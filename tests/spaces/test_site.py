import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from normact.spaces import Conv, InputError, Site
from normact.spaces.fingerprint import fingerprint, probe_batch


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2), st.integers(5, 9), st.integers(5, 9))
def test_the_output_shape_of_a_convolution_is_torchs(kernel, stride, padding, height, width):
    site = Site("conv", 0, 3, 4, conv=Conv(kernel, stride, padding))
    x = torch.zeros(2, 3, height, width)
    assert site.output_shape(x.shape) == nn.Conv2d(3, 4, kernel, stride, padding)(x).shape


@pytest.mark.parametrize(
    ("site", "shape", "expected"),
    [
        (Site("linear", 0, 3, 4, layout="NC"), (7, 3), (7, 4)),
        (Site("linear", 0, 3, 4, layout="NLC"), (7, 5, 3), (7, 5, 4)),
        (Site("norm_act", 0, 3), (7, 3, 8, 9), (7, 3, 8, 9)),
        (Site("act", 0, 3, layout="NLC"), (7, 5, 3), (7, 5, 3)),
    ],
)
def test_the_output_shape_has_the_features_that_go_out(site, shape, expected):
    assert site.output_shape(shape) == expected


@pytest.mark.parametrize("positions", [0, -3])
def test_a_site_has_a_position(positions):
    with pytest.raises(InputError, match=f"positions={positions}; at least 1"):
        Site("linear", 0, 3, 4, layout="NC", positions=positions)


CONVS = [Conv(3, 1, 1), Conv(3, 2, 1), Conv(1), Conv(3), Conv(7), Conv(5, 3), Conv(3, 1, 1, 2)]


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_a_probe_of_a_convolution_has_the_shapes_of_one(conv):
    site = Site("conv", 0, 4, 6, conv=conv)
    layer = nn.Conv2d(4, 6, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups).double()
    for number in range(2):
        x, cotangent = probe_batch(site, number)
        assert layer(x).shape == cotangent.shape


def test_a_fingerprint_at_a_conv_site_tells_kernels_apart_and_not_their_start():
    site = Site("conv", 0, 4, 6, conv=Conv(3, 2, 1))

    def of(function):
        return fingerprint(lambda s: nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), function), [site])

    assert of(nn.ReLU()) == of(nn.ReLU())
    assert of(nn.ReLU()) != of(nn.SiLU())

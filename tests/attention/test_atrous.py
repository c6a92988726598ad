"""The convolution tap by tap against torch's own."""

from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from segvid.attention.atrous import AtrousConv2d
from segvid.attention.layers import conv_bn_relu
from tests.reference import assert_same_with_gradients, random_input


def atrous(rate: int, inputs: int = 3, outputs: int = 4) -> AtrousConv2d:
    torch.manual_seed(rate)
    return AtrousConv2d(inputs, outputs, 3, padding=rate, dilation=rate, bias=False).double()


@pytest.mark.parametrize("rate", [2, 3, 5, 6, 7, 24])
@pytest.mark.parametrize("size", [(6, 5), (1, 7), (9, 1), (1, 1), (12, 4)], ids=str)
def test_is_the_same_convolution(size, rate):
    conv = atrous(rate)
    x = random_input(2, 3, *size)
    assert_same_with_gradients(conv(x), F.conv2d(x, conv.weight, padding=rate, dilation=rate), [x, conv.weight])


@pytest.mark.parametrize("rate", [2, 4, 6])
def test_bands_of_rows_join_without_a_seam(rate):
    """Bands of a single row."""
    conv = atrous(rate, inputs=1, outputs=1)
    x = random_input(1, 1, 9, 7)
    pieces = "segvid.attention.atrous.BAND"
    with mock.patch(pieces, 8):
        assert_same_with_gradients(conv(x), F.conv2d(x, conv.weight, padding=rate, dilation=rate), [x, conv.weight])


@pytest.mark.parametrize(
    ("size", "rate", "expected"), [(64, 36, True), (64, 12, True), (64, 6, False), (97, 12, False)]
)
def test_taken_where_many_taps_read_padding(size, rate, expected):
    """64 at 12: (64 + 2 * 52)^2 / (3 * 64)^2 = 0.77 of the products count, 97 at 12: 0.84."""
    assert atrous(rate).tap_by_tap(torch.zeros(1, 3, size, size)) == expected


def test_graphs_and_half_precision_keep_the_convolution():
    conv = atrous(24).float()
    x = torch.randn(1, 3, 8, 9)
    expected = conv(x)
    assert "conv" in str(torch.jit.trace(conv, x).inlined_graph)
    other = torch.randn(1, 3, 40, 41)
    for graph in (torch.jit.trace(conv, x), torch.jit.script(conv)):
        torch.testing.assert_close(graph(x), expected)
        torch.testing.assert_close(graph(other), F.conv2d(other, conv.weight, padding=24, dilation=24))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16


def test_a_wide_dilation_uses_it_by_itself():
    assert isinstance(conv_bn_relu(4, 4, 3, dilation=12)[0], AtrousConv2d)
    assert not isinstance(conv_bn_relu(4, 4, 3)[0], AtrousConv2d)


def test_no_gradient_for_an_input_that_needs_none():
    conv = atrous(6)
    x = random_input(1, 3, 6, 5).detach()
    conv(x).sum().backward()
    assert conv.weight.grad is not None
    assert x.grad is None

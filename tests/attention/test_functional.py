"""softmax_attention, matmul_float32 and adaptive_avg_pool2d against their definitions."""

import pytest
import torch
from torch.nn import functional as F

from segvid.attention.functional import adaptive_avg_pool2d, matmul_float32, softmax_attention
from tests import reference
from tests.reference import assert_same_with_gradients, random_input


def attention_inputs(batch=2, queries=5, keys=7, dim=3, channels=4):
    """Five different sizes, so that no two axes can be confused."""
    return (
        random_input(batch, queries, dim, seed=1),
        random_input(batch, keys, dim, seed=2),
        random_input(batch, keys, channels, seed=3),
    )


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_softmax_attention_is_the_definition(scale):
    query, key, value = attention_inputs()
    expected = torch.stack(
        [
            torch.stack([reference.attend(q_i, list(k), list(v), scale) for q_i in q])
            for q, k, v in zip(query, key, value, strict=True)
        ]
    )
    assert_same_with_gradients(softmax_attention(query, key, value, scale), expected, [query, key, value])


def test_softmax_attention_scale_defaults_to_one():
    inputs = attention_inputs()
    assert torch.equal(softmax_attention(*inputs), softmax_attention(*inputs, 1.0))


def test_softmax_attention_weights_sum_to_one_over_the_keys():
    """Values that are all alike come back unchanged."""
    query, key, value = attention_inputs()
    alike = value[:, :1].expand_as(value)
    torch.testing.assert_close(softmax_attention(query, key, alike), alike[:, :1].expand(-1, query.shape[1], -1))


def test_softmax_attention_gradcheck():
    assert torch.autograd.gradcheck(lambda q, k, v: softmax_attention(q, k, v, 0.5), attention_inputs())


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_matmul_float32_is_exempt_from_autocast(low):
    """A sum over many positions: 300^2 * 1000 is out of float16's range and needs more digits than bfloat16 has."""
    a = torch.full((2, 3, 1000), 300.0)
    b = torch.full((2, 1000, 4), 300.0)
    with torch.autocast("cpu", dtype=low):
        product = matmul_float32(a, b)
        assert torch.matmul(a, b).dtype == low  # else this test proves nothing
    assert product.dtype == torch.float32
    assert torch.equal(product, torch.full((2, 3, 4), 9e7))


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_matmul_float32_takes_low_precision_inputs(low):
    a = torch.full((3, 1000), 300.0, dtype=low)
    product = matmul_float32(a, a.T)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product, a.double().matmul(a.double().T).float())


def test_matmul_float32_keeps_float64():
    a, b = random_input(2, 3, 5), random_input(2, 5, 4, seed=2)
    expected = torch.stack([torch.stack([(row[:, None] * s).sum(0) for row in r]) for r, s in zip(a, b, strict=True)])
    assert_same_with_gradients(matmul_float32(a, b), expected, [a, b])


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_matmul_float32_scripted_equals_eager():
    scripted = torch.jit.script(matmul_float32)
    a, b = random_input(2, 3, 5), random_input(2, 5, 4, seed=2)
    assert torch.equal(scripted(a, b), matmul_float32(a, b))


SIZES = [(1, 1), (1, 7), (7, 1), (2, 3), (5, 4), (6, 6), (7, 5), (12, 18), (13, 17), (33, 65), (97, 49)]


@pytest.mark.parametrize("bins", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_adaptive_avg_pool2d_equals_torch(size, bins):
    """Also where cells overlap (sizes that bins does not divide) and where there are more bins than positions."""
    x = random_input(2, 3, *size)
    assert_same_with_gradients(adaptive_avg_pool2d(x, bins), F.adaptive_avg_pool2d(x, bins), [x])


@pytest.mark.parametrize(("size", "bins"), [((5, 7), 3), ((2, 3), 6), ((4, 1), 2)], ids=str)
def test_adaptive_avg_pool2d_is_the_definition(size, bins):
    x = random_input(2, 3, *size)
    assert_same_with_gradients(adaptive_avg_pool2d(x, bins), reference.adaptive_avg_pool2d(x, bins), [x])


def test_adaptive_avg_pool2d_gradcheck():
    assert torch.autograd.gradcheck(lambda x: adaptive_avg_pool2d(x, 3), random_input(1, 2, 5, 4))

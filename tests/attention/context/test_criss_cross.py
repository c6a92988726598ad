"""Criss-cross attention against dense attention masked to the cross."""

import pytest
import torch

from segvid.attention.context import CrissCrossAttention
from segvid.attention.context.criss_cross import criss_cross_attention
from tests import reference
from tests.reference import assert_same_with_gradients, conv_weights, permutation_gap, random_input, randomise

GRIDS = [(3, 4), (5, 2), (1, 5), (5, 1), (1, 1)]


@pytest.mark.parametrize("recurrence", [1, 2, 3])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_dense_attention_masked_to_the_cross(grid, recurrence):
    """Weights and gamma are shared by all recurrences: their gradients are the sums over them."""
    block = randomise(CrissCrossAttention(6, recurrence=recurrence, reduction=2))
    x = random_input(2, 6, *grid)
    convs = [conv_weights(conv) for conv in (block.query, block.key, block.value)]
    expected = reference.criss_cross_attention(x, *convs, block.gamma, recurrence)
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_position_counts_itself_once(grid):
    """Query 0 makes the weights uniform, value = input: the plain mean over H + W - 1 positions, not H + W."""
    block = CrissCrossAttention(2, recurrence=1).double()
    with torch.no_grad():
        block.query.weight.zero_()
        block.query.bias.zero_()
        block.value.weight.copy_(torch.eye(2).reshape(2, 2, 1, 1))
        block.value.bias.zero_()
        x = random_input(1, 2, *grid)
        height, width = grid
        cross_sum = x.sum(dim=2, keepdim=True) + x.sum(dim=3, keepdim=True) - x
        average = criss_cross_attention(block.query(x), block.key(x), block.value(x))
        torch.testing.assert_close(average, cross_sum / (height + width - 1))


@pytest.mark.parametrize("grid", [(4, 6), (5, 3)], ids=str)
@pytest.mark.parametrize("recurrence", [1, 2])
def test_reach(grid, recurrence):
    """Once reaches the row and the column and nothing else, twice every position (section 3.2, figure 4)."""
    block = randomise(CrissCrossAttention(4, recurrence=recurrence, reduction=2))
    height, width = grid
    for row, column in [(0, 0), (height - 1, width // 2), (height // 2, width - 1)]:
        x = random_input(1, 4, *grid)
        (gradient,) = torch.autograd.grad(block(x)[0, :, row, column].sum(), x)
        reached = gradient[0].abs().sum(dim=0) > 0
        cross = torch.zeros(grid, dtype=torch.bool)
        cross[row, :] = True
        cross[:, column] = True
        assert torch.equal(reached, cross if recurrence == 1 else torch.ones_like(cross))


@pytest.mark.parametrize("training", [False, True])
def test_starts_as_the_identity(training):
    """gamma starts at 0: bit-exact."""
    x = random_input(2, 8, 5, 7).float()
    assert torch.equal(CrissCrossAttention(8).train(training)(x), x)


def test_no_recurrence_is_the_identity():
    x = random_input(2, 8, 5, 7)
    assert torch.equal(randomise(CrissCrossAttention(8, recurrence=0))(x), x)


def test_default_is_two_recurrences():
    x = random_input(1, 8, 3, 4)
    torch.testing.assert_close(randomise(CrissCrossAttention(8))(x), randomise(CrissCrossAttention(8, recurrence=2))(x))
    assert CrissCrossAttention(8).recurrence == 2


@pytest.mark.parametrize("recurrence", [1, 2])
def test_does_not_commute_with_permutations_of_the_positions(recurrence):
    """The grid matters: else it would be a non-local block in disguise."""
    block = randomise(CrissCrossAttention(6, recurrence=recurrence))
    assert permutation_gap(block, random_input(2, 6, 3, 5)) > 1e-2


def test_commutes_with_permutations_of_whole_rows_and_columns_and_with_transposition():
    """What is left of the symmetry: rows and columns are sets, and alike."""
    block = randomise(CrissCrossAttention(6))
    x = random_input(2, 6, 3, 5)
    rows, columns = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(block(x[:, :, rows][..., columns]), block(x)[:, :, rows][..., columns])
    torch.testing.assert_close(block(x.transpose(2, 3)), block(x).transpose(2, 3))


def test_parameter_count_does_not_depend_on_the_recurrence():
    """2 (512 * 64 + 64) query and key, 512 * 512 + 512 value, 1 gamma, as in DANet's position attention."""
    for recurrence in (1, 2, 3):
        assert sum(p.numel() for p in CrissCrossAttention(512, recurrence=recurrence).parameters()) == 328_321


def test_gradcheck():
    block = randomise(CrissCrossAttention(4, recurrence=2, reduction=2))
    assert torch.autograd.gradcheck(block, random_input(1, 4, 3, 2))


@pytest.mark.parametrize("grid", [(5, 7), (1, 6), (6, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_finite_under_autocast(dtype, grid):
    """With H = 1 the column branch is all -inf; the row keeps the softmax finite, in the gradient too."""
    torch.manual_seed(0)
    block = CrissCrossAttention(16)
    torch.nn.init.ones_(block.gamma)
    x = torch.randn(2, 16, *grid, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = block(x)
    assert y.isfinite().all()
    y.float().sum().backward()
    assert x.grad.isfinite().all()

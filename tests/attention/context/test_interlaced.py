"""Interlaced self-attention against dense attention with block masks."""

import itertools

import pytest
import torch

from segvid.attention.context import InterlacedAttention
from segvid.attention.context.interlaced import blockwise_attention
from tests import reference
from tests.reference import (
    assert_same_with_gradients,
    conv_norm_weights,
    conv_weights,
    permutation_gap,
    random_input,
    randomise,
    reached,
)

ORDERS = ["long_short", "short_long", "long", "short"]
MASKS = {"long": reference.long_range_mask, "short": reference.short_range_mask}


def expected_output(
    module: InterlacedAttention, x: torch.Tensor, order: str, block: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, and the product of the affinities: what each position sees of x through all attentions."""
    grid = x.shape[2:]
    seen = torch.eye(grid.numel(), dtype=x.dtype)
    for name, attention in zip(order.split("_"), module.attentions, strict=True):
        query, key = ([conv_norm_weights(layer) for layer in layers] for layers in (attention.query, attention.key))
        (value,) = conv_weights(attention.value)
        out = conv_norm_weights(attention.out)
        x, weights = reference.masked_self_attention(x, query, key, value, out, MASKS[name](grid, block))
        seen = weights @ seen
    return x, seen


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("grid", "block"),
    [
        ((4, 6), (2, 3)),  # whole blocks, dh and dw different
        ((5, 4), (2, 3)),  # one row and two columns of padding: more of it at the end, or half on each side
        ((3, 4), (4, 7)),  # one block, larger than the map: some places have no position at all
        ((1, 7), (3, 3)),
        ((5, 1), (2, 2)),
    ],
    ids=str,
)
def test_equals_dense_attention_with_block_masks(grid, block, order, training):
    """Dense attention knows no padding: it is never a key, and never counted by a batch norm."""
    module = randomise(InterlacedAttention(4, block=block, key_channels=3, value_channels=5, order=order))
    module.train(training)
    x = random_input(2, 4, *grid)
    expected, _ = expected_output(module, x, order, block)
    assert expected.std() > 1e-2
    assert_same_with_gradients(module(x), expected, [x, *module.parameters()])


def test_defaults_are_the_papers():
    """Blocks of 8 x 8, long range first, keys of half the width, values of all of it."""
    module = randomise(InterlacedAttention(8)).eval()
    for attention in module.attentions:
        assert attention.query[0][0].weight.shape[:2] == attention.key[0][0].weight.shape[:2] == (4, 8)
        assert attention.query[1][0].weight.shape[:2] == attention.key[1][0].weight.shape[:2] == (4, 4)
        assert attention.value.weight.shape[:2] == (8, 8)
    x = random_input(1, 8, 2, 9).detach()
    expected, _ = expected_output(module, x, "long_short", (8, 8))
    torch.testing.assert_close(module(x), expected)


def test_both_attentions_have_weights_of_their_own():
    long, short = InterlacedAttention(4).attentions
    assert not {id(p) for p in long.parameters()} & {id(p) for p in short.parameters()}


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("grid", [(3, 5), (1, 4), (5, 1)], ids=str)
def test_padding_is_never_a_key(grid, interlaced):
    """Keys that all repel: a padded key of zeros would take the whole weight. The values come back unchanged."""
    query = torch.full((2, 3, *grid), 5.0, dtype=torch.float64)
    value = torch.ones(2, 2, *grid, dtype=torch.float64)
    average = blockwise_attention(query, -query, value, (2, 3), interlaced, 1.0)
    torch.testing.assert_close(average, value)


@pytest.mark.parametrize("order", ["long", "short"])
@pytest.mark.parametrize("block", [(2, 3), (3, 4)], ids=str)
def test_each_attention_reaches_its_group(block, order):
    """Each position depends on its group and on nothing else."""
    grid = (4, 6)
    module = randomise(InterlacedAttention(8, block=block, order=order)).eval()
    x = random_input(1, 8, *grid)
    y = module(x)
    mask = MASKS[order](grid, block)
    assert not mask.all()
    for row, column in itertools.product(range(grid[0]), range(grid[1])):
        assert torch.equal(reached(y, x, (row, column)).flatten(), mask[row * grid[1] + column])


@pytest.mark.parametrize("order", ["long_short", "short_long"])
def test_the_two_together_reach_everything(order):
    """Once through both, where the blocks are whole (section 3.2)."""
    module = randomise(InterlacedAttention(8, block=(2, 3), order=order)).eval()
    x = random_input(1, 8, 4, 6)
    y = module(x)
    for position in [(0, 0), (1, 4), (3, 5)]:
        assert reached(y, x, position).all()


@pytest.mark.parametrize(("order", "block"), [("long", (1, 1)), ("short", (4, 5)), ("short", (9, 5))], ids=str)
def test_one_group_is_dense_attention(order, block):
    module = randomise(InterlacedAttention(6, block=block, order=order)).eval()
    assert permutation_gap(module, random_input(2, 6, 4, 5)) < 1e-10


@pytest.mark.parametrize("order", ORDERS)
def test_does_not_commute_with_permutations_of_the_positions(order):
    module = randomise(InterlacedAttention(6, block=(2, 2), order=order)).eval()
    assert permutation_gap(module, random_input(2, 6, 4, 5)) > 1e-2


def test_the_orders_differ():
    """The same weights, applied in the other order."""
    long_short = randomise(InterlacedAttention(16, block=(2, 2))).eval()
    short_long = randomise(InterlacedAttention(16, block=(2, 2), order="short_long")).eval()
    x = random_input(1, 16, 4, 5)
    assert (long_short(x) - short_long(x)).abs().max() > 1e-2


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("grid", "block"), [((4, 6), (2, 3)), ((5, 4), (2, 3)), ((1, 5), (2, 2))], ids=str)
def test_attention_map_is_the_product_of_the_affinities(grid, block, order):
    module = randomise(InterlacedAttention(6, block=block, order=order)).eval()
    x = random_input(2, 6, *grid)
    _, weights = expected_output(module, x, order, block)
    for row, column in itertools.product(range(grid[0]), range(grid[1])):
        actual = module.attention_map(x, (row, column))
        torch.testing.assert_close(actual, weights[:, row * grid[1] + column].reshape(2, *grid))


def test_attention_map_needs_no_gradient():
    module = randomise(InterlacedAttention(6, block=(2, 2))).eval()
    x = random_input(1, 6, 3, 4)
    expected = module.attention_map(x, (1, 2))
    with torch.no_grad():
        actual = module.attention_map(x, (1, 2))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual.sum(dim=(1, 2)), torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position):
    with pytest.raises(ValueError, match="grid"):
        InterlacedAttention(4, block=(2, 2)).attention_map(torch.zeros(1, 4, 3, 5), position)


@pytest.mark.parametrize("order", ["both", "short_short", ""])
def test_unknown_orders_are_refused(order):
    with pytest.raises(ValueError, match="order"):
        InterlacedAttention(4, order=order)


@pytest.mark.parametrize(("order", "count"), [("long_short", 1_841_152), ("long", 920_576), ("short", 920_576)])
def test_parameter_count(order, count):
    """Query and key 512 * 256 + 512 + 256 * 256 + 512 each, value 512 * 512, out 512 * 512 + 1024: 920,576 twice.

    With the head's fusion, 1024 * 512 + 1024, the 2,366,464 of the released module.
    """
    assert sum(p.numel() for p in InterlacedAttention(512, order=order).parameters()) == count


@pytest.mark.parametrize("order", ORDERS)
def test_gradcheck(order):
    module = randomise(InterlacedAttention(4, block=(2, 2), order=order)).eval()
    assert torch.autograd.gradcheck(module, random_input(1, 4, 3, 2))


@pytest.mark.parametrize("grid", [(5, 7), (1, 6), (6, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast(dtype, grid):
    """With 256 key channels, what shuts padding out is beyond float16 before the scale."""
    torch.manual_seed(0)
    module = InterlacedAttention(16, block=(4, 4), key_channels=256)
    x = torch.randn(2, 16, *grid, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = module(x)
    assert y.isfinite().all()
    y.float().sum().backward()
    for tensor in [x, *module.parameters()]:
        assert tensor.grad.isfinite().all()

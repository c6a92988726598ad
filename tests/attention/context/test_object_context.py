"""Object context, alone, in a pyramid and in ASPP, against dense attention with block masks."""

import itertools

import pytest
import torch

from segvid.attention.context import ASPObjectContext, ObjectContext, PyramidObjectContext
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

GRIDS = [(3, 4), (5, 7), (1, 5), (5, 1)]


def context_weights(context: ObjectContext, shared: bool) -> tuple:
    """Query, key, value and out as the references take them."""
    key = conv_norm_weights(context.key)
    query = key if shared else conv_norm_weights(context.query)
    return query, key, conv_weights(context.value), conv_weights(context.out)


# Plain


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("downsample", [1, 2, 3])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_definition(grid, shared, downsample, training):
    options = {"key_channels": 3, "value_channels": 5, "shared_query_key": shared, "downsample": downsample}
    block = randomise(ObjectContext(4, **options)).train(training)
    x = random_input(2, 4, *grid)
    expected = reference.object_context(x, *context_weights(block, shared), downsample)
    assert expected.std() > 1e-2
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


def test_defaults_are_the_papers():
    """Half of the channels for key and value, one projection for query and key, full size."""
    block = randomise(ObjectContext(8)).eval()
    x = random_input(2, 8, 3, 5)
    assert block.key[0].weight.shape[0] == block.value.weight.shape[0] == 4
    torch.testing.assert_close(block(x), reference.object_context(x, *context_weights(block, True), 1))


@pytest.mark.parametrize("training", [False, True])
def test_starts_empty(training):
    """The last convolution starts at zero, weight and bias: the context beside the input is 0, bit-exact."""
    x = random_input(2, 8, 5, 7).float()
    assert torch.equal(ObjectContext(8).train(training)(x), torch.zeros_like(x))
    contexts = PyramidObjectContext(8).train(training)(x)[:, 4 * 8 :]
    assert torch.equal(contexts, torch.zeros_like(contexts))


def test_the_shared_projection_counts_its_batch_once():
    """Query and key are one result, not two passes through one batch norm, whose averages would move twice."""
    block = ObjectContext(4).train()
    block(torch.randn(2, 4, 3, 5))
    assert block.key[1].num_batches_tracked == 1


def test_commutes_with_permutations_of_the_positions():
    block = randomise(ObjectContext(6)).eval()
    assert permutation_gap(block, random_input(2, 6, 3, 5)) < 1e-10


def test_downsampling_ties_it_to_the_grid():
    block = randomise(ObjectContext(6, downsample=2)).eval()
    assert permutation_gap(block, random_input(2, 6, 4, 5)) > 1e-2


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("downsample", [1, 2, 3])
@pytest.mark.parametrize("grid", [(5, 7), (7, 4)], ids=str)
def test_attention_map_shows_the_weights_of_one_query(grid, downsample, shared):
    """Positions that were pooled together share query and weight."""
    block = randomise(ObjectContext(6, shared_query_key=shared, downsample=downsample)).eval()
    x = random_input(2, 6, *grid)
    pooled = reference.max_pool(x, downsample)
    _, weights = reference.masked_object_context(pooled, *context_weights(block, shared), None)
    for row, column in [(0, 0), (4, 3), (grid[0] - 1, grid[1] - 1)]:
        query = row // downsample * pooled.shape[3] + column // downsample
        coarse = weights[:, query].reshape(2, *pooled.shape[2:])
        actual = block.attention_map(x, (row, column))
        assert actual.shape == (2, *grid)
        for y, x_ in itertools.product(range(grid[0]), range(grid[1])):
            torch.testing.assert_close(actual[:, y, x_], coarse[:, y // downsample, x_ // downsample])


# Pyramid


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sizes", [(1,), (2,), (1, 3), (1, 2, 3, 6)], ids=str)
@pytest.mark.parametrize("grid", [(6, 6), (7, 5), (1, 8), (8, 1)], ids=str)
def test_pyramid_equals_dense_attention_inside_blocks(grid, sizes, shared, training):
    """More blocks than rows leave all but the last empty."""
    options = {"sizes": sizes, "key_channels": 3, "value_channels": 5, "shared_query_key": shared}
    block = randomise(PyramidObjectContext(4, **options)).train(training)
    x = random_input(2, 4, *grid)
    up = conv_norm_weights(block.widen)
    expected = reference.pyramid_object_context(x, up, *context_weights(block.context, shared), sizes)
    assert expected.shape[1] == block.out_channels == 2 * len(sizes) * 4
    assert expected[:, len(sizes) * 4 :].std() > 1e-2
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


def test_pyramid_sizes_default_to_the_papers():
    block = PyramidObjectContext(8)
    assert block(torch.randn(2, 8, 7, 9)).shape == (2, block.out_channels, 7, 9)
    assert block.out_channels == 64
    assert tuple(block.sizes) == (1, 2, 3, 6)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("grid", [(6, 6), (7, 5)], ids=str)
def test_pyramid_reaches_its_block(grid, size):
    """Each context depends on the positions of the query's block and nothing else."""
    block = randomise(PyramidObjectContext(8, sizes=(size,))).eval()
    x = random_input(1, 8, *grid)
    contexts = block(x)[:, 8:]
    mask = reference.pyramid_mask(grid, size)
    for row, column in itertools.product(range(grid[0]), range(grid[1])):
        assert torch.equal(reached(contexts, x, (row, column)).flatten(), mask[row * grid[1] + column])


@pytest.mark.parametrize("sizes", [(2,), (1, 2, 3, 6)], ids=str)
def test_pyramid_does_not_commute_with_permutations_of_the_positions(sizes):
    block = randomise(PyramidObjectContext(6, sizes=sizes)).eval()
    assert permutation_gap(block, random_input(2, 6, 4, 5)) > 1e-2


def test_pyramid_of_one_block_is_object_context():
    block = randomise(PyramidObjectContext(6, sizes=(1,))).eval()
    x = random_input(2, 6, 4, 5)
    torch.testing.assert_close(block(x)[:, 6:], block.context(x))


@pytest.mark.parametrize("grid", [(7, 5), (1, 8)], ids=str)
@pytest.mark.parametrize("sizes", [(2,), (1, 2, 3, 6)], ids=str)
def test_pyramid_attention_map_is_the_mean_over_the_sizes(sizes, grid):
    block = randomise(PyramidObjectContext(6, sizes=sizes)).eval()
    x = random_input(2, 6, *grid)
    context = context_weights(block.context, True)
    maps = []
    for size in sizes:
        mask = reference.pyramid_mask(grid, size)
        maps.append(reference.masked_object_context(x, *context, mask)[1])
    mean = torch.stack(maps).mean(dim=0)
    for row, column in itertools.product(range(grid[0]), range(grid[1])):
        expected = mean[:, row * grid[1] + column].reshape(2, *grid)
        torch.testing.assert_close(block.attention_map(x, (row, column)), expected)


# In ASPP


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("rates", [(1,), (2, 3)], ids=str)
@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (1, 6), (6, 1)], ids=str)
def test_atrous_pyramid_equals_definition(grid, rates, shared, training):
    block = randomise(ASPObjectContext(8, rates=rates, shared_query_key=shared)).train(training)
    x = random_input(2, 8, *grid)
    expected = reference.atrous_pyramid_object_context(
        x,
        conv_norm_weights(block.reduce),
        context_weights(block.context, shared),
        conv_norm_weights(block.fuse),
        conv_norm_weights(block.branches[0]),
        [conv_norm_weights(branch) for branch in block.branches[1:]],
        rates,
        conv_norm_weights(block.project),
    )
    assert expected.std() > 1e-2
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


def test_atrous_pyramid_widths_and_rates_are_the_papers():
    """All branches C / 2; inside, keys C / 4 and values C / 2 at half the size."""
    block = ASPObjectContext(16)
    assert [branch[0].weight.shape[:2] for branch in block.branches] == [(8, 16)] * 4
    assert [branch[0].dilation for branch in block.branches] == [(1, 1), (12, 12), (24, 24), (36, 36)]
    assert block.context.key[0].weight.shape[:2] == (4, 8)
    assert block.context.value.weight.shape[:2] == (8, 8)
    assert block.context.downsample == 2


def test_atrous_pyramid_reaches_everything():
    """With object context, unlike the dilated convolutions alone."""
    block = randomise(ASPObjectContext(8, rates=(2,))).eval()
    x = random_input(1, 8, 9, 11)
    assert reached(block(x), x, (0, 0)).all()


# All


@pytest.mark.parametrize(
    ("block", "count"),
    [
        (lambda: ObjectContext(512), 394_496),
        (lambda: ObjectContext(512, shared_query_key=False), 526_080),
        (lambda: ObjectContext(512, downsample=2), 394_496),
        (lambda: PyramidObjectContext(512), 1_447_168),
        (lambda: PyramidObjectContext(512, sizes=(1, 2)), 394_496 + 512 * 1024 + 2048),
        (lambda: ASPObjectContext(512), 5_804_800),
        (lambda: ASPObjectContext(512, shared_query_key=False), 5_804_800 + 33_024),
    ],
)
def test_parameter_counts(block, count):
    """Key 512 * 256 + 512 with its batch norm (another for a query of its own), value 512 * 256 + 256, out 256 * 512 +
    512: 394,496. The pyramid adds 512 * 2048 + 4096. ASP: 3x3 512 -> 256 four times 1,180,160; context of 256 channels
    33,024 (key 128) + 65,792 + 65,792; fusion and 1x1 branch 131,584 each; projection 1280 * 512 + 1024.
    """
    assert sum(p.numel() for p in block().parameters()) == count


@pytest.mark.parametrize(
    "make",
    [
        lambda: ObjectContext(4),
        lambda: ObjectContext(4, downsample=2, shared_query_key=False),
        lambda: PyramidObjectContext(4, sizes=(1, 2)),
        lambda: ASPObjectContext(8, rates=(2,)),
    ],
)
def test_gradcheck(make):
    block = randomise(make()).eval()
    channels = 8 if isinstance(block, ASPObjectContext) else 4
    assert torch.autograd.gradcheck(block, random_input(1, channels, 3, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [ObjectContext, PyramidObjectContext, ASPObjectContext])
def test_finite_under_autocast(make, dtype):
    torch.manual_seed(0)
    block = make(16)
    x = torch.randn(2, 16, 5, 7, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = block(x)
    assert y.isfinite().all()
    y.float().sum().backward()
    assert x.grad.isfinite().all()

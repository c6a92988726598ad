"""Asymmetric non-local blocks against their definition: attention to the cells of pooled grids."""

import itertools

import pytest
import torch

from segvid.attention.context import AsymmetricFusion, AsymmetricPyramidNonLocal
from tests import reference
from tests.reference import (
    assert_same_with_gradients,
    conv_norm_weights,
    conv_weights,
    norm_weights,
    permutation_gap,
    random_input,
    randomise,
)

GRIDS = [(3, 5), (4, 4), (1, 6), (5, 1)]


def make(**options) -> AsymmetricPyramidNonLocal:
    return randomise(AsymmetricPyramidNonLocal(6, **{"inner_channels": 4, "bins": (1, 2, 3)} | options)).eval()


def expected(block: AsymmetricPyramidNonLocal, x: torch.Tensor, bins=(1, 2, 3)) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.asymmetric_pyramid_non_local(
        x, conv_norm_weights(block.key), conv_weights(block.value), conv_weights(block.out), bins
    )


def make_fusion(**options) -> AsymmetricFusion:
    return randomise(AsymmetricFusion(6, 8, **{"bins": (1, 3)} | options)).eval()


def expected_fusion(block: AsymmetricFusion, high: torch.Tensor, low: torch.Tensor, bins=(1, 3)) -> torch.Tensor:
    conv, norm = block.fuse
    return reference.asymmetric_fusion(
        high,
        low,
        conv_norm_weights(block.query),
        conv_norm_weights(block.key),
        conv_weights(block.value),
        conv_weights(block.out),
        (conv_weights(conv), norm_weights(norm)),
        bins,
    )[0]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bins", [(1, 2, 3), (2,), (3, 4)], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_definition(grid, bins, training):
    """The grids need not divide the map, nor be smaller."""
    block = make(bins=bins).train(training)
    x = random_input(2, 6, *grid)
    y, weights = expected(block, x, bins)
    assert weights.shape == (2, grid[0] * grid[1], sum(b * b for b in bins))
    assert_same_with_gradients(block(x), y, [x, *block.parameters()])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("inner", [None, 3])
@pytest.mark.parametrize(
    ("high_grid", "low_grid"), [((3, 4), (3, 4)), ((2, 3), (5, 4)), ((1, 5), (1, 5)), ((4, 1), (4, 1))], ids=str
)
def test_fusion_equals_definition(high_grid, low_grid, inner, training):
    """The lower level may have a grid of its own."""
    block = make_fusion(inner_channels=inner).train(training)
    high, low = random_input(2, 6, *high_grid), random_input(2, 8, *low_grid, seed=4)
    y = expected_fusion(block, high, low)
    assert (y < 0).any()  # no ReLU behind the last batch norm
    assert_same_with_gradients(block(high, low), y, [high, low, *block.parameters()])


def test_defaults_are_the_papers():
    block, fusion = AsymmetricPyramidNonLocal(16), AsymmetricFusion(16, 24)
    assert block.key[0].out_channels == block.value.out_channels == 8
    assert fusion.query[0].out_channels == fusion.key[0].out_channels == fusion.value.out_channels == 6
    for bins in (block.bins, fusion.bins):
        assert sum(b * b for b in bins) == 110
        assert bins == [1, 3, 6, 8]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_attention_map_shares_the_weight_of_a_cell_among_its_positions(grid):
    """What the position's value counts in the context: the weights of all cells that it lies in, by their sizes."""
    block = make()
    x = random_input(2, 6, *grid).detach()
    _, weights = expected(block, x)
    count = grid[0] * grid[1]
    one_hot = torch.eye(count, dtype=torch.float64).reshape(1, count, *grid)
    cells = reference.pyramid_tokens(one_hot, (1, 2, 3))[0]  # (position, token)
    for i, position in enumerate(itertools.product(*map(range, grid))):
        row = torch.stack([(weights[:, i] * cells[j]).sum(dim=1) for j in range(count)], dim=1)
        shown = block.attention_map(x, position)
        torch.testing.assert_close(shown, row.reshape(2, *grid), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(shown.flatten(1).sum(dim=1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_attention_map_without_gradients(guard):
    block = make()
    x = random_input(2, 6, 3, 5).detach()
    shown = block.attention_map(x, (1, 2))
    with guard():
        assert torch.equal(block.attention_map(x, (1, 2)), shown)


@pytest.mark.parametrize("training", [False, True])
def test_starts_without_a_context(training):
    """The last convolution starts at 0, weight and bias, and there is no residual: the head concatenates."""
    block = AsymmetricPyramidNonLocal(8).train(training)
    assert not block(random_input(2, 8, 5, 7).float()).any()
    fusion = AsymmetricFusion(8, 6).train(training)
    high = random_input(2, 8, 5, 7).float()
    low = random_input(2, 6, 5, 7, seed=4).float()
    assert torch.equal(fusion(high, low), fusion(high, 2 * low))


def test_one_cell_is_a_global_average_and_more_tie_it_to_the_grid():
    x = random_input(2, 6, 4, 5)
    assert permutation_gap(make(bins=(1,)), x) < 1e-10
    assert permutation_gap(make(bins=(1, 2)), x) > 1e-3


def test_cells_of_one_position_each_are_dense_attention():
    """4 x 4 cells on a 4 x 4 map: OCNet's context."""
    block = make(bins=(4,))
    x = random_input(2, 6, 4, 4).detach()
    key = conv_norm_weights(block.key)
    dense = reference.object_context(x, key, key, conv_weights(block.value), conv_weights(block.out), 1)
    torch.testing.assert_close(block(x), dense, rtol=1e-10, atol=1e-10)


def test_samples_do_not_mix():
    block, fusion = make(), make_fusion()
    x, low = random_input(3, 6, 3, 4), random_input(3, 8, 3, 4, seed=4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))
    torch.testing.assert_close(fusion(x, low)[1:2], fusion(x[1:2], low[1:2]))


def test_parameter_count():
    """APNB of 512, d = 256; AFNB of 2048 on 1024, d = 256. Query, key: batch norm. Value, out: bias."""
    block = 512 * 256 + 512 + 512 * 256 + 256 + 256 * 512 + 512
    assert sum(p.numel() for p in AsymmetricPyramidNonLocal(512).parameters()) == block
    fusion = 2048 * 256 + 512 + 1024 * 256 + 512 + 1024 * 256 + 256 + 256 * 2048 + 2048 + 4096 * 2048 + 4096
    assert sum(p.numel() for p in AsymmetricFusion(2048, 1024).parameters()) == fusion


def test_gradcheck():
    assert torch.autograd.gradcheck(make(), random_input(1, 6, 2, 3))
    assert torch.autograd.gradcheck(make_fusion(), (random_input(1, 6, 2, 2), random_input(1, 8, 3, 2, seed=4)))


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position):
    with pytest.raises(ValueError, match="grid"):
        AsymmetricPyramidNonLocal(4).attention_map(torch.zeros(1, 4, 3, 5), position)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast(dtype):
    torch.manual_seed(0)
    block = AsymmetricPyramidNonLocal(64).eval()
    torch.nn.init.normal_(block.out.weight)
    with torch.autocast("cpu", dtype=dtype):
        assert block(10 * torch.randn(1, 64, 16, 16)).isfinite().all()

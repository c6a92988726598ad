"""Double attention against the affinity that it factorises."""

import pytest
import torch

from segvid.attention.context import DoubleAttention
from tests import reference
from tests.reference import (
    assert_same_with_gradients,
    conv_weights,
    norm_weights,
    permutation_gap,
    random_input,
    randomise,
)


def expected(block: DoubleAttention, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    convs = [conv_weights(conv) for conv in (block.value, block.gather, block.distribute, block.out)]
    return reference.double_attention(x, *convs, norm_weights(block.norm))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{}, {"inner_channels": 3, "nodes": 5}, {"nodes": 1}], ids=str)
@pytest.mark.parametrize("grid", [(7,), (3, 5), (1, 6), (6, 1), (2, 3, 2)], ids=str)
def test_equals_definition(grid, options, training):
    block = randomise(DoubleAttention(8, **options)).train(training)
    x = random_input(2, 8, *grid)
    assert_same_with_gradients(block(x), expected(block, x)[0], [x, *block.parameters()])


def test_effective_affinity_has_rows_of_sum_one_and_the_rank_of_its_nodes():
    block = randomise(DoubleAttention(8, nodes=3)).eval()
    _, affinity, _, _ = expected(block, 3 * random_input(2, 8, 3, 4).detach())
    torch.testing.assert_close(affinity.sum(dim=2), torch.ones(2, 12, dtype=torch.float64))
    assert (torch.linalg.matrix_rank(affinity) == 3).all()


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 2, 3)], ids=str)
def test_attention_map_is_a_row_of_the_affinity(grid):
    block = randomise(DoubleAttention(8, nodes=3)).eval()
    x = random_input(2, 8, *grid).detach()
    _, affinity, _, _ = expected(block, x)
    for index, position in enumerate(torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, len(grid)).tolist()):
        shown = block.attention_map(x, position)
        torch.testing.assert_close(shown, affinity[:, index].reshape(2, *grid), rtol=1e-10, atol=1e-12)


def test_regions_are_the_distribution_over_the_nodes():
    block = randomise(DoubleAttention(8, nodes=3)).eval()
    x = random_input(2, 8, 3, 4).detach()
    _, _, gathered, distributed = expected(block, x)
    regions = block.regions(x)
    torch.testing.assert_close(regions, distributed.reshape(2, 3, 3, 4), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(regions.sum(dim=1), torch.ones(2, 3, 4, dtype=torch.float64))
    torch.testing.assert_close(gathered.sum(dim=2), torch.ones(2, 3, dtype=torch.float64))


def test_one_node_gives_every_position_the_same_vector():
    """Nothing is left to distribute: a global context block."""
    block = randomise(DoubleAttention(8, nodes=1)).eval()
    x = random_input(2, 8, 3, 4).detach()
    added = (block(x) - x).flatten(2)
    torch.testing.assert_close(added, added[:, :, :1].expand_as(added), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_starts_as_the_identity(training):
    x = random_input(2, 8, 5, 7).float()
    assert torch.equal(DoubleAttention(8).train(training)(x), x)


@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 2)], ids=str)
def test_commutes_with_permutations_of_the_positions(grid):
    assert permutation_gap(randomise(DoubleAttention(8)).eval(), random_input(2, 8, *grid)) < 1e-10


def test_samples_do_not_mix():
    block = randomise(DoubleAttention(8)).eval()
    x = random_input(3, 8, 3, 4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


def test_parameter_count():
    """512 channels, c_m = c_n = 128: 3 (512 * 128 + 128) for A, B, V; 128 * 512 out; 2 * 512 batch norm."""
    assert sum(p.numel() for p in DoubleAttention(512).parameters()) == 3 * 65_664 + 65_536 + 1024
    assert sum(p.numel() for p in DoubleAttention(512, inner_channels=256, nodes=64).parameters()) == (
        512 * 256 + 256 + 2 * (512 * 64 + 64) + 256 * 512 + 1024
    )


def test_gradcheck():
    block = randomise(DoubleAttention(4, inner_channels=2, nodes=3)).eval()
    assert torch.autograd.gradcheck(block, random_input(1, 4, 2, 3))


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position):
    with pytest.raises(ValueError, match="grid"):
        DoubleAttention(4).attention_map(torch.zeros(1, 4, 3, 5), position)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast(dtype):
    torch.manual_seed(0)
    block = DoubleAttention(16).eval()
    torch.nn.init.ones_(block.norm.weight)
    with torch.autocast("cpu", dtype=dtype):
        assert block(100 * torch.randn(1, 16, 16, 16)).isfinite().all()

"""Non-local block against its definition."""

import pytest
import torch

from segvid.attention.context import NonLocal
from tests import reference
from tests.reference import (
    assert_same_with_gradients,
    conv_weights,
    norm_weights,
    permutation_gap,
    random_input,
    randomise,
)

GRIDS = [(3, 4), (1, 5), (5, 1), (2, 2, 3)]


def expected_output(block: NonLocal, x: torch.Tensor, scaled: bool) -> torch.Tensor:
    convs = [conv_weights(conv) for conv in (block.query, block.key, block.value, block.out)]
    return reference.non_local(x, *convs, norm_weights(block.norm), scaled)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_definition(grid, scale, training):
    block = randomise(NonLocal(6, inner_channels=3, scale=scale)).train(training)
    x = random_input(2, 6, *grid)
    assert_same_with_gradients(block(x), expected_output(block, x, scale), [x, *block.parameters()])


def test_scales_by_default_as_the_official_code_does():
    block = randomise(NonLocal(6)).eval()
    x = random_input(2, 6, 3, 4)
    torch.testing.assert_close(block(x), expected_output(block, x, scaled=True))
    assert (block(x) - expected_output(block, x, scaled=False)).abs().max() > 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_starts_as_the_identity(training):
    """The last batch norm starts at 0: bit-exact."""
    x = random_input(2, 6, 5, 7).float()
    assert torch.equal(NonLocal(6).train(training)(x), x)


@pytest.mark.parametrize(
    "channels",
    [
        1024,
        512,
    ],
)
def test_official_initialisation_of_wide_blocks(channels):
    """N(0, 0.01), biases 0, batch norm weight 0 and bias 0; it is the norm that is zero, not the convolution."""
    block = NonLocal(channels)
    assert not block.norm.weight.any()
    assert not block.norm.bias.any()
    for conv in (block.query, block.key, block.value, block.out):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert not conv.bias.any()


def test_narrow_blocks_start_wider():
    """Deliberate difference: with 0.01 their output would be nothing beside the epsilon of the last batch norm."""
    block = NonLocal(64)
    for conv in (block.query, block.key, block.value, block.out):
        assert conv.weight.std() > 0.015


@pytest.mark.parametrize("grid", [(3, 5), (2, 3, 4)], ids=str)
def test_commutes_with_permutations_of_the_positions(grid):
    block = randomise(NonLocal(6)).eval()
    assert permutation_gap(block, random_input(2, 6, *grid)) < 1e-10


def test_samples_do_not_mix():
    block = randomise(NonLocal(6)).eval()
    x = random_input(3, 6, 3, 4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


def test_parameter_count():
    """512 channels, d = 256: 3 (512 * 256 + 256) for query, key, value; 256 * 512 + 512 out; 2 * 512 batch norm."""
    assert sum(p.numel() for p in NonLocal(512).parameters()) == 526_592


def test_gradcheck():
    block = randomise(NonLocal(4)).eval()
    assert torch.autograd.gradcheck(block, random_input(1, 4, 3, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast_at_large_activations(dtype):
    """Scaling before the product keeps the affinities of a backbone's larger activations inside float16."""
    torch.manual_seed(0)
    block = NonLocal(64).eval()
    torch.nn.init.ones_(block.norm.weight)
    for conv in (block.query, block.key, block.value, block.out):
        torch.nn.init.normal_(conv.weight, std=0.01)
    with torch.autocast("cpu", dtype=dtype):
        assert block(1000 * torch.randn(1, 64, 16, 16)).isfinite().all()

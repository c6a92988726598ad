"""Position and channel attention against their definitions."""

import pytest
import torch

from segvid.attention.context import ChannelAttention, PositionAttention
from tests import reference
from tests.reference import assert_same_with_gradients, conv_weights, permutation_gap, random_input, randomise

GRIDS = [(3, 4), (1, 5), (5, 1), (2, 2, 3)]
BLOCKS = {
    "position": lambda channels: PositionAttention(channels, reduction=2),
    "channel-minus": lambda channels: ChannelAttention(channels, affinity="minus"),
    "channel-plus": lambda channels: ChannelAttention(channels, affinity="plus"),
}


@pytest.fixture(params=BLOCKS)
def make(request):
    """Builds one of the modules from its channels."""
    return BLOCKS[request.param]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_position_attention_equals_definition(grid):
    block = randomise(PositionAttention(6, reduction=2))
    x = random_input(2, 6, *grid)
    convs = [conv_weights(conv) for conv in (block.query, block.key, block.value)]
    expected = reference.position_attention(x, *convs, block.gamma)
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


@pytest.mark.parametrize("affinity", ["minus", "plus"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_channel_attention_equals_definition(grid, affinity):
    block = randomise(ChannelAttention(6, affinity=affinity))
    x = random_input(2, 6, *grid)
    expected = reference.channel_attention(x, block.gamma, affinity)
    assert_same_with_gradients(block(x), expected, [x, block.gamma])


@pytest.mark.parametrize("training", [False, True])
def test_starts_as_the_identity(make, training):
    """gamma starts at 0: bit-exact."""
    x = random_input(2, 8, 5, 7).float()
    assert torch.equal(make(8).train(training)(x), x)


@pytest.mark.parametrize("grid", [(3, 5), (2, 3, 4)], ids=str)
def test_commutes_with_permutations_of_the_positions(make, grid):
    assert permutation_gap(randomise(make(6)), random_input(2, 6, *grid)) < 1e-10


def test_samples_do_not_mix(make):
    block = randomise(make(6))
    x = random_input(3, 6, 3, 4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


def test_gradcheck(make):
    assert torch.autograd.gradcheck(randomise(make(4)), random_input(1, 4, 3, 2))


def test_parameter_counts():
    """PAM: 2 (512 * 64 + 64) query and key, 512 * 512 + 512 value, 1 gamma. CAM: gamma alone."""
    assert sum(p.numel() for p in PositionAttention(512).parameters()) == 328_321
    assert sum(p.numel() for p in ChannelAttention(512).parameters()) == 1


def channel_weights(affinity: str, x: torch.Tensor) -> torch.Tensor:
    """The (C, C) weights that the module applied to one sample, from its output: A X = (output - x) / gamma."""
    block = ChannelAttention(x.shape[1], affinity=affinity).double()
    torch.nn.init.ones_(block.gamma)
    with torch.no_grad():
        context = (block(x) - x).flatten(2)[0]
        return context @ torch.linalg.pinv(x.flatten(2)[0])


def test_minus_attends_to_the_least_alike_channels_and_plus_to_the_channel_itself():
    """The released code's max(E) - E is not a stabilised softmax(E): the own weight vanishes (DANet issue 9)."""
    x = random_input(1, 6, 8, 8)
    energy = x.flatten(2)[0] @ x.flatten(2)[0].T
    minus, plus = channel_weights("minus", x), channel_weights("plus", x)
    for weights in (minus, plus):
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(6, dtype=torch.float64))
        assert weights.min() > -1e-10
    assert minus.diagonal().max() < 1e-9
    assert torch.equal(minus.argmax(dim=1), energy.argmin(dim=1))
    assert plus.diagonal().min() > 1 - 1e-6


def test_minus_is_the_default():
    x = random_input(1, 6, 3, 4)
    block = randomise(ChannelAttention(6))
    torch.testing.assert_close(block(x), reference.channel_attention(x, block.gamma, "minus"))


def test_unknown_affinity_is_refused():
    with pytest.raises(ValueError, match="minus"):
        ChannelAttention(6, affinity="times")


@pytest.mark.parametrize("affinity", ["minus", "plus"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_channel_attention_survives_autocast_at_large_activations(dtype, affinity):
    """E is a sum over all positions: here about 60^2 * 4096 = 1.5e7, 200 times float16's largest number."""
    torch.manual_seed(0)
    block = ChannelAttention(8, affinity=affinity)
    torch.nn.init.ones_(block.gamma)
    x = 60 * torch.randn(2, 8, 64, 64)
    with torch.autocast("cpu", dtype=dtype):
        y = block(x)
        low = block(x.to(dtype))  # as it comes from a convolution under autocast
    assert y.isfinite().all()
    assert low.isfinite().all()
    exact = block.double()(x.double())
    torch.testing.assert_close(y.double(), exact, rtol=2e-2, atol=2.0)

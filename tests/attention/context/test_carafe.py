"""CARAFE against its definition."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from segvid.attention.context import CARAFE
from tests import reference
from tests.reference import assert_same_with_gradients, conv_weights, random_input, randomise, reached


def expected_output(
    block: CARAFE, x: torch.Tensor, scale: int = 2, kernel_size: int = 5, groups: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and kernels (B, groups, k * k, s * H, s * W)."""
    return reference.carafe(x, conv_weights(block.compress), conv_weights(block.encode), scale, kernel_size, groups)


def set_logits(block: CARAFE, logits: torch.Tensor) -> None:
    """The same prediction, (groups, k * k, s * s), at every position."""
    with torch.no_grad():
        block.encode.weight.zero_()
        block.encode.bias.copy_(logits.flatten())


@pytest.mark.parametrize("encoder_kernel", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("scale", "kernel_size"), [(2, 3), (2, 5), (1, 3), (3, 1), (3, 3)], ids=str)
@pytest.mark.parametrize("grid", [(3, 4), (1, 3), (3, 1)], ids=str)
def test_equals_definition(grid, scale, kernel_size, groups, encoder_kernel):
    options = {"scale": scale, "kernel_size": kernel_size, "groups": groups}
    block = randomise(CARAFE(4, encoder_kernel=encoder_kernel, compressed_channels=3, **options))
    x = random_input(2, 4, *grid)
    expected, kernels = expected_output(block, x, **options)
    assert kernels.std() > 1e-2 or kernel_size == 1
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


def test_defaults_are_the_papers():
    """Twice the size, 5 x 5 kernels predicted by a 3 x 3 convolution of 64 channels, one for all channels."""
    block = randomise(CARAFE(6))
    assert block.encode.weight.shape == (2 * 2 * 5 * 5, 64, 3, 3)
    x = random_input(1, 6, 2, 3).detach()
    expected, _ = expected_output(block, x)
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_kernels_equal_the_definition_and_sum_to_one(groups, scale):
    """Pixel shuffle, then softmax over the window: at the new pixel (s y + i, s x + j) sub-pixel i * s + j."""
    block = randomise(CARAFE(4, scale=scale, kernel_size=3, groups=groups, compressed_channels=3))
    x = random_input(2, 4, 2, 3)
    _, kernels = expected_output(block, x, scale, 3, groups)
    actual = block.weights(x)
    assert actual.shape == (2, groups, 9, scale**2, 2, 3)
    shuffled = F.pixel_shuffle(actual.flatten(1, 3), scale).unflatten(1, (groups, 9))
    torch.testing.assert_close(shuffled, kernels)
    torch.testing.assert_close(actual.sum(dim=2), torch.ones(2, groups, scale**2, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("grid", [(4, 6), (1, 5)], ids=str)
def test_a_uniform_kernel_is_the_mean_filter(grid, kernel_size):
    """Of the nearest old pixel, zeros outside: all sub-pixels are alike, and a constant gets darker at the border."""
    block = randomise(CARAFE(3, kernel_size=kernel_size))
    set_logits(block, torch.zeros(1, kernel_size**2, 4))
    x = random_input(2, 3, *grid)
    mean = F.avg_pool2d(x, kernel_size, stride=1, padding=kernel_size // 2, count_include_pad=True)
    torch.testing.assert_close(block(x), mean.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_keeps_a_constant_inside_and_not_at_the_border():
    """The kernel sums to 1; taps outside the image are lost, the others not normalised again."""
    block = randomise(CARAFE(2))
    constant = torch.full((1, 2, 6, 7), 3.0, dtype=torch.float64)
    y = block(constant)
    torch.testing.assert_close(y[:, :, 4:8, 4:10], constant[:, :, :4, :6])
    border = torch.ones(12, 14, dtype=torch.bool)
    border[4:8, 4:10] = False
    assert (y[:, :, border] < 3.0 - 1e-3).all()
    corner = block.weights(constant)[0, 0, :, 0, 0, 0].reshape(5, 5)[2:, 2:].sum()
    torch.testing.assert_close(y[0, 0, 0, 0], 3.0 * corner)


@pytest.mark.parametrize("subpixel", range(4))
@pytest.mark.parametrize("tap", range(9))
def test_one_tap_moves_the_image(tap, subpixel):
    """All weight on tap (dy + 1) * 3 + dx + 1 of one sub-pixel: x at (y + dy, x + dx) there."""
    block = CARAFE(3, kernel_size=3).double()
    logits = torch.zeros(1, 9, 4)
    logits[0, tap, subpixel] = 100.0
    set_logits(block, logits)
    x = random_input(1, 3, 4, 5)
    dy, dx = tap // 3 - 1, tap % 3 - 1
    moved = F.pad(x, (1, 1, 1, 1))[:, :, 1 + dy : 5 + dy, 1 + dx : 6 + dx]
    torch.testing.assert_close(block(x)[:, :, subpixel // 2 :: 2, subpixel % 2 :: 2], moved)


def test_groups_of_neighbouring_channels_share_a_kernel():
    block = randomise(CARAFE(4, kernel_size=3, groups=2))
    logits = torch.zeros(2, 9, 4)
    logits[0, 4], logits[1, 0] = 100.0, 100.0
    set_logits(block, logits)
    x = random_input(1, 4, 3, 4)
    y = block(x)[:, :, ::2, ::2]
    torch.testing.assert_close(y[:, :2], x[:, :2])
    torch.testing.assert_close(y[:, 2:], F.pad(x[:, 2:], (1, 0, 1, 0))[:, :, :-1, :-1])


def test_every_channel_reads_its_own_window():
    """Through the reassembly; through the kernel, what the encoder sees: here 1 x 1."""
    block = randomise(CARAFE(2, kernel_size=3, encoder_kernel=1))
    x = random_input(1, 2, 4, 5)
    y = block(x)
    for row, column in itertools.product(range(8), range(10)):
        expected = torch.zeros(4, 5, dtype=torch.bool)
        top, left = max(row // 2 - 1, 0), max(column // 2 - 1, 0)
        expected[top : row // 2 + 2, left : column // 2 + 2] = True
        assert torch.equal(reached(y, x, (row, column)), expected)


def test_starts_near_the_mean_filter():
    """N(0, 0.001) in the encoder, biases 0."""
    torch.manual_seed(0)
    block = CARAFE(256)
    assert block.encode.weight.std().item() == pytest.approx(0.001, rel=0.03)
    assert not block.encode.bias.any()
    assert not block.compress.bias.any()
    weights = block.weights(torch.randn(1, 256, 6, 7))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 25), rtol=0.2, atol=0)


@pytest.mark.parametrize(
    ("channels", "options", "count"),
    [
        (256, {}, 74_148),
        (256, {"groups": 2}, 74_148 + 577 * 100),
        (256, {"scale": 4}, 16_448 + 577 * 400),
        (256, {"kernel_size": 3, "encoder_kernel": 1}, 16_448 + 65 * 36),
        (512, {"compressed_channels": 32}, 513 * 32 + 289 * 100),
    ],
    ids=str,
)
def test_parameter_count(channels, options, count):
    """256 * 64 + 64 compression, 64 * 9 * 100 + 100 kernels."""
    assert sum(p.numel() for p in CARAFE(channels, **options).parameters()) == count


@pytest.mark.parametrize(
    "options", [{"kernel_size": 4}, {"encoder_kernel": 2}, {"groups": 3}], ids=lambda o: next(iter(o))
)
def test_unusable_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CARAFE(8, **options)


def test_samples_do_not_mix():
    block = randomise(CARAFE(4))
    x = random_input(3, 4, 2, 3)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


@pytest.mark.parametrize("groups", [1, 2])
def test_gradcheck(groups):
    block = randomise(CARAFE(4, kernel_size=3, groups=groups, compressed_channels=3))
    assert torch.autograd.gradcheck(block, random_input(1, 4, 3, 2))


@pytest.mark.parametrize("grid", [(5, 7), (1, 6), (6, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast(dtype, grid):
    torch.manual_seed(0)
    block = CARAFE(16)
    x = (10 * torch.randn(2, 16, *grid)).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = block(x)
    assert y.isfinite().all()
    y.float().sum().backward()
    for tensor in [x, *block.parameters()]:
        assert tensor.grad.isfinite().all()

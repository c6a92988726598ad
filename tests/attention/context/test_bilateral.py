"""Bilateral filter and mean shift against their definition."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from segvid.attention.context import BilateralFilter
from tests import reference
from tests.reference import (
    assert_same_with_gradients,
    conv_weights,
    norm_weights,
    permutation_gap,
    random_input,
    randomise,
    reached,
)

STEPS = [(1, True), (1, False), (2, True), (2, False), (3, False)]


def set_bandwidths(block: BilateralFilter, sr: float, ss: float) -> None:
    with torch.no_grad():
        block.range_bandwidth.fill_(sr + math.log(-math.expm1(-sr)))  # inverse of softplus
        block.space_bandwidth.fill_(ss + math.log(-math.expm1(-ss)))


def random_block(channels: int, *, sr: float = 1.5, ss: float = 0.3, **options: object) -> BilateralFilter:
    """With bandwidths that leave both terms a say."""
    block = randomise(BilateralFilter(channels, **options))
    set_bandwidths(block, sr, ss)
    return block


def filtered(block: BilateralFilter, x: torch.Tensor) -> torch.Tensor:
    """The average alone: projection and batch norm set to the identity, the residual taken off."""
    with torch.no_grad():
        block.out.weight.copy_(torch.eye(x.shape[1])[:, :, None])
        block.norm.weight.fill_(1.0)
        block.norm.bias.zero_()
        block.norm.running_mean.zero_()
        block.norm.running_var.fill_(1.0 - block.norm.eps)
    return block.eval()(x) - x


def expected_output(
    block: BilateralFilter, x: torch.Tensor, window: int | None, iterations: int = 1, blurring: bool = True
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Output and the weights (B, N, N) of each iteration."""
    sr, ss = F.softplus(block.range_bandwidth), F.softplus(block.space_bandwidth)
    out, norm = conv_weights(block.out), norm_weights(block.norm)
    return reference.bilateral_block(x, out, norm, window, iterations, blurring, sr, ss)


def gaussian_blur(x: torch.Tensor, window: int | None, ss: float) -> torch.Tensor:
    """Weights exp(-d^2 / 2 ss^2), d in units of the longer side, normalised over what lies inside the image."""
    grid = x.shape[2:]
    places = torch.tensor(list(itertools.product(*map(range, grid))), dtype=x.dtype)
    weights = torch.exp(-(torch.cdist(places / max(grid), places / max(grid)) ** 2) / (2 * ss**2))
    if window is not None:
        weights = weights * reference.space_mask(grid, "local", window, 1)
    mean = torch.einsum("ij,bcj->bci", weights / weights.sum(dim=1, keepdim=True), x.flatten(2))
    return mean.reshape(x.shape)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("iterations", "blurring"), STEPS)
@pytest.mark.parametrize("window", [None, 3, 5])
@pytest.mark.parametrize("grid", [(3, 4), (1, 5), (4, 1)], ids=str)
def test_equals_definition(grid, window, iterations, blurring, training):
    options = {"window": window, "iterations": iterations, "blurring": blurring}
    block = random_block(3, **options).train(training)
    x = random_input(2, 3, *grid)
    expected, weights = expected_output(block, x, **options)
    assert 0.05 < 1 - weights[0].diagonal(dim1=1, dim2=2).mean() < 0.95  # neither the identity nor a plain mean
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


@pytest.mark.parametrize("iterations", [0, 1])
def test_blurring_and_not_are_the_same_up_to_one_iteration(iterations):
    """0 filters nothing: y = x."""
    x = random_input(2, 3, 3, 4)
    both = [random_block(3, iterations=iterations, blurring=blurring).eval()(x) for blurring in (True, False)]
    assert torch.equal(*both)
    if iterations == 0:
        torch.testing.assert_close(filtered(random_block(3, iterations=0), x), x)


def test_defaults_are_one_step_over_the_whole_image():
    """Bandwidths: sqrt(C), the distance of features one apart in every channel, and a quarter of the longer side."""
    block = BilateralFilter(16)
    assert F.softplus(block.range_bandwidth).item() == pytest.approx(4.0)
    assert F.softplus(block.space_bandwidth).item() == pytest.approx(0.25)
    block = randomise(block).eval()
    x = random_input(1, 16, 2, 5).detach()
    torch.testing.assert_close(block(x), expected_output(block, x, None)[0])


@pytest.mark.parametrize("grid", [(4, 5), (1, 6)], ids=str)
def test_a_window_over_the_whole_map_is_the_whole_image(grid):
    x = random_input(2, 3, *grid)
    for iterations, blurring in STEPS:
        steps = {"iterations": iterations, "blurring": blurring}
        whole, window = random_block(3, **steps).eval(), random_block(3, window=11, **steps).eval()
        torch.testing.assert_close(window(x), whole(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [None, 3, 5])
@pytest.mark.parametrize("grid", [(4, 6), (6, 4), (1, 5)], ids=str)
def test_any_range_makes_it_a_gaussian_blur(grid, window):
    """Range bandwidth without bound: the features no longer matter. Distances in units of the longer side."""
    block = random_block(3, sr=1e7, ss=0.2, window=window)
    x = random_input(2, 3, *grid).detach()
    torch.testing.assert_close(filtered(block, x), gaussian_blur(x, window, 0.2))


def test_any_distance_of_equally_long_features_is_softmax_attention():
    """Spatial bandwidth without bound: softmax(f_i . f_j / sr^2), as |f_j| cancels with |f_i| (sheet, section 22)."""
    block = random_block(4, sr=0.7, ss=1e7)
    x = F.normalize(random_input(2, 4, 3, 5).detach(), dim=1)
    weights = reference.attention_weights(x, x, scale=1 / 0.7**2)
    torch.testing.assert_close(filtered(block, x), reference.weigh(weights, x, x.shape[2:]))


def test_features_of_unequal_length_are_not():
    """There |f_j|^2 stays: a large feature is far from all others, however well it points."""
    block = random_block(4, sr=0.7, ss=1e7)
    x = random_input(2, 4, 3, 5).detach()
    weights = reference.attention_weights(x, x, scale=1 / 0.7**2)
    assert (filtered(block, x) - reference.weigh(weights, x, x.shape[2:])).abs().max() > 1e-2


@pytest.mark.parametrize("window", [None, 3])
def test_keeps_a_constant_image(window):
    """The weights sum to 1, at the border too."""
    x = torch.full((1, 3, 4, 5), 2.5, dtype=torch.float64)
    torch.testing.assert_close(filtered(random_block(3, window=window, iterations=2), x), x)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("sr", "ss"), [(0.01, 0.3), (1.5, 0.01)], ids=["range", "space"])
def test_a_narrow_bandwidth_leaves_the_image_alone(sr, ss, window):
    x = random_input(1, 3, 4, 5).detach()
    torch.testing.assert_close(filtered(random_block(3, sr=sr, ss=ss, window=window), x), x)


@pytest.mark.parametrize("window", [None, 5])
def test_smooths_on_either_side_of_an_edge(window):
    """What it is for: a step of 10 stays, ripples of 0.1 go."""
    sides = torch.where(torch.arange(6.0) < 3, 0.0, 10.0).expand(1, 1, 4, 6)
    x = (sides + 0.1 * random_input(1, 1, 4, 6).detach()).double()
    y = filtered(random_block(1, sr=1.0, ss=1.0, window=window), x)
    assert ((y - sides).abs() < 0.15).all()
    for side in (slice(0, 3), slice(3, 6)):
        assert y[..., side].std() < 0.6 * x[..., side].std()


def test_mean_shift_climbs_to_the_modes():
    """Two clouds of features: iterated, every point arrives at the fixed point of its cloud, which a step leaves."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.where(torch.arange(24) % 2 == 0, -4.0, 4.0).double()
    x = (centres + 0.3 * torch.randn(24, generator=generator, dtype=torch.float64)).reshape(1, 1, 4, 6)
    points = filtered(random_block(1, sr=1.0, ss=1e7, iterations=60, blurring=False), x).flatten()
    for cloud in (points[0::2], points[1::2]):
        assert cloud.std() < 1e-6
    torch.testing.assert_close(points.sign(), centres.sign())
    blurred = filtered(random_block(1, sr=1.0, ss=1e7, iterations=20), x).flatten()
    assert blurred[0::2].std() < 1e-6


@pytest.mark.parametrize(("iterations", "blurring"), [(1, True), (2, True), (2, False)])
def test_reach(iterations, blurring):
    """A window once, and twice when blurred twice; mean shift looks at the data around the same place again."""
    grid = (5, 7)
    block = random_block(2, window=3, iterations=iterations, blurring=blurring).eval()
    x = random_input(1, 2, *grid)
    y = block(x)
    mask = reference.space_mask(grid, "local", 2 * iterations + 1 if blurring else 3, 1)
    for row, column in [(0, 0), (2, 3), (4, 5)]:
        assert torch.equal(reached(y, x, (row, column)).flatten(), mask[row * grid[1] + column])


def test_commutes_with_permutations_of_the_positions_only_without_the_spatial_term():
    x = random_input(2, 3, 4, 5)
    assert permutation_gap(random_block(3, ss=1e9, iterations=2).eval(), x) < 1e-10
    assert permutation_gap(random_block(3, iterations=2).eval(), x) > 1e-2


def test_commutes_with_transposition():
    """The longer side is the unit of both axes."""
    x = random_input(2, 3, 3, 6)
    for window in (None, 3):
        block = random_block(3, window=window).eval()
        torch.testing.assert_close(block(x.transpose(2, 3)), block(x).transpose(2, 3))


@pytest.mark.parametrize("window", [None, 3, 9])
@pytest.mark.parametrize("grid", [(3, 4), (1, 5), (4, 1)], ids=str)
def test_attention_map_shows_the_weights_of_the_first_step(grid, window):
    block = random_block(3, window=window, iterations=2).eval()
    x = random_input(2, 3, *grid).detach()
    _, weights = expected_output(block, x, window, 2)
    for row, column in itertools.product(range(grid[0]), range(grid[1])):
        expected = weights[0][:, row * grid[1] + column].reshape(2, *grid)
        torch.testing.assert_close(block.attention_map(x, (row, column)), expected)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position, window):
    with pytest.raises(ValueError, match="grid"):
        BilateralFilter(4, window=window).attention_map(torch.zeros(1, 4, 3, 5), position)


@pytest.mark.parametrize("window", [4, 0])
def test_an_even_window_is_refused(window):
    with pytest.raises(ValueError, match="window"):
        BilateralFilter(4, window=window)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("iterations", "blurring"), STEPS)
def test_starts_as_the_identity(iterations, blurring, window, training):
    """The last batch norm starts at 0: bit-exact."""
    x = random_input(2, 6, 5, 7).float()
    block = BilateralFilter(6, window=window, iterations=iterations, blurring=blurring).train(training)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("options", [{}, {"window": 7}, {"iterations": 3, "blurring": False}], ids=str)
def test_parameter_count(options):
    """Two bandwidths, 512 * 512, batch norm 2 * 512."""
    assert sum(p.numel() for p in BilateralFilter(512, **options).parameters()) == 263_170


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("iterations", "blurring"), [(1, True), (2, True), (2, False)])
def test_gradcheck(iterations, blurring, window):
    block = random_block(3, window=window, iterations=iterations, blurring=blurring).eval()
    assert torch.autograd.gradcheck(block, random_input(1, 3, 3, 2))


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_exponents_stay_exact_under_autocast(dtype, window):
    """A narrow filter of 0.02: the far end of the row is 50 bandwidths away, its square beyond eleven binary digits."""
    x = random_input(1, 4, 1, 64).detach().to(dtype)
    block = BilateralFilter(4, window=window)
    set_bandwidths(block, 1.0, 0.02)
    expected = filtered(block.double(), x.double())
    block.float()
    with torch.autocast("cpu", dtype=dtype):
        y = block.window_step(x, x) if window else block.step(x, x)
    torch.testing.assert_close(y.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("blurring", [True, False])
def test_finite_under_autocast(blurring, dtype, window):
    """Squared distances of features of several hundred are out of float16's range."""
    torch.manual_seed(0)
    block = BilateralFilter(16, window=window, iterations=2, blurring=blurring)
    torch.nn.init.ones_(block.norm.weight)
    x = (300 * torch.randn(2, 16, 5, 7)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = block(x)
    assert y.isfinite().all()
    y.float().sum().backward()
    for tensor in [x, *block.parameters()]:
        assert tensor.grad.isfinite().all()

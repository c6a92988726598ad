"""Local relation layer against its definition."""

import itertools

import pytest
import torch

from segvid.attention.context import LocalRelation
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

COMPOSABILITIES = ["squared_difference", "absolute_difference", "product"]


def expected_output(
    block: LocalRelation, x: torch.Tensor, window: int, channels_per_group: int, composability: str, prior: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and weights (B, groups, N, N)."""
    geometry = None
    if prior:
        first, relu, second = block.geometry
        assert isinstance(relu, torch.nn.ReLU)
        geometry = (conv_weights(first), conv_weights(second))
    query, key, out = (conv_weights(conv) for conv in (block.query, block.key, block.out))
    norm = norm_weights(block.norm)
    return reference.local_relation(x, query, key, geometry, out, norm, window, channels_per_group, composability)


def box_mean(x: torch.Tensor, window: int) -> torch.Tensor:
    """The mean over the part of the window inside the image."""
    mask = reference.space_mask(x.shape[2:], "local", window, 1).to(x.dtype)
    return torch.einsum("ij,bcj->bci", mask / mask.sum(dim=1, keepdim=True), x.flatten(2)).reshape(x.shape)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("composability", COMPOSABILITIES)
@pytest.mark.parametrize(
    ("grid", "window", "channels_per_group"),
    [
        ((3, 4), 3, 2),
        ((2, 5), 5, 1),
        ((2, 3), 7, 3),  # the window is larger than the map
        ((1, 5), 3, 6),  # one group
        ((4, 1), 5, 2),
        ((2, 2), 1, 2),  # alone: a weight of 1
    ],
    ids=str,
)
def test_equals_definition(grid, window, channels_per_group, composability, prior, training):
    options = {"window": window, "channels_per_group": channels_per_group, "composability": composability}
    block = randomise(LocalRelation(6, geometry_prior=prior, **options)).train(training)
    x = random_input(2, 6, *grid)
    expected, _ = expected_output(block, x, **options, prior=prior)
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


def test_defaults_are_the_papers():
    """7 x 7, groups of 8 channels, squared difference, with the geometry prior."""
    block = randomise(LocalRelation(16)).eval()
    x = random_input(1, 16, 5, 3).detach()
    expected, _ = expected_output(block, x, 7, 8, "squared_difference")
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def test_weights_sum_to_one_inside_the_image():
    """And are 0 outside: a place of the window, its keys, its values go by the same order, (dy, dx)."""
    block = randomise(LocalRelation(6, window=5, channels_per_group=2)).eval()
    weights = block.weights(random_input(2, 6, 3, 4))
    assert weights.shape == (2, 3, 25, 3, 4)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, 3, 3, 4, dtype=torch.float64))
    for k, (row, column) in itertools.product(range(25), itertools.product(range(3), range(4))):
        inside = 0 <= row + k // 5 - 2 < 3 and 0 <= column + k % 5 - 2 < 4
        assert ((weights[:, :, k, row, column] > 0) == inside).all()


@pytest.mark.parametrize("composability", COMPOSABILITIES)
@pytest.mark.parametrize(("grid", "window"), [((4, 5), 3), ((2, 6), 5), ((1, 4), 3)], ids=str)
def test_without_relations_it_is_the_mean_of_the_window(grid, window, composability):
    """Queries and keys 0, no prior: what sticks out of the image does not count."""
    options = {"window": window, "channels_per_group": 2, "composability": composability, "geometry_prior": False}
    block = randomise(LocalRelation(4, **options)).eval()
    for parameter in [*block.query.parameters(), *block.key.parameters()]:
        torch.nn.init.zeros_(parameter)
    x = random_input(2, 4, *grid).detach()
    mean = reference.pointwise(box_mean(x, window), block.out.weight)
    torch.testing.assert_close(block(x), reference.batch_norm(mean, *norm_weights(block.norm)) + x)


@pytest.mark.parametrize("composability", COMPOSABILITIES)
def test_differences_ignore_what_query_and_key_have_in_common(composability):
    """The product does not."""
    options = {"window": 3, "channels_per_group": 2, "composability": composability}
    block = randomise(LocalRelation(4, **options)).eval()
    x = random_input(1, 4, 3, 4).detach()
    before = block.weights(x)
    with torch.no_grad():
        block.query.bias += 2.0
        block.key.bias += 2.0
    gap = (block.weights(x) - before).abs().max()
    assert gap > 1e-2 if composability == "product" else gap < 1e-10


@pytest.mark.parametrize("composability", COMPOSABILITIES)
def test_commutes_with_translations_away_from_the_border(composability):
    block = randomise(LocalRelation(4, window=3, channels_per_group=2, composability=composability)).eval()
    x = random_input(1, 4, 7, 9).detach()
    moved = block(x[:, :, 1:, 2:])  # what was at (y + 1, x + 2)
    there = block(x)[:, :, 1:, 2:]
    torch.testing.assert_close(moved[:, :, 1:, 1:], there[:, :, 1:, 1:])
    assert (moved[:, :, 0] - there[:, :, 0]).abs().max() > 1e-3  # a border is not a neighbour


def test_the_prior_tells_left_from_up():
    """A prior of dx alone leaves vertical neighbours alike and horizontal ones not."""
    block = randomise(LocalRelation(4, window=3, channels_per_group=2)).eval()
    for parameter in [*block.query.parameters(), *block.key.parameters()]:
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        block.geometry[0].weight[:, 1] = 0.0  # dy
    weights = block.weights(random_input(1, 4, 3, 3))[0, :, :, 1, 1].reshape(2, 3, 3)
    torch.testing.assert_close(weights, weights[:, :1].expand(-1, 3, -1))
    assert (weights[:, :, 0] - weights[:, :, 2]).abs().min() > 1e-2


@pytest.mark.parametrize("window", [3, 5])
def test_reaches_its_window(window):
    grid = (4, 6)
    block = randomise(LocalRelation(4, window=window, channels_per_group=2)).eval()
    x = random_input(1, 4, *grid)
    y = block(x)
    mask = reference.space_mask(grid, "local", window, 1)
    for row, column in itertools.product(range(grid[0]), range(grid[1])):
        assert torch.equal(reached(y, x, (row, column)).flatten(), mask[row * grid[1] + column])


@pytest.mark.parametrize("composability", COMPOSABILITIES)
def test_does_not_commute_with_permutations_of_the_positions(composability):
    block = randomise(LocalRelation(6, window=3, channels_per_group=2, composability=composability)).eval()
    assert permutation_gap(block, random_input(2, 6, 4, 5)) > 1e-2


@pytest.mark.parametrize("composability", COMPOSABILITIES)
@pytest.mark.parametrize(("grid", "window"), [((3, 4), 3), ((3, 4), 7), ((1, 5), 3), ((3, 2), 1)], ids=str)
def test_attention_map_is_the_mean_over_the_groups(grid, window, composability):
    block = randomise(LocalRelation(6, window=window, channels_per_group=2, composability=composability)).eval()
    x = random_input(2, 6, *grid).detach()
    _, weights = expected_output(block, x, window, 2, composability)
    for row, column in itertools.product(range(grid[0]), range(grid[1])):
        expected = weights[:, :, row * grid[1] + column].mean(dim=1).reshape(2, *grid)
        torch.testing.assert_close(block.attention_map(x, (row, column)), expected)


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position):
    with pytest.raises(ValueError, match="grid"):
        LocalRelation(8).attention_map(torch.zeros(1, 8, 3, 5), position)


@pytest.mark.parametrize(
    "options", [{"composability": "cosine"}, {"window": 4}, {"channels_per_group": 3}], ids=lambda o: next(iter(o))
)
def test_unusable_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LocalRelation(8, **options)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("composability", COMPOSABILITIES)
def test_starts_as_the_identity(composability, training):
    """The last batch norm starts at 0: bit-exact."""
    x = random_input(2, 8, 5, 7).float()
    assert torch.equal(LocalRelation(8, composability=composability).train(training)(x), x)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 333_184),
        ({"window": 3}, 333_184),
        ({"composability": "product"}, 333_184),
        ({"geometry_prior": False}, 328_832),
        ({"channels_per_group": 4}, 2 * 128 * 513 + 128 * 3 + 128 * 129 + 262_144 + 1024),
    ],
    ids=str,
)
def test_parameter_count(options, count):
    """Query and key 512 * 64 + 64 each, prior 2 * 64 + 64 + 64 * 64 + 64, out 512 * 512, batch norm 2 * 512."""
    assert sum(p.numel() for p in LocalRelation(512, **options).parameters()) == count


@pytest.mark.parametrize("composability", COMPOSABILITIES)
def test_gradcheck(composability):
    block = randomise(LocalRelation(4, window=3, channels_per_group=2, composability=composability)).eval()
    assert torch.autograd.gradcheck(block, random_input(1, 4, 3, 2))


@pytest.mark.parametrize("grid", [(5, 7), (1, 6), (6, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast(dtype, grid):
    torch.manual_seed(0)
    block = LocalRelation(16)
    torch.nn.init.ones_(block.norm.weight)
    x = (10 * torch.randn(2, 16, *grid)).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = block(x)
    assert y.isfinite().all()
    y.float().sum().backward()
    for tensor in [x, *block.parameters()]:
        assert tensor.grad.isfinite().all()

"""Self-attention in a choice of spaces against dense attention with masks."""

import itertools

import pytest
import torch

from segvid.attention.context import CrissCrossAttention, GridSelfAttention, InterlacedAttention, NonLocal
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

SPACES = ["global", "local", "atrous", "sparse", "row", "column", "row_column"]


def expected_output(
    block: GridSelfAttention, x: torch.Tensor, space: str, window: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and weights (B, N, N)."""
    convs = [conv_weights(conv) for conv in (block.query, block.key, block.value, block.out)]
    mask = reference.space_mask(x.shape[2:], space, window, stride)
    return reference.grid_self_attention(x, *convs, norm_weights(block.norm), mask)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("grid", "window", "stride"),
    [
        ((5, 6), 3, 2),  # stride inside the window: the comb's own positions in it count once
        ((4, 5), 3, 3),
        ((3, 4), 7, 8),  # the defaults, both larger than the map
        ((3, 4), 1, 1),  # the window is the position, the comb is everything
        ((1, 7), 3, 2),
        ((7, 1), 5, 3),
        ((1, 1), 3, 2),
    ],
    ids=str,
)
def test_equals_dense_attention_with_a_mask(grid, window, stride, space, training):
    block = randomise(GridSelfAttention(4, space=space, window=window, stride=stride, inner_channels=3))
    block.train(training)
    x = random_input(2, 4, *grid)
    expected, _ = expected_output(block, x, space, window, stride)
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


def test_defaults_are_the_non_local_block():
    """Global, half of the channels; the same weights, and the same numbers."""
    block, non_local = randomise(GridSelfAttention(6)).train(), randomise(NonLocal(6)).train()
    weights = [
        weight.reshape(other.shape) for weight, other in zip(block.parameters(), non_local.parameters(), strict=True)
    ]
    non_local.load_state_dict(dict(zip(dict(non_local.named_parameters()), weights, strict=True)), strict=False)
    x = random_input(2, 6, 3, 5)
    assert block.query.weight.shape[:2] == (3, 6)
    torch.testing.assert_close(block(x), non_local(x))


def test_default_window_and_stride():
    assert GridSelfAttention(4).window == 7
    assert GridSelfAttention(4).stride == 8


def test_atrous_with_one_group_is_global():
    x = random_input(2, 4, 3, 5)
    atrous = randomise(GridSelfAttention(4, space="atrous", stride=1)).eval()
    torch.testing.assert_close(atrous(x), randomise(GridSelfAttention(4)).eval()(x))


def test_a_window_over_the_whole_map_is_global():
    x = random_input(2, 4, 3, 5)
    for space in ("local", "sparse"):
        local = randomise(GridSelfAttention(4, space=space, window=9)).eval()
        torch.testing.assert_close(local(x), randomise(GridSelfAttention(4)).eval()(x))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("grid", [(5, 7), (1, 4), (5, 1)], ids=str)
def test_every_key_of_the_space_counts_once(grid, space):
    """Query 0 makes the weights uniform, value = input: the plain mean over the positions that the mask shows."""
    block = GridSelfAttention(2, space=space, window=3, stride=2, inner_channels=2).double()
    x = random_input(1, 2, *grid).detach()
    mask = reference.space_mask(grid, space, 3, 2).double()
    mean = torch.einsum("ij,bcj->bci", mask / mask.sum(dim=1, keepdim=True), x.flatten(2)).reshape(x.shape)
    torch.testing.assert_close(block.attend(torch.zeros_like(x), x, x), mean)


@pytest.mark.parametrize("space", SPACES)
def test_positions_outside_the_image_are_never_keys(space):
    """Keys that all repel: a padded key of zeros would take the whole weight. The values come back unchanged."""
    block = GridSelfAttention(2, space=space, window=5, stride=2)
    query = torch.full((2, 3, 4, 5), 5.0, dtype=torch.float64)
    value = torch.ones(2, 2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(block.attend(query, -query, value), value)


@pytest.mark.parametrize("space", SPACES)
def test_reaches_its_space(space):
    """Each position depends on the positions of its space and on nothing else."""
    grid = (5, 6)
    block = randomise(GridSelfAttention(4, space=space, window=3, stride=3)).eval()
    x = random_input(1, 4, *grid)
    y = block(x)
    mask = reference.space_mask(grid, space, 3, 3)
    for row, column in itertools.product(range(grid[0]), range(grid[1])):
        assert torch.equal(reached(y, x, (row, column)).flatten(), mask[row * grid[1] + column])


@pytest.mark.parametrize(("space", "steps"), [("sparse", 2), ("row_column", 2), ("global", 1)])
def test_hops_to_full_coverage(space, steps):
    """The comb, then a window that reaches from tooth to tooth (or row, then column), reach everything.

    From a border too, as only one side of a window there is left: stride - 1 = window // 2.
    """
    x = random_input(1, 4, 4, 6)
    block = randomise(GridSelfAttention(4, space=space, window=3, stride=2)).eval()
    y = x
    for step in range(steps):
        assert step == 0 or not all(reached(y, x, position).all() for position in [(0, 0), (3, 4)])
        y = block(y)
    for position in [(0, 0), (3, 4)]:
        assert reached(y, x, position).all()


def test_row_and_column_are_the_attention_of_criss_cross():
    """The same softmax over the cross; there without scale."""
    block = randomise(GridSelfAttention(8, space="row_column", inner_channels=8)).eval()
    cross = CrissCrossAttention(8, recurrence=1, reduction=1).double().eval()
    with torch.no_grad():
        for name in ("query", "key", "value"):
            for mine, its in zip(getattr(block, name).parameters(), getattr(cross, name).parameters(), strict=True):
                its.copy_(mine)
        for parameter in cross.query.parameters():
            parameter.mul_(8**-0.5)
        cross.gamma.fill_(1.0)
    x = random_input(2, 8, 3, 5)
    y = block.attend(block.query(x), block.key(x), block.value(x))
    torch.testing.assert_close(y, cross(x) - x)


def test_atrous_sees_what_long_range_attention_sees():
    x = random_input(2, 4, 6, 4)
    block = randomise(GridSelfAttention(4, space="atrous", stride=2)).eval()
    long = randomise(InterlacedAttention(4, block=(2, 2), order="long")).eval()
    for position in [(0, 0), (5, 2), (3, 3)]:
        assert torch.equal(block.attention_map(x, position) > 0, long.attention_map(x, position) > 0)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (3, 4)], ids=str)
def test_does_not_commute_with_permutations_of_the_positions(window, stride, space):
    block = randomise(GridSelfAttention(6, space=space, window=window, stride=stride)).eval()
    gap = permutation_gap(block, random_input(2, 6, 4, 5))
    assert gap < 1e-10 if space == "global" else gap > 1e-2


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("grid", [(5, 6), (1, 5), (4, 1)], ids=str)
def test_attention_map_shows_the_weights_of_one_query(grid, space):
    block = randomise(GridSelfAttention(6, space=space, window=3, stride=2)).eval()
    x = random_input(2, 6, *grid)
    _, weights = expected_output(block, x, space, 3, 2)
    for row, column in itertools.product(range(grid[0]), range(grid[1])):
        expected = weights[:, row * grid[1] + column].reshape(2, *grid)
        torch.testing.assert_close(block.attention_map(x, (row, column)), expected)


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position):
    with pytest.raises(ValueError, match="grid"):
        GridSelfAttention(4).attention_map(torch.zeros(1, 4, 3, 5), position)


@pytest.mark.parametrize("options", [{"space": "diagonal"}, {"window": 4}], ids=str)
def test_unusable_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GridSelfAttention(4, **options)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("space", SPACES)
def test_starts_as_the_identity(space, training):
    """The last batch norm starts at 0: bit-exact."""
    x = random_input(2, 6, 5, 7).float()
    assert torch.equal(GridSelfAttention(6, space=space).train(training)(x), x)


@pytest.mark.parametrize("space", SPACES)
def test_parameter_count(space):
    """As the non-local block: 3 (512 * 256 + 256) + 256 * 512 + 512, batch norm 2 * 512."""
    assert sum(p.numel() for p in GridSelfAttention(512, space=space).parameters()) == 526_592


@pytest.mark.parametrize("space", SPACES)
def test_gradcheck(space):
    block = randomise(GridSelfAttention(4, space=space, window=3, stride=2)).eval()
    assert torch.autograd.gradcheck(block, random_input(1, 4, 3, 2))


@pytest.mark.parametrize("grid", [(5, 7), (1, 6), (6, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("space", SPACES)
def test_finite_under_autocast(space, dtype, grid):
    torch.manual_seed(0)
    block = GridSelfAttention(256, space=space, window=3, stride=3)
    torch.nn.init.ones_(block.norm.weight)
    x = torch.randn(2, 256, *grid, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = block(x)
    assert y.isfinite().all()
    y.float().sum().backward()
    for tensor in [x, *block.parameters()]:
        assert tensor.grad.isfinite().all()

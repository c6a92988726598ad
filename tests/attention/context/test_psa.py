"""Point-wise spatial attention against its closed form."""

import pytest
import torch

from segvid.attention.context import PointwiseSpatialAttention
from tests import reference
from tests.reference import (
    assert_same_with_gradients,
    conv_norm_weights,
    permutation_gap,
    random_input,
    randomise,
)

DIRECTIONS = ["both", "collect", "distribute"]


def expected_output(
    block: PointwiseSpatialAttention,
    x: torch.Tensor,
    *,
    mask_size: tuple[int, int],
    direction: str = "both",
    compact: bool = False,
    shrink: int = 2,
    normalization: float | None = 1.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output and the weights (B, target, source) of each direction."""
    names = ["collect", "distribute"] if direction == "both" else [direction]
    paths = {}
    for name, reduce, (adapt, mask) in zip(names, block.reduce, block.attention, strict=True):
        assert mask.bias is None
        paths[name] = (conv_norm_weights(reduce), conv_norm_weights(adapt), mask.weight)
    proj = conv_norm_weights(block.proj)
    return reference.pointwise_spatial_attention(x, paths, proj, mask_size, compact, shrink, normalization)


def check(x: torch.Tensor, training: bool = True, **options: object) -> None:
    block = randomise(PointwiseSpatialAttention(x.shape[1], inner_channels=6, **options)).train(training)
    expected, weights = expected_output(block, x, **options)
    for relation in weights.values():
        assert relation.std() > 1e-2  # the prediction is alive: no ReLU hides it
    assert expected.std() > 1e-2
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("grid", "mask_size"),
    [
        ((5, 7), (5, 7)),  # the offsets of a 3 x 4 map, exactly
        ((5, 7), (9, 11)),  # more than there are
        ((5, 7), (3, 3)),  # fewer: logit 0 outside, not -inf
        ((5, 7), (1, 9)),  # along one axis fewer, along the other more
        ((5, 7), (4, 2)),  # even sizes: the centre is at (size - 1) // 2
        ((5, 7), (2, 10)),
        ((6, 4), (5, 3)),  # even grids, whose ends do not fall on whole steps of the shrunk map
        ((1, 9), (3, 5)),
        ((9, 1), (5, 3)),
    ],
    ids=str,
)
def test_equals_definition(grid, mask_size, direction, training):
    check(random_input(2, 4, *grid), training, mask_size=mask_size, direction=direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("grid", [(5, 7), (6, 4), (1, 9), (9, 1), (4, 2)], ids=str)
def test_compact_equals_definition(grid, direction):
    mask_size = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
    check(random_input(2, 4, *grid), mask_size=mask_size, direction=direction, compact=True)


@pytest.mark.parametrize("shrink", [1, 3])
@pytest.mark.parametrize("normalization", [1.0, 7.0, None])
@pytest.mark.parametrize("compact", [False, True])
def test_shrinking_and_normalisation(compact, normalization, shrink):
    """None divides by the number of mask elements, compact or not."""
    mask_size = (4, 5) if shrink == 1 else (2, 2)
    check(
        random_input(2, 4, 4, 5),
        mask_size=mask_size,
        compact=compact,
        shrink=shrink,
        normalization=normalization,
    )


def test_defaults_are_the_papers():
    """A quarter of the channels, the 97 x 97 mask of crops of 769, both directions, half the size, no division."""
    x = random_input(1, 8, 5, 7)
    block = randomise(PointwiseSpatialAttention(8)).eval()
    assert block.proj[0].weight.shape == (8, 4, 1, 1)
    expected, weights = expected_output(block, x, mask_size=(97, 97))
    assert expected.std() > 1e-2
    assert weights["distribute"].std() > 1e-3
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("direction", ["collect", "distribute"])
@pytest.mark.parametrize("mask_size", [(5, 7), (3, 3), (9, 9)], ids=str)
def test_a_constant_mask_is_the_uniform_average(mask_size, direction):
    """Logits 0 everywhere: outside the mask too, which is no smaller neighbourhood."""
    block = PointwiseSpatialAttention(4, mask_size=mask_size, direction=direction)
    weights = block.affinity(torch.zeros(2, mask_size[0] * mask_size[1], 3, 4), direction)
    torch.testing.assert_close(weights, torch.full((2, 12, 12), 1 / 12))


@pytest.mark.parametrize("constant", [-2.0, 3.0])
def test_a_full_constant_mask_is_the_uniform_average_at_any_level(constant):
    """A mask that ends inside the map does weigh against the 0 beyond it."""
    block = PointwiseSpatialAttention(4, mask_size=(5, 7))
    full = block.affinity(torch.full((2, 35, 3, 4), constant), "collect")
    torch.testing.assert_close(full, torch.full((2, 12, 12), 1 / 12))
    block = PointwiseSpatialAttention(4, mask_size=(3, 3))
    part = block.affinity(torch.full((1, 9, 3, 4), constant), "collect")[0]
    near, far = part[0, 0], part[11, 0]  # target (0, 0) from itself and from the opposite corner
    torch.testing.assert_close(near / far, torch.tensor(constant).exp())


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("direction", ["collect", "distribute"])
def test_weights_of_a_target_sum_to_one_over_its_sources(direction, compact):
    size = (3, 4) if compact else (3, 5)
    block = PointwiseSpatialAttention(4, mask_size=size, compact=compact)
    weights = block.affinity(random_input(2, size[0] * size[1], 3, 4), direction)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 12, dtype=torch.float64))


@pytest.mark.parametrize("direction", ["collect", "distribute"])
@pytest.mark.parametrize("mask_size", [(1, 1), (2, 2), (3, 4), (4, 3), (6, 8), (7, 9), (8, 10), (66, 66)], ids=str)
def test_the_mask_lies_on_the_map_as_in_the_released_operator(mask_size, direction):
    """Odd and even, smaller and larger than the map, the even 66 of mmsegmentation's ADE20K; also of the part of the
    mask that is predicted on a small map."""
    block = randomise(PointwiseSpatialAttention(4, mask_size=mask_size, direction=direction)).eval()
    x = random_input(2, 1, 4, 5)
    mask = block.attention[0](x)
    logits = reference.released_psa_mask(mask, mask_size, direction)
    expected = torch.exp(logits) / torch.exp(logits).sum(dim=1, keepdim=True)
    torch.testing.assert_close(block.affinity(mask, direction), expected)
    torch.testing.assert_close(block.affinity_within_reach(block.attention[0], x, direction), expected)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("direction", ["collect", "distribute"])
def test_affinity_equals_the_closed_form(direction, compact):
    """The mask (3, 5) is smaller than all offsets of a 4 x 3 map along one axis."""
    size = (4, 3) if compact else (3, 5)
    mask = random_input(2, size[0] * size[1], 4, 3)
    block = PointwiseSpatialAttention(4, mask_size=size, compact=compact)
    expected = reference.psa_weights(mask, size, direction, compact).transpose(1, 2)
    assert_same_with_gradients(block.affinity(mask, direction), expected, [mask])


@pytest.mark.parametrize("compact", [False, True])
def test_distribute_is_collect_of_the_transposed_relation(compact):
    """What position i says of j, told by j of i instead."""
    height, width = 3, 4
    size = (height, width) if compact else (2 * height - 1, 2 * width - 1)
    mask = random_input(2, size[0] * size[1], height, width).detach()
    transposed = torch.full_like(mask, float("nan"))  # offsets that leave the map are never read
    for i in range(height * width):
        for j in range(height * width):
            y, x, other_y, other_x = i // width, i % width, j // width, j % width
            if compact:
                there, back = j, i
            else:
                there = (other_y - y + height - 1) * size[1] + other_x - x + width - 1
                back = (y - other_y + height - 1) * size[1] + x - other_x + width - 1
            transposed[:, back, other_y, other_x] = mask[:, there, y, x]
    block = PointwiseSpatialAttention(4, mask_size=size, compact=compact)
    torch.testing.assert_close(block.affinity(mask, "distribute"), block.affinity(transposed, "collect"))


def test_both_directions_have_weights_of_their_own():
    block = PointwiseSpatialAttention(8, mask_size=(3, 3))
    assert len({id(module) for module in [*block.reduce, *block.attention]}) == 4


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("compact", [False, True])
def test_does_not_commute_with_permutations_of_the_positions(compact, direction):
    """Even unshrunk: what is predicted are places, relative or absolute."""
    options = {"mask_size": (3, 5), "direction": direction, "compact": compact, "shrink": 1}
    block = randomise(PointwiseSpatialAttention(6, inner_channels=6, **options)).eval()
    assert permutation_gap(block, random_input(2, 6, 3, 5)) > 1e-2


def test_compact_takes_one_size_only():
    block = PointwiseSpatialAttention(4, mask_size=(3, 4), compact=True)
    assert block(torch.randn(2, 4, 5, 7)).shape == (2, 4, 5, 7)
    for size in [(7, 7), (5, 9), (7, 5)]:
        with pytest.raises(ValueError, match=r"compact .* 3 x 4 .* got \d x \d.*compact=False"):
            block(torch.randn(2, 4, *size))


def test_over_complete_takes_any_size():
    block = randomise(PointwiseSpatialAttention(4, mask_size=(3, 4))).eval()
    for size in [(7, 7), (5, 9), (1, 1), (2, 13)]:
        assert block(random_input(1, 4, *size)).shape == (1, 4, *size)


def test_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="distribute"):
        PointwiseSpatialAttention(4, direction="send")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("compact", [False, True])
def test_attention_map_shows_the_mean_weights_of_one_target(compact, direction):
    options = {"mask_size": (3, 5), "direction": direction, "compact": compact, "shrink": 1}
    block = randomise(PointwiseSpatialAttention(4, **options)).eval()
    x = random_input(2, 4, 3, 5)
    _, weights = expected_output(block, x, **options)
    expected = torch.stack(list(weights.values())).mean(dim=0)
    torch.testing.assert_close(block.attention_map(x, (1, 3)), expected[:, 1 * 5 + 3].reshape(2, 3, 5))


def test_attention_map_of_a_shrunk_map_is_brought_back():
    """7 x 9 positions stand for 4 x 5: position (4, 6) is (2, 3) of the shrunk map."""
    block = randomise(PointwiseSpatialAttention(4, mask_size=(7, 9))).eval()
    x = random_input(2, 4, 7, 9)
    _, weights = expected_output(block, x, mask_size=(7, 9))
    small = torch.stack(list(weights.values())).mean(dim=0)[:, 2 * 5 + 3].reshape(2, 1, 4, 5)
    torch.testing.assert_close(block.attention_map(x, (4, 6)), reference.resize_bilinear_corners(small, 7, 9)[:, 0])


def test_attention_map_refuses_a_position_off_the_grid():
    with pytest.raises(ValueError, match="grid"):
        PointwiseSpatialAttention(4, mask_size=(3, 3)).attention_map(torch.zeros(1, 4, 3, 5), (3, 0))


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 14_361_600), ({"direction": "collect"}, 7_182_848), ({"mask_size": (49, 49), "compact": True}, 7_185_408)],
    ids=str,
)
def test_parameter_count(options, count):
    """2048 channels, 512 inside, for each direction: reduction 2048 * 512 + 1024, adaption 512 * 512 + 1024, mask
    512 * 97^2 (compact 512 * 49^2); then 1024 (one direction 512) * 2048 + 4096.
    """
    assert sum(p.numel() for p in PointwiseSpatialAttention(2048, **options).parameters()) == count


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradcheck(direction):
    block = randomise(PointwiseSpatialAttention(4, mask_size=(3, 2), direction=direction)).eval()
    assert torch.autograd.gradcheck(block, random_input(1, 4, 4, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast(dtype):
    torch.manual_seed(0)
    block = PointwiseSpatialAttention(16, mask_size=(9, 9))
    x = torch.randn(2, 16, 9, 11, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = block(x)
    assert y.isfinite().all()
    y.float().sum().backward()
    assert x.grad.isfinite().all()

"""Dynamic graph message passing against its definition."""

import itertools

import pytest
import torch

from segvid.attention.context import DynamicGraphMessagePassing
from tests import reference
from tests.reference import assert_same_with_gradients, permutation_gap, random_input, randomise, reached

SWITCHES = [
    {f"dynamic_{name}": on for name, on in zip(("sampling", "weights", "affinity"), ons, strict=True)}
    for ons in itertools.product([True, False], repeat=3)
]


def expected_output(
    block: DynamicGraphMessagePassing,
    x: torch.Tensor,
    *,
    dilations: tuple[int, ...] = (1, 4, 8, 12),
    groups: int = 1,
    dynamic_sampling: bool = True,
    dynamic_weights: bool = True,
    dynamic_affinity: bool = True,
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Output, weights and places of each dilation."""
    channels = x.shape[1]
    predictors = offsets = None
    if dynamic_weights or dynamic_affinity:
        predictors = [sampling.weights.weight.reshape(-1, channels, 3, 3) for sampling in block.samplings]
    if dynamic_sampling:
        offsets = [sampling.offset.weight for sampling in block.samplings]
    return reference.dynamic_graph_message_passing(
        x, offsets, predictors, block.gamma, dilations, groups, dynamic_weights, dynamic_affinity
    )


def random_block(channels: int, **options: object) -> DynamicGraphMessagePassing:
    return randomise(DynamicGraphMessagePassing(channels, **options)).eval()


@pytest.mark.parametrize("options", SWITCHES, ids=lambda options: str([*options.values()]))
@pytest.mark.parametrize(
    ("grid", "dilations", "groups"), [((3, 4), (1, 2), 1), ((2, 3), (1,), 2), ((1, 5), (3,), 4)], ids=str
)
def test_equals_definition(grid, dilations, groups, options):
    """Offsets of more than a pixel, so that some samples fall outside the image, or half outside."""
    options = {"dilations": dilations, "groups": groups, **options}
    block = random_block(4, **options)
    x = random_input(2, 4, *grid)
    expected, _ = expected_output(block, x, **options)
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


@pytest.mark.parametrize("grid", [(4, 5), (5, 1)], ids=str)
def test_dilations_default_to_the_papers(grid):
    """Those of 8 and 12 reach into so small a map by their middle and their offsets alone."""
    block = random_block(2)
    x = random_input(1, 2, *grid)
    expected, _ = expected_output(block, x)
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilations", [(1,), (2,), (1, 3)], ids=str)
def test_starts_with_the_taps_of_the_grid(dilations, groups):
    """Offsets start at 0: static sampling, to the last bit but for the rounding of the sampler."""
    torch.manual_seed(0)
    dynamic = DynamicGraphMessagePassing(4, dilations=dilations, groups=groups).double()
    static = DynamicGraphMessagePassing(4, dilations=dilations, groups=groups, dynamic_sampling=False).double()
    assert torch.equal(dynamic.gamma, torch.ones(len(dilations)).double())
    static.load_state_dict({k: v for k, v in dynamic.state_dict().items() if "offset" not in k})
    for sampling in dynamic.samplings:
        assert not sampling.offset.weight.any()
    x = random_input(2, 4, 5, 6)
    others = [parameter for name, parameter in dynamic.named_parameters() if "offset" not in name]
    assert_same_with_gradients(dynamic(x), expected_output(dynamic, x, dilations=dilations, groups=groups)[0], [x])
    torch.testing.assert_close(dynamic(x), static(x), rtol=1e-12, atol=1e-12)
    direction = random_input(2, 4, 5, 6, seed=4)
    gradients = torch.autograd.grad(dynamic(x), others, direction)
    static_gradients = torch.autograd.grad(static(x), list(static.parameters()), direction)
    for gradient, static_gradient in zip(gradients, static_gradients, strict=True):
        torch.testing.assert_close(gradient, static_gradient)


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_without_anything_dynamic_it_is_the_mean_of_the_taps(dilation):
    """x + gamma * (sum of the nine) / 9, zeros outside the image: a box filter."""
    static = {"dynamic_sampling": False, "dynamic_weights": False, "dynamic_affinity": False}
    block = random_block(3, dilations=(dilation,), **static)
    x = random_input(2, 3, 5, 4)
    box = torch.eye(3, dtype=x.dtype)[:, :, None, None] / 9 * torch.ones(3, 3, dtype=x.dtype)
    assert_same_with_gradients(block(x), x + block.gamma * reference.conv3x3(x, box, dilation), [x, block.gamma])


@pytest.mark.parametrize("tap", range(9))
def test_offsets_are_row_then_column_of_each_tap(tap):
    """Tap k of the middle of a ramp, moved by (0.5, 0.25) alone: the ramp itself says where it was read."""
    options = {"dynamic_weights": False, "dynamic_affinity": False}
    block = DynamicGraphMessagePassing(3, dilations=(1,), **options).double()
    rows, columns = torch.arange(5.0), torch.arange(7.0)
    x = torch.stack([rows[:, None].expand(5, 7), columns.expand(5, 7), torch.ones(5, 7)])[None].double()
    with torch.no_grad():
        block.samplings[0].offset.weight[2 * tap, 2, 1, 1] = 0.5
        block.samplings[0].offset.weight[2 * tap + 1, 2, 1, 1] = 0.25
        read = block(x)[0, :, 2, 3] - x[0, :, 2, 3]  # the mean over the nine
    torch.testing.assert_close(read * 9, torch.tensor([9 * 2 + 0.5, 9 * 3 + 0.25, 9.0]).double())
    sampled = block.samplings[0].sample(x)[0, :2, tap, 2 * 7 + 3]
    torch.testing.assert_close(sampled, torch.tensor([2 + tap // 3 - 1 + 0.5, 3 + tap % 3 - 1 + 0.25]).double())


def test_affinities_sum_to_one_and_filters_are_free():
    block = random_block(4, dilations=(2,), groups=2)
    sampling = block.samplings[0]
    filters, affinity = sampling.dynamic(sampling.sample(random_input(2, 4, 3, 5)))
    assert filters.shape == (2, 2, 9, 15)
    torch.testing.assert_close(affinity.sum(dim=2), torch.ones(2, 1, 15, dtype=torch.float64))
    assert affinity.min() > 0
    assert filters.min() < 0


def test_every_dilation_has_weights_of_its_own():
    """Also the fourth, whose affinity the released code takes from the filters of its last group."""
    block = random_block(4, dilations=(1, 1, 1, 1), groups=2)
    x = random_input(1, 4, 3, 4)
    before = block(x)
    for sampling in block.samplings:
        with torch.no_grad():
            kept = sampling.weights.weight.clone()
            sampling.weights.weight[-9:] *= -1
        assert (block(x) - before).abs().max() > 1e-3
        with torch.no_grad():
            sampling.weights.weight.copy_(kept)
    assert torch.equal(block(x), before)


def test_static_sampling_reaches_the_taps_and_nothing_else():
    block = random_block(4, dilations=(1, 3), dynamic_sampling=False)
    x = random_input(1, 4, 8, 9)
    expected = torch.zeros(8, 9, dtype=torch.bool)
    for rate, i, j in itertools.product((1, 3), range(-1, 2), range(-1, 2)):
        expected[4 + rate * i, 4 + rate * j] = True
    assert torch.equal(reached(block(x), x, (4, 4)), expected)


def test_does_not_commute_with_permutations_of_the_positions():
    assert permutation_gap(random_block(4, dilations=(1, 2)), random_input(2, 4, 4, 5)) > 1e-2


@pytest.mark.parametrize(("grid", "position"), [((3, 4), (1, 2)), ((3, 4), (0, 0)), ((1, 5), (0, 3))], ids=str)
@pytest.mark.parametrize("options", SWITCHES, ids=lambda options: str([*options.values()]))
def test_attention_map_spreads_the_weights_over_the_places_read(options, grid, position):
    """Absolute weights, mean of the groups, added up over taps and dilations."""
    options = {"dilations": (1, 2), "groups": 2, **options}
    block = random_block(4, **options)
    x = random_input(2, 4, *grid)
    _, details = expected_output(block, x, **options)
    index = position[0] * grid[1] + position[1]
    expected = torch.zeros(2, *grid, dtype=x.dtype)
    for gamma, (weights, places) in zip(block.gamma, details, strict=True):
        strength = (gamma * weights[:, :, :, index].mean(dim=1)).abs()
        expected = expected + (strength[:, :, None] * places[:, :, index]).sum(dim=1).reshape(2, *grid)
    torch.testing.assert_close(block.attention_map(x, position), expected)


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position):
    with pytest.raises(ValueError, match="grid"):
        DynamicGraphMessagePassing(4).attention_map(torch.zeros(1, 4, 3, 5), position)


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="groups"):
        DynamicGraphMessagePassing(6, groups=4)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 663_556),
        ({"groups": 4}, 4 * (512 * 9 * (18 + 45) + 1)),
        ({"dilations": (1,)}, 165_889),
        ({"dynamic_sampling": False}, 663_556 - 4 * 512 * 9 * 18),
        ({"dynamic_weights": False}, 663_556 - 4 * 512 * 9 * 9),
        ({"dynamic_affinity": False}, 663_556 - 4 * 512 * 9 * 9),
        ({"dynamic_weights": False, "dynamic_affinity": False}, 4 * (512 * 9 * 18 + 1)),
        ({"dynamic_sampling": False, "dynamic_weights": False, "dynamic_affinity": False}, 4),
    ],
    ids=str,
)
def test_parameter_count(options, count):
    """For each dilation 3x3 convolutions 512 -> 18 (offsets) and 512 -> 9 + 9 (filters, affinities), and gamma."""
    assert sum(p.numel() for p in DynamicGraphMessagePassing(512, **options).parameters()) == count


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"dynamic_sampling": False}], ids=str)
def test_gradcheck(options):
    block = random_block(4, dilations=(1, 2), **options)
    assert torch.autograd.gradcheck(block, random_input(1, 4, 3, 2))


def test_places_are_exact_under_autocast():
    """Pixel 100 plus an offset has no room in bfloat16: what is read there must not blur."""
    torch.manual_seed(0)
    block = DynamicGraphMessagePassing(2, dilations=(4,))
    x = torch.randn(1, 2, 130, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sampled = block.samplings[0].sample(x)
    static = DynamicGraphMessagePassing(2, dilations=(4,), dynamic_sampling=False).samplings[0].sample(x)
    torch.testing.assert_close(sampled.float(), static.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, "low"])
def test_finite_under_autocast(given, dtype):
    torch.manual_seed(0)
    block = DynamicGraphMessagePassing(16, groups=4)
    x = torch.randn(2, 16, 5, 7).to(dtype if given == "low" else given).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = block(x)
    assert y.isfinite().all()
    y.float().sum().backward()
    assert x.grad.isfinite().all()

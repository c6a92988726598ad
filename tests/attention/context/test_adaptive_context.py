"""Adaptive context modules against their definition."""

import itertools

import pytest
import torch

from segvid.attention.context import AdaptiveContext, AdaptivePyramidContext
from tests import reference
from tests.reference import (
    assert_same_with_gradients,
    conv_norm_weights,
    conv_weights,
    permutation_gap,
    random_input,
    randomise,
)

AFFINITIES = ["sigmoid", "softmax"]


def make(**options) -> AdaptiveContext:
    """Biases of the batch norms above 0: behind five ReLUs of a few channels nothing may be left."""
    block = randomise(AdaptiveContext(8, **{"scale": 2, "inner_channels": 5} | options)).eval()
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name.endswith("1.bias"):
                parameter.abs_()
    return block


def expected(block: AdaptiveContext, x: torch.Tensor, scale: int, guided: bool, affinity: str) -> tuple:
    return reference.adaptive_context(
        x,
        conv_norm_weights(block.reduce),
        conv_norm_weights(block.pooled),
        conv_norm_weights(block.guidance) if guided else None,
        conv_weights(block.to_affinity),
        conv_norm_weights(block.residual),
        conv_norm_weights(block.fusion),
        scale,
        affinity,
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("affinity", AFFINITIES)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("grid", "scale"), [((3, 5), 1), ((3, 5), 2), ((4, 7), 3), ((1, 6), 2), ((5, 1), 3)], ids=str)
def test_equals_definition(grid, scale, guided, affinity, training):
    """Cells overlap when the map does not divide, and repeat when it is thinner than the scale."""
    block = make(scale=scale, global_guidance=guided, affinity=affinity).train(training)
    x = random_input(2, 8, *grid)
    y, _ = expected(block, x, scale, guided, affinity)
    assert y.abs().max() > 0.1
    assert_same_with_gradients(block(x), y, [x, *block.parameters()])


@pytest.mark.parametrize("affinity", AFFINITIES)
@pytest.mark.parametrize("guided", [False, True])
def test_pyramid_is_the_input_and_every_scale(guided, affinity):
    options = {"global_guidance": guided, "affinity": affinity, "inner_channels": 3}
    block = randomise(AdaptivePyramidContext(8, scales=(1, 3), **options)).train()
    x = random_input(2, 8, 4, 5)
    maps = [x]
    for context, scale in zip(block.contexts, (1, 3), strict=True):
        maps.append(expected(context, x, scale, guided, affinity)[0])
    y = block(x)
    assert y.shape[1] == block.out_channels == 8 + 2 * 3
    assert_same_with_gradients(y, torch.cat(maps, dim=1), [x, *block.parameters()])


def test_defaults_are_the_papers():
    block = AdaptivePyramidContext(16)
    assert [context.scale for context in block.contexts] == [1, 2, 3, 6]
    assert block.out_channels == 16 + 4 * 4
    assert all(context.global_guidance and not context.softmax for context in block.contexts)


@pytest.mark.parametrize("affinity", AFFINITIES)
def test_affinities_lie_between_0_and_1(affinity):
    """A softmax over the cells sums to 1 at every position; the published logistic function does not."""
    block = make(scale=2, affinity=affinity)
    x = random_input(2, 8, 3, 5).detach()
    _, weights = expected(block, x, 2, True, affinity)
    found = block.affinity(block.reduce(x))
    torch.testing.assert_close(found, weights.transpose(1, 2).reshape(2, 4, 3, 5), rtol=1e-10, atol=1e-12)
    assert (found > 0).all()
    assert (found < 1).all()
    assert ((found.sum(dim=1) - 1).abs().max() < 1e-12) == (affinity == "softmax")


def test_guidance_lets_far_positions_into_the_affinity():
    """Without it a position's affinity depends on the position alone."""
    for guided in (False, True):
        block = make(global_guidance=guided)
        x = random_input(1, 8, 3, 4)
        found = block.affinity(block.reduce(x))
        reached = reference.reached(found, x, (1, 2))
        assert reached[1, 2]
        assert (reached.sum() > 1) == guided


@pytest.mark.parametrize("affinity", AFFINITIES)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("grid", "scale"), [((4, 6), 2), ((3, 5), 2), ((5, 7), 3), ((2, 6), 1)], ids=str)
def test_attention_map_shows_the_weight_of_the_cell_of_each_position(grid, scale, guided, affinity):
    """Cells overlap when the map does not divide; a position counts for cell floor(y * scale / H)."""
    block = make(scale=scale, global_guidance=guided, affinity=affinity)
    x = random_input(2, 8, *grid).detach()
    _, weights = expected(block, x, scale, guided, affinity)
    for i, position in enumerate(itertools.product(*map(range, grid))):
        shown = block.attention_map(x, position)
        for row, column in itertools.product(*map(range, grid)):
            cell = row * scale // grid[0] * scale + column * scale // grid[1]
            torch.testing.assert_close(shown[:, row, column], weights[:, i, cell], rtol=1e-10, atol=1e-12)


def test_attention_map_of_the_pyramid_is_the_mean_over_the_scales():
    block = randomise(AdaptivePyramidContext(8, scales=(1, 2))).eval()
    x = random_input(2, 8, 4, 6).detach()
    one, two = (context.attention_map(x, (1, 2)) for context in block.contexts)
    torch.testing.assert_close(block.attention_map(x, (1, 2)), (one + two) / 2)


def test_scale_ties_it_to_the_grid():
    """One cell is the mean of all positions, whatever their order; more cells lie somewhere."""
    x = random_input(2, 8, 4, 5)
    assert permutation_gap(make(scale=1), x) < 1e-10
    assert permutation_gap(make(scale=2), x) > 1e-3


def test_samples_do_not_mix():
    block = make()
    x = random_input(3, 8, 3, 4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


def test_parameter_count():
    """The published head at 2048 channels has 30,455,858, of which 4096 * 512 * 9 + 1024 behind the module."""
    head = 4096 * 512 * 9 + 1024
    assert sum(p.numel() for p in AdaptivePyramidContext(2048).parameters()) + head == 30_455_858
    unguided = AdaptivePyramidContext(2048, global_guidance=False, affinity="softmax")
    assert sum(p.numel() for p in unguided.parameters()) + head == 30_455_858 - 4 * (512 * 512 + 1024)


@pytest.mark.parametrize("affinity", AFFINITIES)
@pytest.mark.parametrize("guided", [False, True])
def test_gradcheck(guided, affinity):
    block = make(global_guidance=guided, affinity=affinity, inner_channels=3)
    assert torch.autograd.gradcheck(block, random_input(1, 8, 2, 3))


@pytest.mark.parametrize(
    "mechanism", [lambda **o: AdaptiveContext(8, scale=2, **o), lambda **o: AdaptivePyramidContext(8, **o)]
)
def test_unknown_affinities_are_refused(mechanism):
    with pytest.raises(ValueError, match="affinity"):
        mechanism(affinity="cosine")


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
@pytest.mark.parametrize("block", [AdaptiveContext(8, scale=2), AdaptivePyramidContext(8)], ids=["one", "pyramid"])
def test_attention_map_refuses_a_position_off_the_grid(block, position):
    with pytest.raises(ValueError, match="grid"):
        block.eval().attention_map(torch.zeros(1, 8, 3, 5), position)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast_at_large_activations(dtype):
    torch.manual_seed(0)
    block = AdaptivePyramidContext(16).eval()
    with torch.autocast("cpu", dtype=dtype):
        assert block(100 * torch.randn(1, 16, 24, 24)).isfinite().all()

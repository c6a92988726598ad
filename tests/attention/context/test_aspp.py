"""Atrous spatial pyramid pooling against convolutions written out tap by tap."""

import pytest
import torch

from segvid.attention.context import ASPP
from tests import reference
from tests.reference import assert_same_with_gradients, norm_weights, permutation_gap, random_input, randomise


def expected_output(block: ASPP, x: torch.Tensor, rates: tuple[int, ...]) -> torch.Tensor:
    layers = [block.image_pool, *block.branches, block.project]
    return reference.atrous_spatial_pyramid_pooling(
        x, rates, [layer[0].weight for layer in layers], [norm_weights(layer[1]) for layer in layers]
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grid", [(5, 4), (1, 7), (6, 1)], ids=str)
@pytest.mark.parametrize("rates", [(1, 2, 3), (2, 4), (12, 24, 36)], ids=str)
def test_equals_definition(grid, rates, training):
    """Rates beyond the map leave only the centre tap of the kernel."""
    block = randomise(ASPP(4, out_channels=3, rates=rates)).train(training)
    x = random_input(3, 4, *grid)
    assert_same_with_gradients(block(x), expected_output(block, x, rates), [x, *block.parameters()])


def test_default_rates_are_those_of_output_stride_8():
    """An impulse in the middle of a 73 x 73 map comes out at exactly 0, 12, 24 and 36 steps of row and column."""
    block = ASPP(1, out_channels=1).eval()
    for branch in block.branches:
        torch.nn.init.ones_(branch[0].weight)
    x = torch.zeros(1, 1, 73, 73)
    x[0, 0, 36, 36] = 1
    seen = sum(branch(x) for branch in block.branches)[0, 0] > 0
    steps = torch.tensor([0, 12, 24, 36])
    expected = torch.zeros(73, 73, dtype=torch.bool)
    expected[36, 36] = True
    for step in steps[1:]:
        for rows in (-step, 0, step):
            for columns in (-step, 0, step):
                expected[36 + rows, 36 + columns] = True
    assert torch.equal(seen, expected)


def test_parameter_count():
    """2048 -> 256: 1x1 for image and pixels 2 * (2048 * 256), 3x3 3 * (9 * 2048 * 256), projection 1280 * 256,
    batch norms 6 * (2 * 256)."""
    assert sum(p.numel() for p in ASPP(2048).parameters()) == 15_535_104


def test_does_not_commute_with_permutations_of_the_positions():
    assert permutation_gap(randomise(ASPP(4, out_channels=4, rates=(1, 2))).eval(), random_input(2, 4, 3, 5)) > 1e-2


def test_one_sample_cannot_be_trained():
    """The image pooling gives batch norm one value a channel; with two samples it works."""
    block = ASPP(8, out_channels=4).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(torch.randn(1, 8, 5, 7))
    assert block(torch.randn(2, 8, 5, 7)).isfinite().all()


def test_gradcheck():
    block = randomise(ASPP(3, out_channels=2, rates=(1, 2))).eval()
    assert torch.autograd.gradcheck(block, random_input(1, 3, 4, 3))

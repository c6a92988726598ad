"""Global context block against its definition."""

import itertools

import pytest
import torch

from segvid.attention.context import GlobalContext
from tests import reference
from tests.reference import assert_same_with_gradients, conv_weights, permutation_gap, random_input, randomise


def make(channels: int = 8, **options) -> GlobalContext:
    return randomise(GlobalContext(channels, **options)).eval()


def expected(block: GlobalContext, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mask, reduce, norm, expand = (conv_weights(m) for m in (block.mask, block.reduce, block.norm, block.expand))
    return reference.global_context(x, mask, reduce, norm, expand)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("reduction", [2, 4])
@pytest.mark.parametrize("grid", [(7,), (3, 5), (1, 6), (6, 1), (1, 1), (2, 3, 2)], ids=str)
def test_equals_definition(grid, reduction, training):
    block = make(reduction=reduction).train(training)
    x = random_input(2, 8, *grid)
    y, _ = expected(block, x)
    assert (y - x).abs().max() > 0.1
    assert_same_with_gradients(block(x), y, [x, *block.parameters()])


def test_layer_norm_has_its_epsilon_of_1e_5():
    """Weights small enough for it to matter."""
    block = make()
    with torch.no_grad():
        block.reduce.weight.mul_(0.01)
        block.reduce.bias.mul_(0.01)
    x = random_input(2, 8, 3, 3)
    assert_same_with_gradients(block(x), expected(block, x)[0], [x])


def test_every_position_receives_the_same_vector():
    block = make()
    x = random_input(2, 8, 3, 4).detach()
    added = (block(x) - x).flatten(2)
    torch.testing.assert_close(added, added[:, :, :1].expand_as(added), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 2, 3)], ids=str)
def test_attention_map_is_the_same_for_all_positions(grid):
    block = make()
    x = random_input(2, 8, *grid).detach()
    _, weights = expected(block, x)
    for position in itertools.product(*map(range, grid)):
        shown = block.attention_map(x, position)
        torch.testing.assert_close(shown, weights.reshape(2, *grid), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(shown.flatten(1).sum(dim=1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("training", [False, True])
def test_starts_as_the_identity(training):
    """The last layer starts at 0."""
    x = random_input(2, 8, 5, 7).float()
    block = GlobalContext(8).train(training)
    assert torch.equal(block(x), x)
    assert block.reduce.weight.any()


@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 2)], ids=str)
def test_commutes_with_permutations_of_the_positions(grid):
    assert permutation_gap(make(), random_input(2, 8, *grid)) < 1e-10


def test_samples_do_not_mix():
    block = make().train()
    x = random_input(3, 8, 3, 4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


@pytest.mark.parametrize(("options", "inner"), [({}, 128), ({"reduction": 16}, 32)], ids=str)
def test_parameter_count(options, inner):
    """512 channels: mask 512 + 1, down 512 * inner + inner, layer norm 2 * inner, up inner * 512 + 512."""
    count = 513 + 512 * inner + inner + 2 * inner + inner * 512 + 512
    assert sum(p.numel() for p in GlobalContext(512, **options).parameters()) == count


def test_gradcheck():
    assert torch.autograd.gradcheck(make(), random_input(1, 8, 2, 3))


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position):
    with pytest.raises(ValueError, match="grid"):
        GlobalContext(8).attention_map(torch.zeros(1, 8, 3, 5), position)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast_at_large_activations(dtype):
    torch.manual_seed(0)
    block = GlobalContext(16).eval()
    torch.nn.init.normal_(block.expand.weight)
    with torch.autocast("cpu", dtype=dtype):
        assert block(1000 * torch.randn(1, 16, 32, 32)).isfinite().all()

"""Disentangled non-local block against its definition."""

import itertools

import pytest
import torch

from segvid.attention.context import DisentangledNonLocal
from tests import reference
from tests.reference import assert_same_with_gradients, conv_weights, permutation_gap, random_input, randomise


def make(**options) -> DisentangledNonLocal:
    return randomise(DisentangledNonLocal(6, **options)).eval()


def expected(block: DisentangledNonLocal, x: torch.Tensor, temperature: float = 1.0, **options) -> tuple:
    """Output, pairwise and unary weights."""
    convs = [conv_weights(conv) for conv in (block.query, block.key, block.value, block.mask)]
    return reference.disentangled_non_local(x, *convs, block.gamma, temperature, **options)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("inner", [None, 2])
@pytest.mark.parametrize("grid", [(7,), (3, 4), (1, 5), (5, 1), (2, 2, 3)], ids=str)
def test_equals_definition(grid, inner, temperature, training):
    block = make(inner_channels=inner, temperature=temperature).train(training)
    x = random_input(2, 6, *grid)
    assert_same_with_gradients(block(x), expected(block, x, temperature)[0], [x, *block.parameters()])


def test_mean_of_the_keys_changes_nothing():
    """It adds one number to all energies of a query. So does a bias of the keys; one of the queries is taken out."""
    block = make()
    x = random_input(2, 6, 3, 4).detach()
    torch.testing.assert_close(block(x), expected(block, x, key_mean=False)[0], rtol=1e-10, atol=1e-10)
    before = block(x)
    with torch.no_grad():
        block.key.bias.add_(torch.arange(3.0))
    torch.testing.assert_close(block(x), before, rtol=1e-10, atol=1e-10)


def test_mean_of_the_queries_is_taken_out():
    """Any bias of theirs, q + c, is nothing; without the subtraction it would not be."""
    block = make()
    x = random_input(2, 6, 3, 4).detach()
    before = block(x)
    with torch.no_grad():
        block.query.bias.add_(5 * torch.arange(3.0))
    torch.testing.assert_close(block(x), before, rtol=1e-10, atol=1e-10)
    query, key = (reference.pointwise(x, *conv_weights(conv)) for conv in (block.query, block.key))
    kept = reference.attention_weights(query, key, scale=3**-0.5)
    assert (kept - expected(block, x)[1]).abs().max() > 1e-2


def test_unary_term_is_not_gated():
    """With gamma at 0, as at the start, every position receives the same vector, and it is not 0."""
    block = make()
    with torch.no_grad():
        block.gamma.zero_()
    x = random_input(2, 6, 3, 4).detach()
    added = (block(x) - x).flatten(2)
    assert added.abs().max() > 1e-2
    torch.testing.assert_close(added, added[:, :, :1].expand_as(added), rtol=1e-10, atol=1e-12)


def test_starts_with_gamma_at_0_and_weights_as_the_non_local_block():
    block = DisentangledNonLocal(1024)
    assert block.gamma.item() == 0
    for conv in (block.query, block.key, block.value, block.mask):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert conv.bias is None or not conv.bias.any()
    assert block.value.bias is None
    assert DisentangledNonLocal(64).query.weight.std() > 0.015


@pytest.mark.parametrize("grid", [(5,), (3, 4), (2, 2, 3)], ids=str)
def test_attention_map_is_gamma_times_the_pairwise_weights_plus_the_unary_ones(grid):
    block = make(temperature=0.5)
    x = random_input(2, 6, *grid).detach()
    _, pairwise, unary = expected(block, x, 0.5)
    torch.testing.assert_close(pairwise.sum(dim=2), torch.ones(pairwise.shape[:2], dtype=torch.float64))
    torch.testing.assert_close(unary.sum(dim=1), torch.ones(2, dtype=torch.float64))
    for i, position in enumerate(itertools.product(*map(range, grid))):
        row = (block.gamma * pairwise[:, i] + unary).reshape(2, *grid)
        torch.testing.assert_close(block.attention_map(x, position), row, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 2)], ids=str)
def test_commutes_with_permutations_of_the_positions(grid):
    assert permutation_gap(make(), random_input(2, 6, *grid)) < 1e-10


def test_samples_do_not_mix():
    block = make()
    x = random_input(3, 6, 3, 4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


def test_parameter_count():
    """512 channels, d = 256: 2 (512 * 256 + 256), 512 * 512, mask 512 + 1, gamma."""
    count = 2 * 131_328 + 262_144 + 513 + 1
    assert sum(p.numel() for p in DisentangledNonLocal(512).parameters()) == count
    narrow = DisentangledNonLocal(512, inner_channels=64, temperature=0.05)
    assert sum(p.numel() for p in narrow.parameters()) == 2 * (512 * 64 + 64) + 262_144 + 513 + 1


def test_gradcheck():
    assert torch.autograd.gradcheck(make(), random_input(1, 6, 2, 3))


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position):
    with pytest.raises(ValueError, match="grid"):
        DisentangledNonLocal(6).attention_map(torch.zeros(1, 6, 3, 5), position)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast_at_large_activations(dtype):
    torch.manual_seed(0)
    block = DisentangledNonLocal(64).eval()
    torch.nn.init.ones_(block.gamma)
    with torch.autocast("cpu", dtype=dtype):
        assert block(300 * torch.randn(1, 64, 16, 16)).isfinite().all()

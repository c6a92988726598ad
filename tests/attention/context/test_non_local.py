"""Non-local block against its definition."""

import itertools

import pytest
import torch
from torch import nn

from segvid.attention.context import NonLocal
from tests import reference
from tests.reference import (
    assert_same_with_gradients,
    conv_weights,
    norm_weights,
    permutation_gap,
    random_input,
    randomise,
)

GRIDS = [(3, 4), (1, 5), (5, 1), (2, 2, 3)]
AFFINITIES = ["embedded_gaussian", "gaussian", "dot_product", "concatenation"]
POOLS = ["none", "first", "after"]
SHARED = [("embedded_gaussian", True), ("dot_product", True), ("concatenation", True)]


def expected_output(block: NonLocal, x: torch.Tensor, scaled: bool) -> torch.Tensor:
    convs = [conv_weights(conv) for conv in (block.query, block.key, block.value, block.out)]
    return reference.non_local(x, *convs, norm_weights(block.norm), scaled)


def expected_variant(
    block: NonLocal, x: torch.Tensor, affinity: str, scaled: bool, shared: bool = False, pool: str = "none"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and weights. A grid of one axis is one row: pooling halves it along that."""
    query, key, value = (
        None if isinstance(conv, nn.Identity) else conv_weights(conv) for conv in (block.query, block.key, block.value)
    )
    concat = block.concat.weight if affinity == "concatenation" else None
    y, weights = reference.non_local_variant(
        x if x.dim() > 3 else x.unsqueeze(2),
        query,
        query if shared else key,
        value,
        conv_weights(block.out),
        norm_weights(block.norm),
        affinity,
        scaled,
        concat,
        pool,
    )
    return y.reshape(x.shape), weights


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_definition(grid, scale, training):
    block = randomise(NonLocal(6, inner_channels=3, scale=scale)).train(training)
    x = random_input(2, 6, *grid)
    assert_same_with_gradients(block(x), expected_output(block, x, scale), [x, *block.parameters()])


@pytest.mark.parametrize(("affinity", "shared"), [*itertools.product(AFFINITIES, [False]), *SHARED])
@pytest.mark.parametrize("value_projection", [True, False])
@pytest.mark.parametrize("pool", POOLS)
def test_all_options_together_equal_the_definition(affinity, shared, pool, value_projection):
    """3 x 5: the last cells of the pooling stick out of the map on both sides."""
    options = {"affinity": affinity, "pool": pool, "value_projection": value_projection, "shared_query_key": shared}
    block = randomise(NonLocal(6, inner_channels=4, **options)).train()
    x = random_input(2, 6, 3, 5)
    expected, _ = expected_variant(block, x, affinity, affinity == "embedded_gaussian", shared, pool)
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


@pytest.mark.parametrize("grid", [(7,), (1, 5), (5, 1), (4, 2), (3, 3, 2)], ids=str)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("affinity", AFFINITIES)
def test_affinities_and_pooling_on_any_grid(affinity, pool, grid):
    """Pooling never touches the first of three axes, and leaves thin maps a key."""
    block = randomise(NonLocal(4, affinity=affinity, pool=pool)).eval()
    x = random_input(2, 4, *grid)
    expected, weights = expected_variant(block, x, affinity, affinity == "embedded_gaussian", pool=pool)
    halves = [*grid[:-2], *((size + 1) // 2 for size in grid[-2:])]
    keys = grid if pool == "none" else halves
    assert weights.shape == (2, x[0, 0].numel(), torch.Size(keys).numel())
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


@pytest.mark.parametrize("scale", [None, True, False])
@pytest.mark.parametrize("affinity", AFFINITIES)
def test_scale_of_every_affinity(affinity, scale):
    """None: as released, the embedded Gaussian alone; d is the width of the query, C for the plain Gaussian."""
    block = randomise(NonLocal(6, inner_channels=2, affinity=affinity, scale=scale)).eval()
    x = random_input(2, 6, 3, 4)
    scaled = affinity == "embedded_gaussian" if scale is None else scale
    expected, _ = expected_variant(block, x, affinity, scaled)
    other, _ = expected_variant(block, x, affinity, not scaled)
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])
    assert (block(x) - other).abs().max() > 1e-3


def test_pooling_first_and_after_the_projections_differ():
    """A maximum does not commute with weights of both signs."""
    blocks = [randomise(NonLocal(6, pool=pool)).eval() for pool in ("first", "after")]
    x = random_input(2, 6, 4, 4)
    assert (blocks[0](x) - blocks[1](x)).abs().max() > 1e-2


def test_a_shared_projection_makes_the_affinity_symmetric():
    block = randomise(NonLocal(6, affinity="dot_product", shared_query_key=True)).eval()
    query, key, _ = block.project(random_input(1, 6, 3, 4))
    affinity = block.weights(query, key)
    torch.testing.assert_close(affinity, affinity.transpose(1, 2))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("affinity", AFFINITIES)
@pytest.mark.parametrize(("grid", "position"), [((3, 5), (1, 3)), ((2, 3, 4), (1, 0, 2)), ((6,), (4,))], ids=str)
def test_attention_map_shows_the_weights_of_one_query(grid, position, affinity, pool):
    """Positions that were pooled together show the weight of their common key."""
    block = randomise(NonLocal(4, affinity=affinity, pool=pool)).eval()
    x = random_input(2, 4, *grid).detach()
    _, weights = expected_variant(block, x, affinity, affinity == "embedded_gaussian", pool=pool)
    halves = [*grid[:-2], *((size + 1) // 2 for size in grid[-2:])]
    numbers = torch.arange(x[0, 0].numel()).reshape(grid)
    rows = weights[:, numbers[position]].reshape(2, *(grid if pool == "none" else halves))
    actual = block.attention_map(x, position)
    for at in itertools.product(*map(range, grid)):
        cell = at if pool == "none" else (*at[:-2], *(p // 2 for p in at[-2:]))
        torch.testing.assert_close(actual[:, *at], rows[:, *cell])


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position):
    with pytest.raises(ValueError, match="grid"):
        NonLocal(4).attention_map(torch.zeros(1, 4, 3, 5), position)


@pytest.mark.parametrize("options", [{"affinity": "cosine"}, {"pool": "mean"}], ids=str)
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        NonLocal(4, **options)


def test_the_gaussian_has_nothing_to_share():
    with pytest.raises(ValueError, match="shared_query_key"):
        NonLocal(4, affinity="gaussian", shared_query_key=True)


def test_scales_by_default_as_the_official_code_does():
    block = randomise(NonLocal(6)).eval()
    x = random_input(2, 6, 3, 4)
    torch.testing.assert_close(block(x), expected_output(block, x, scaled=True))
    assert (block(x) - expected_output(block, x, scaled=False)).abs().max() > 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_starts_as_the_identity(training):
    """The last batch norm starts at 0: bit-exact."""
    x = random_input(2, 6, 5, 7).float()
    assert torch.equal(NonLocal(6).train(training)(x), x)


@pytest.mark.parametrize("value_projection", [True, False])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("affinity", AFFINITIES)
def test_every_variant_starts_as_the_identity(affinity, pool, value_projection):
    block = NonLocal(6, affinity=affinity, pool=pool, value_projection=value_projection)
    x = random_input(2, 6, 5, 7).float()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    "channels",
    [
        1024,
        512,
    ],
)
def test_official_initialisation_of_wide_blocks(channels):
    """N(0, 0.01), biases 0, batch norm weight 0 and bias 0; it is the norm that is zero, not the convolution."""
    block = NonLocal(channels)
    assert not block.norm.weight.any()
    assert not block.norm.bias.any()
    for conv in (block.query, block.key, block.value, block.out):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert not conv.bias.any()


def test_narrow_blocks_start_wider():
    """Deliberate difference: with 0.01 their output would be nothing beside the epsilon of the last batch norm."""
    block = NonLocal(64)
    for conv in (block.query, block.key, block.value, block.out):
        assert conv.weight.std() > 0.015


@pytest.mark.parametrize("grid", [(3, 5), (2, 3, 4)], ids=str)
def test_commutes_with_permutations_of_the_positions(grid):
    block = randomise(NonLocal(6)).eval()
    assert permutation_gap(block, random_input(2, 6, *grid)) < 1e-10


@pytest.mark.parametrize("affinity", AFFINITIES)
def test_every_affinity_commutes_with_permutations_of_the_positions(affinity):
    block = randomise(NonLocal(6, affinity=affinity)).eval()
    assert permutation_gap(block, random_input(2, 6, 3, 5)) < 1e-10


@pytest.mark.parametrize("pool", ["first", "after"])
def test_pooling_ties_it_to_the_grid(pool):
    block = randomise(NonLocal(6, pool=pool)).eval()
    assert permutation_gap(block, random_input(2, 6, 4, 5)) > 1e-2


def test_samples_do_not_mix():
    block = randomise(NonLocal(6)).eval()
    x = random_input(3, 6, 3, 4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


def test_parameter_count():
    """512 channels, d = 256: 3 (512 * 256 + 256) for query, key, value; 256 * 512 + 512 out; 2 * 512 batch norm."""
    assert sum(p.numel() for p in NonLocal(512).parameters()) == 526_592


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"shared_query_key": True}, 526_592 - 131_328),
        ({"value_projection": False}, 2 * 131_328 + 512 * 512 + 512 + 1024),
        ({"affinity": "gaussian"}, 526_592 - 2 * 131_328),
        ({"affinity": "gaussian", "value_projection": False}, 512 * 512 + 512 + 1024),
        ({"affinity": "dot_product"}, 526_592),
        ({"affinity": "concatenation"}, 526_592 + 512),
        ({"pool": "first"}, 526_592),
    ],
    ids=str,
)
def test_parameter_counts_of_the_variants(options, count):
    """A projection has 512 * 256 + 256 = 131,328; the vector w of the concatenation 2 * 256."""
    assert sum(p.numel() for p in NonLocal(512, **options).parameters()) == count


@pytest.mark.parametrize("affinity", AFFINITIES)
def test_gradcheck(affinity):
    block = randomise(NonLocal(4, affinity=affinity)).eval()
    assert torch.autograd.gradcheck(block, random_input(1, 4, 3, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast_at_large_activations(dtype):
    """Scaling before the product keeps the affinities of a backbone's larger activations inside float16."""
    torch.manual_seed(0)
    block = NonLocal(64).eval()
    torch.nn.init.ones_(block.norm.weight)
    for conv in (block.query, block.key, block.value, block.out):
        torch.nn.init.normal_(conv.weight, std=0.01)
    with torch.autocast("cpu", dtype=dtype):
        assert block(1000 * torch.randn(1, 64, 16, 16)).isfinite().all()

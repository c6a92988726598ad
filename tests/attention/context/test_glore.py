"""Global reasoning unit against its definition, with the graph step and without."""

import itertools

import pytest
import torch

from segvid.attention.context import GlobalReasoning
from tests import reference
from tests.reference import (
    assert_same_with_gradients,
    conv_weights,
    norm_weights,
    permutation_gap,
    random_input,
    randomise,
)

GRAPHS = ["full", "nodes", "states", "none"]


def make(**options) -> GlobalReasoning:
    return randomise(GlobalReasoning(6, **{"nodes": 3, "states": 4} | options)).eval()


def expected(
    block: GlobalReasoning, x: torch.Tensor, *, graph="full", tied=True, normalize=True, softmax_projection=False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return reference.global_reasoning(
        x,
        conv_weights(block.state),
        conv_weights(block.projection),
        None if tied else conv_weights(block.reprojection),
        conv_weights(block.conv_nodes) if graph in ("full", "nodes") else None,
        conv_weights(block.conv_states) if graph in ("full", "states") else None,
        conv_weights(block.out),
        norm_weights(block.norm),
        normalize,
        softmax_projection,
    )


@pytest.mark.parametrize("softmax_projection", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("graph", GRAPHS)
def test_equals_definition(graph, tied, normalize, softmax_projection):
    options = {"graph": graph, "tied": tied, "normalize": normalize, "softmax_projection": softmax_projection}
    block = make(**options)
    x = random_input(2, 6, 2, 4)
    assert_same_with_gradients(block(x), expected(block, x, **options)[0], [x, *block.parameters()])


@pytest.mark.parametrize("graph", ["full", "none"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grid", [(7,), (3, 5), (1, 6), (6, 1), (2, 3, 2)], ids=str)
def test_any_grid(grid, training, graph):
    block = make(graph=graph).train(training)
    x = random_input(2, 6, *grid)
    assert_same_with_gradients(block(x), expected(block, x, graph=graph)[0], [x, *block.parameters()])


def test_batch_norm_has_the_released_epsilon():
    """1e-4; weights small enough for it to matter."""
    block = make().train()
    assert block.norm.eps == 1e-4
    with torch.no_grad():
        block.out.weight.mul_(0.01)
    x = random_input(2, 6, 3, 3)
    assert_same_with_gradients(block(x), expected(block, x)[0], [x])


@pytest.mark.parametrize("tied", [False, True])
def test_without_graph_it_is_attention_with_the_affinity_of_the_projections(tied):
    """`x + BN(W (S P^T P) / N)`: a tied affinity is symmetric; its rows do not sum to 1."""
    block = make(graph="none", tied=tied)
    x = random_input(2, 6, 3, 4).detach()
    _, into, back = expected(block, x, graph="none", tied=tied)
    affinity = torch.stack([r.T @ p / 12 for p, r in zip(into, back, strict=True)])
    assert torch.allclose(affinity, affinity.transpose(1, 2)) == tied
    context = reference.weigh(affinity, reference.pointwise(x, *conv_weights(block.state)), (3, 4))
    y = x + reference.glore_batch_norm(
        reference.pointwise(context, *conv_weights(block.out)), *norm_weights(block.norm)
    )
    torch.testing.assert_close(block(x), y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("softmax_projection", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("grid", [(5,), (2, 4), (2, 1, 3)], ids=str)
def test_attention_map_is_a_row_of_the_affinity(grid, tied, normalize, softmax_projection):
    options = {"tied": tied, "normalize": normalize, "softmax_projection": softmax_projection}
    block = make(**options)
    x = random_input(2, 6, *grid).detach()
    _, into, back = expected(block, x, **options)
    count = into.shape[2]
    for i, position in enumerate(itertools.product(*map(range, grid))):
        row = torch.stack([(back[:, :, i] * into[:, :, j]).sum(dim=1) for j in range(count)], dim=1)
        row = (row / count if normalize else row).reshape(2, *grid)
        torch.testing.assert_close(block.attention_map(x, position), row, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("softmax_projection", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_regions_are_the_projection(tied, softmax_projection):
    block = make(tied=tied, softmax_projection=softmax_projection)
    x = random_input(2, 6, 3, 4).detach()
    _, into, _ = expected(block, x, tied=tied, softmax_projection=softmax_projection)
    regions = block.regions(x)
    torch.testing.assert_close(regions, into.reshape(2, 3, 3, 4), rtol=1e-10, atol=1e-12)
    if softmax_projection:
        torch.testing.assert_close(regions.sum(dim=1), torch.ones(2, 3, 4, dtype=torch.float64))


def test_normalised_nodes_do_not_grow_with_the_map():
    """A map tiled to twice its size gives the same result only if the nodes are means."""
    x = random_input(1, 6, 3, 4).detach()
    tiled = torch.cat([x, x], dim=3)
    for normalize in (True, False):
        block = make(normalize=normalize)
        gap = (block(tiled)[..., :4] - block(x)).abs().max()
        assert (gap < 1e-12) == normalize


def test_defaults_are_the_papers():
    block = GlobalReasoning(16)
    assert (block.projection.out_channels, block.state.out_channels) == (4, 8)
    assert (block.graph, block.tied, block.normalize, block.softmax_projection) == ("full", True, True, False)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("graph", GRAPHS)
def test_starts_as_the_identity(graph, training):
    x = random_input(2, 8, 5, 7).float()
    assert torch.equal(GlobalReasoning(8, graph=graph).train(training)(x), x)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 2)], ids=str)
def test_commutes_with_permutations_of_the_positions(grid, graph):
    assert permutation_gap(make(graph=graph, tied=False), random_input(2, 6, *grid)) < 1e-10


def test_samples_do_not_mix():
    block = make()
    x = random_input(3, 6, 3, 4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 411_136),
        ({"nodes": 64}, 185_600),
        ({"graph": "nodes"}, 411_136 - 256 * 256),
        ({"graph": "states"}, 411_136 - 128 * 128 - 128),
        ({"graph": "none"}, 411_136 - 256 * 256 - 128 * 128 - 128),
        ({"tied": False}, 411_136 + 512 * 128 + 128),
        ({"normalize": False, "softmax_projection": True}, 411_136),
    ],
    ids=str,
)
def test_parameter_count(options, count):
    """512 channels, 128 nodes of 256 states; the official unit has 411,136, with 64 nodes of 128 states 185,600."""
    assert sum(p.numel() for p in GlobalReasoning(512, **options).parameters()) == count


@pytest.mark.parametrize("graph", GRAPHS)
def test_gradcheck(graph):
    assert torch.autograd.gradcheck(make(graph=graph, softmax_projection=True), random_input(1, 6, 2, 3))


def test_unknown_graphs_are_refused():
    with pytest.raises(ValueError, match="graph"):
        GlobalReasoning(8, graph="edges")


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position):
    with pytest.raises(ValueError, match="grid"):
        GlobalReasoning(8).attention_map(torch.zeros(1, 8, 3, 5), position)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast_on_large_maps(dtype):
    """The sums over the positions run in float32. (The unit is cubic in its input: activations of 100s do overflow.)"""
    torch.manual_seed(0)
    block = GlobalReasoning(16).eval()
    torch.nn.init.ones_(block.norm.weight)
    with torch.autocast("cpu", dtype=dtype):
        assert block(10 + 5 * torch.randn(1, 16, 32, 32)).isfinite().all()

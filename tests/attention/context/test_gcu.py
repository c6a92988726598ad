"""Graph convolution units against their definition, and the k-means that sets their anchors."""

import pytest
import torch

from segvid.attention.context import GraphConvolutionUnits
from segvid.attention.context.gcu import k_means
from tests import reference
from tests.reference import assert_same_with_gradients, conv_norm_weights, permutation_gap, random_input, randomise


def make(**options) -> GraphConvolutionUnits:
    """As after the first training batch: the anchors stay."""
    block = randomise(GraphConvolutionUnits(6, **{"graphs": (2, 4), "graph_channels": 5} | options)).eval()
    block.initialised.fill_(True)
    return block


def expected(block: GraphConvolutionUnits, x: torch.Tensor, graph: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """sigma is the logistic function of the parameter."""
    units = [(unit.anchors, 1 / (1 + torch.exp(-unit.width)), unit.weight.weight) for unit in block.units]
    return reference.graph_convolution_units(x, units, conv_norm_weights(block.fuse), graph)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("grid", [(7,), (3, 4), (1, 6), (6, 1), (2, 3, 2)], ids=str)
def test_equals_definition(grid, graph, training):
    block = make(graph=graph).train(training)
    x = random_input(2, 6, *grid)
    y, _ = expected(block, x, graph)
    assert (y - y.mean()).abs().max() > 0.1
    assert_same_with_gradients(block(x), y, [x, *block.parameters()])


@pytest.mark.parametrize("options", [{"graphs": (3,)}, {"graphs": (1, 2, 5), "graph_channels": 2}], ids=str)
def test_any_number_of_graphs(options):
    block = make(**options)
    x = random_input(2, 6, 3, 3)
    assert_same_with_gradients(block(x), expected(block, x, True)[0], [x, *block.parameters()])


def test_graph_mixes_the_nodes_unless_there_is_one():
    """A = Z Z^T with rows of length 1: for one node it is the number 1."""
    x = random_input(2, 6, 3, 4).detach()
    for graphs, same in (((1,), True), ((3,), False)):
        with_graph, without = make(graphs=graphs), make(graphs=graphs, graph=False)
        assert with_graph.load_state_dict(without.state_dict())
        assert torch.allclose(with_graph(x), without(x), rtol=1e-10, atol=1e-10) == same


def test_node_features_have_length_one():
    unit = make().units[1]
    tokens = random_input(2, 6, 9).detach()
    z = unit.node_features(tokens, unit.assign(tokens))
    torch.testing.assert_close(z.norm(dim=2), torch.ones(2, 4, dtype=torch.float64))


@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 2, 3)], ids=str)
def test_regions_are_the_assignment_of_the_largest_graph(grid):
    block = make(graphs=(2, 5, 3))
    x = random_input(2, 6, *grid).detach()
    _, assignments = expected(block, x, True)
    regions = block.regions(x)
    torch.testing.assert_close(regions, assignments[1].reshape(2, 5, *grid), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(regions.sum(dim=1), torch.ones(2, *grid, dtype=torch.float64))


def test_positions_at_an_anchor_belong_to_it():
    block = make(graphs=(3,))
    anchors = 20 * torch.eye(6, dtype=torch.float64)[:3]
    with torch.no_grad():
        block.units[0].anchors.copy_(anchors)
    regions = block.regions(anchors.T[None])
    torch.testing.assert_close(regions[0], torch.eye(3, dtype=torch.float64))


def test_first_training_batch_sets_anchors_and_widths_by_k_means():
    """Every anchor is the mean of the features that lie nearest to it, sigma their deviation inside (0.05, 0.95)."""
    torch.manual_seed(0)
    block = GraphConvolutionUnits(6, graphs=(2, 3)).double()
    x = 0.5 * random_input(3, 6, 4, 5).detach()
    x[:, 1] += 30 * torch.arange(5)  # five columns far apart
    x[:, 0], x[:, 2] = 1.0, 3 * x[:, 2]  # deviations of 0 and above 1
    before = [unit.anchors.clone() for unit in block.units]
    block.eval()(x)
    assert not block.initialised
    assert all(torch.equal(unit.anchors, old) for unit, old in zip(block.units, before, strict=True))
    y = block.train()(x)
    assert block.initialised
    points = x.transpose(0, 1).flatten(1).T
    for unit in block.units:
        nearest = (points[:, None] - unit.anchors).square().sum(dim=2).argmin(dim=1)
        for k in range(len(unit.anchors)):
            members = points[nearest == k]
            assert len(members) > 1
            torch.testing.assert_close(unit.anchors[k], members.mean(dim=0))
            deviation = members.std(dim=0, correction=0).clamp(0.05, 0.95)
            torch.testing.assert_close(1 / (1 + torch.exp(-unit.width[k])), deviation)
    torch.testing.assert_close(y, expected(block, x, True)[0], rtol=1e-10, atol=1e-10)


def test_later_batches_leave_the_anchors_to_the_gradient():
    block = GraphConvolutionUnits(6, graphs=(2, 3)).double().train()
    block(random_input(2, 6, 3, 4))
    restored = GraphConvolutionUnits(6, graphs=(2, 3)).double().train()
    restored.load_state_dict(block.state_dict())
    for module in (block, restored):
        before = [unit.anchors.clone() for unit in block.units]
        module(random_input(2, 6, 3, 4, seed=9)).square().sum().backward()
        for unit, old in zip(module.units, before, strict=True):
            assert torch.equal(unit.anchors, old)
            assert unit.anchors.grad.abs().max() > 1e-6
            assert unit.width.grad.abs().max() > 1e-6


def test_more_anchors_than_features():
    torch.manual_seed(0)
    block = GraphConvolutionUnits(6, graphs=(8, 32)).train()
    y = block(torch.randn(2, 6, 2, 2))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(parameter.isfinite().all() and parameter.grad.isfinite().all() for parameter in block.parameters())


def test_k_means_finds_separate_clusters():
    generator = torch.Generator().manual_seed(0)
    true = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = torch.cat([centre + torch.randn(50, 2, generator=generator) for centre in true])
    points = points[torch.randperm(150, generator=generator)]
    centres, deviation = k_means(points, 3)
    distance = torch.cdist(true, centres)
    assert (distance.min(dim=1).values < 0.5).all()
    assert distance.argmin(dim=1).unique().numel() == 3
    assert ((deviation - 1).abs() < 0.3).all()


def test_k_means_of_one_point_takes_the_deviation_of_all():
    points = torch.tensor([[0.0], [0.1], [9.0]])
    centres, deviation = k_means(points, 2)
    lonely = int(centres[:, 0].argmax())
    assert centres[:, 0].sort().values.tolist() == pytest.approx([0.05, 9.0])
    assert deviation[lonely, 0].item() == pytest.approx(points.std(correction=0).item())
    assert deviation[1 - lonely, 0].item() == pytest.approx(0.05, rel=1e-3)


def test_rank_0_sets_the_anchors_of_all_ranks(monkeypatch):
    sent = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: sent.append((tensor, source)))
    block = GraphConvolutionUnits(6, graphs=(2, 3)).train()
    for _ in range(2):
        block.initialise(torch.randn(2, 6, 9))
    wanted = [tensor for unit in block.units for tensor in (unit.anchors, unit.width)]
    assert len(sent) == 4
    assert all(tensor is parameter and source == 0 for (tensor, source), parameter in zip(sent, wanted, strict=True))


@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 2)], ids=str)
def test_commutes_with_permutations_of_the_positions(grid):
    assert permutation_gap(make(), random_input(2, 6, *grid)) < 1e-10


def test_samples_do_not_mix():
    block = make()
    x = random_input(3, 6, 3, 4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


def test_parameter_count():
    """512 channels: anchors and widths 2 * 46 * 512, W_g 4 * 512 * 256, (512 + 4 * 256) * 512 + 2 * 512 at the end."""
    count = 2 * 46 * 512 + 4 * 512 * 256 + 1536 * 512 + 1024
    assert sum(p.numel() for p in GraphConvolutionUnits(512).parameters()) == count
    assert sum(p.numel() for p in GraphConvolutionUnits(512, graph=False).parameters()) == count


@pytest.mark.parametrize("graph", [False, True])
def test_gradcheck(graph):
    block = randomise(GraphConvolutionUnits(4, graphs=(2, 3), graph_channels=3, graph=graph)).eval()
    assert torch.autograd.gradcheck(block, random_input(1, 4, 2, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_assignment_runs_in_float32_under_autocast(dtype):
    """The three products of the expanded square nearly cancel."""
    torch.manual_seed(0)
    block = GraphConvolutionUnits(16, graphs=(4,)).eval()
    x = 100 + torch.randn(1, 16, 32, 32)
    with torch.no_grad():
        block.units[0].anchors.copy_(x[0, :, 0, :4].T)
    regions = block.regions(x)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(block.regions(x), regions)
        assert block(x).isfinite().all()
        node = block.units[0].node_features(x.flatten(2), regions.flatten(2))
    torch.testing.assert_close(node, block.units[0].node_features(x.flatten(2), regions.flatten(2)))

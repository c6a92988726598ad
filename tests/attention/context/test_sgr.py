"""Symbolic graph reasoning against its definition, and the map back that says nothing about the content."""

import itertools

import pytest
import torch

from segvid.attention.context import SymbolicGraphReasoning
from tests import reference
from tests.reference import assert_same_with_gradients, conv_weights, permutation_gap, random_input, randomise

MAPPINGS = ["published", "bilinear"]
ADJACENCY = [[0.0, 2.0, 0.5], [2.0, 1.0, 0.0], [0.0, 0.25, 0.0]]  # not symmetric, one loop
EMBEDDINGS = [[0.5, -1.0], [0.25, 2.0], [-1.5, 0.0]]


def write_csv(path, rows):
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path):
    """A graph of 3 nodes with embeddings of 2 numbers."""
    adjacency = write_csv(tmp_path / "adjacency.csv", ADJACENCY)
    torch.save(torch.tensor(EMBEDDINGS), tmp_path / "embeddings.pt")
    return {"adjacency": adjacency, "embeddings": tmp_path / "embeddings.pt"}


def make(channels: int = 6, **options) -> SymbolicGraphReasoning:
    """Wide nodes: of a few channels, ReLU may leave nothing."""
    return randomise(SymbolicGraphReasoning(channels, **{"node_channels": 8} | options)).eval()


def expected(block, x, mapping, adjacency, embeddings):
    """Output, votes and map back."""
    compatibility = block.compatibility.weight
    if mapping == "published":
        compatibility = (compatibility[:, : -x.shape[1]], compatibility[:, -x.shape[1] :])
    return reference.symbolic_graph_reasoning(
        x,
        conv_weights(block.vote),
        block.to_node.weight,
        adjacency,
        embeddings,
        block.graph_conv.weight,
        compatibility,
        block.to_position.weight,
    )


def graph_of(nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The graph without files: everything linked to everything, one-hot embeddings."""
    return torch.ones(nodes, nodes, dtype=torch.float64), torch.eye(nodes, dtype=torch.float64)


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("options", [{"nodes": 4}, {"nodes": 2, "node_channels": 11}, {"nodes": 1}], ids=str)
@pytest.mark.parametrize("grid", [(5,), (2, 4), (1, 5), (5, 1), (2, 1, 3)], ids=str)
def test_equals_definition(grid, options, mapping):
    block = make(mapping=mapping, **options)
    block.adjacency = reference.normalised_adjacency(graph_of(options["nodes"])[0])  # in float64
    x = random_input(2, 6, *grid)
    y, _, _ = expected(block, x, mapping, *graph_of(options["nodes"]))
    assert (y - x).abs().max() > 1e-2
    assert_same_with_gradients(block(x), y, [x, *block.parameters()])


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_graph_of_the_files(files, mapping):
    block = make(mapping=mapping, **files)
    adjacency, embeddings = (torch.tensor(rows, dtype=torch.float64) for rows in (ADJACENCY, EMBEDDINGS))
    normalised = reference.normalised_adjacency(adjacency)
    torch.testing.assert_close(block.adjacency, normalised, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(block.embeddings, embeddings)
    block.adjacency = normalised
    x = random_input(2, 6, 2, 3)
    y, _, _ = expected(block, x, mapping, adjacency, embeddings)
    assert (y - x).abs().max() > 1e-2
    assert_same_with_gradients(block(x), y, [x, *block.parameters()])


def test_nodes_come_from_the_files_and_the_rest_is_filled_in(files):
    assert SymbolicGraphReasoning(6).vote.out_channels == 64
    both = SymbolicGraphReasoning(6, **files)
    assert both.vote.out_channels == 3
    graph = SymbolicGraphReasoning(6, adjacency=files["adjacency"], nodes=3)
    assert torch.equal(graph.embeddings, torch.eye(3))
    words = SymbolicGraphReasoning(6, embeddings=files["embeddings"])
    full = (torch.ones(3, 3) + torch.eye(3)) / 4
    torch.testing.assert_close(words.adjacency, full)
    assert words.embeddings.tolist() == EMBEDDINGS
    names = {name for name, _ in both.named_parameters()}
    assert not names & {"adjacency", "embeddings"}  # given, not learned
    assert {"adjacency", "embeddings"} <= set(both.state_dict())


def test_published_map_back_is_free_of_content():
    """Specification, 0.2.12b: 1 / M for every node at every position, so that all receive one and the same vector."""
    block = make(nodes=4)
    x = 3 * random_input(2, 6, 3, 4).detach()
    _, _, mapping = expected(block, x, "published", *graph_of(4))
    torch.testing.assert_close(mapping, torch.full((2, 4, 12), 0.25, dtype=torch.float64))
    tokens = x.flatten(2)
    torch.testing.assert_close(block.map_back(tokens, block.reason(tokens)), mapping.transpose(1, 2))
    added = (block(x) - x).flatten(2)
    assert added.abs().max() > 1e-2
    torch.testing.assert_close(added, added[:, :, :1].expand_as(added), rtol=1e-10, atol=1e-12)


def test_published_compatibility_learns_nothing():
    block = make(nodes=4)
    block(random_input(2, 6, 3, 4)).square().sum().backward()
    assert block.compatibility.weight.grad.abs().max() < 1e-12
    assert block.to_position.weight.grad.abs().max() > 1e-3


def test_bilinear_map_back_tells_positions_apart():
    block = make(nodes=4, mapping="bilinear")
    x = 3 * random_input(2, 6, 3, 4).detach()
    _, _, mapping = expected(block, x, "bilinear", *graph_of(4))
    torch.testing.assert_close(mapping.sum(dim=1), torch.ones(2, 12, dtype=torch.float64))
    assert (mapping - 0.25).abs().max() > 1e-2
    added = (block(x) - x).flatten(2)
    assert (added - added[:, :, :1]).abs().max() > 1e-2
    block(x).square().sum().backward()
    assert block.compatibility.weight.grad.abs().max() > 1e-4


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("grid", [(5,), (2, 3), (2, 1, 2)], ids=str)
def test_attention_map_is_the_map_back_times_the_votes(grid, mapping):
    """1 / N of the votes, as the nodes are means. Published: the same 1 / (M N) for everybody."""
    block = make(nodes=4, mapping=mapping)
    x = random_input(2, 6, *grid).detach()
    _, votes, back = expected(block, x, mapping, *graph_of(4))
    count = votes.shape[2]
    for i, position in enumerate(itertools.product(*map(range, grid))):
        row = torch.stack([(back[:, :, i] * votes[:, :, j]).sum(dim=1) / count for j in range(count)], dim=1)
        shown = block.attention_map(x, position)
        torch.testing.assert_close(shown, row.reshape(2, *grid), rtol=1e-6, atol=1e-9)  # the adjacency was in float32
        if mapping == "published":
            torch.testing.assert_close(shown, torch.full_like(shown, 1 / (4 * count)))


def test_regions_are_the_votes():
    block = make(nodes=4)
    x = random_input(2, 6, 3, 4).detach()
    _, votes, _ = expected(block, x, "published", *graph_of(4))
    regions = block.regions(x)
    torch.testing.assert_close(regions, votes.reshape(2, 4, 3, 4), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(regions.sum(dim=1), torch.ones(2, 3, 4, dtype=torch.float64))


def test_nodes_are_means_over_the_positions():
    """A map tiled to twice its size votes for the same nodes."""
    block = make(nodes=4)
    x = random_input(1, 6, 3, 4).detach()
    tiled = torch.cat([x, x], dim=3)
    torch.testing.assert_close(block(tiled)[..., :4], block(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 2)], ids=str)
def test_commutes_with_permutations_of_the_positions(grid, mapping):
    assert permutation_gap(make(nodes=4, mapping=mapping), random_input(2, 6, *grid)) < 1e-10


def test_samples_do_not_mix():
    block = make(nodes=4, mapping="bilinear")
    x = random_input(3, 6, 3, 4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


def test_parameter_count(files):
    """512 channels, 64 nodes of 256: W_a, W_ps, W_g of 256 + 64, w of 256 + 512, W_sp; bilinear: W of 512 * 256."""
    count = 512 * 64 + 64 + 512 * 256 + 320 * 256 + 768 + 256 * 512
    assert sum(p.numel() for p in SymbolicGraphReasoning(512).parameters()) == count
    bilinear = SymbolicGraphReasoning(512, mapping="bilinear")
    assert sum(p.numel() for p in bilinear.parameters()) == count - 768 + 512 * 256
    named = SymbolicGraphReasoning(512, node_channels=128, **files)
    assert sum(p.numel() for p in named.parameters()) == 512 * 3 + 3 + 512 * 128 + 130 * 128 + 640 + 128 * 512


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_gradcheck(mapping):
    assert torch.autograd.gradcheck(make(4, nodes=3, mapping=mapping), random_input(1, 4, 2, 3))


def test_unknown_mappings_are_refused():
    with pytest.raises(ValueError, match="mapping"):
        SymbolicGraphReasoning(6, mapping="symmetric")


def test_files_that_do_not_fit_are_refused(files, tmp_path):
    four = write_csv(tmp_path / "four.csv", [[0, 1]] * 4)
    with pytest.raises(ValueError, match=r"four\.csv is 4 x 2: an adjacency matrix is square"):
        SymbolicGraphReasoning(6, adjacency=four)
    with pytest.raises(ValueError, match=r"four\.csv has 4 rows, but the graph has 3 nodes"):
        SymbolicGraphReasoning(6, adjacency=files["adjacency"], embeddings=four)
    with pytest.raises(ValueError, match=r"adjacency\.csv has 3 rows, but the graph has 5 nodes"):
        SymbolicGraphReasoning(6, adjacency=files["adjacency"], nodes=5)
    with pytest.raises(ValueError, match=r"row 2 has no positive sum"):
        SymbolicGraphReasoning(6, adjacency=write_csv(tmp_path / "negative.csv", [[0, 1], [-1, 0]]))


@pytest.mark.parametrize("text", ["a,b\nc,d\n", "1,2\n3\n", "", "1,nan\n1,1\n", "\xff\xfe"], ids=repr)
@pytest.mark.parametrize("option", ["adjacency", "embeddings"])
def test_files_that_hold_no_matrix_are_refused(tmp_path, option, text):
    path = tmp_path / "matrix.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"matrix\.csv is no matrix of numbers"):
        SymbolicGraphReasoning(6, **{option: path})


@pytest.mark.parametrize(
    "content", [{"a": 1}, torch.zeros(3), torch.zeros(1, 3, 3), b"text"], ids=["dict", "1", "3", "raw"]
)
def test_tensor_files_that_hold_no_matrix_are_refused(tmp_path, content):
    path = tmp_path / "matrix.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"matrix\.pt is no matrix of numbers"):
        SymbolicGraphReasoning(6, adjacency=path)


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.csv does not exist"):
        SymbolicGraphReasoning(6, embeddings=tmp_path / "absent.csv")


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position):
    with pytest.raises(ValueError, match="grid"):
        SymbolicGraphReasoning(8).attention_map(torch.zeros(1, 8, 3, 5), position)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_positions_far_below_the_others_keep_a_row(mapping):
    """Nothing is left of them in float32 after the softmax over the positions; their row still sums to 1."""
    torch.manual_seed(0)
    block = SymbolicGraphReasoning(8, nodes=4, mapping=mapping).eval()
    x = torch.randn(1, 8, 3, 4)
    x[..., 0, 0] *= 1e4
    tokens = x.flatten(2)
    mapping_back = block.map_back(tokens, block.reason(tokens))
    torch.testing.assert_close(mapping_back.sum(dim=2), torch.ones(1, 12))
    assert block(x).isfinite().all()


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast_at_large_activations(dtype, mapping):
    torch.manual_seed(0)
    block = SymbolicGraphReasoning(16, nodes=4, mapping=mapping).eval()
    with torch.autocast("cpu", dtype=dtype):
        assert block(100 * (3 + torch.randn(1, 16, 32, 32))).isfinite().all()

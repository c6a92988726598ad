"""LatentGNN against its definition: the way in, the messages between the latent nodes, the way back."""

import itertools

import pytest
import torch

from segvid.attention.context import LatentGNN
from tests import reference
from tests.reference import (
    assert_same_with_gradients,
    conv_norm_weights,
    norm_weights,
    permutation_gap,
    random_input,
    randomise,
)


def make(**options) -> LatentGNN:
    """Most Psi above 0: of a few nodes, ReLU may leave nothing."""
    block = randomise(LatentGNN(8, **{"latent": (3, 4), "reduction": 2} | options)).eval()
    with torch.no_grad():
        for name, parameter in block.kernels.named_parameters():
            if name.endswith("bias"):
                parameter.abs_()
    return block


def conv_norm(layer: torch.nn.Sequential) -> tuple:
    """Without a ReLU."""
    conv, norm = layer
    assert conv.bias is None
    return conv.weight, norm_weights(norm)


def expected(block: LatentGNN, x: torch.Tensor, symmetric: bool = False, passing: bool = True) -> tuple:
    """Output, (B, N, N) weights of each kernel, its two Psi."""
    kernels = []
    for kernel in block.kernels:
        kernels.append((conv_norm_weights(kernel.psi_in), None if symmetric else conv_norm_weights(kernel.psi_back)))
    a, b = conv_norm(block.a), None if symmetric else conv_norm(block.b)
    return reference.latent_gnn(x, a, b, kernels, conv_norm(block.out), block.gamma, passing)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("passing", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("grid", [(7,), (3, 4), (1, 6), (6, 1), (2, 3, 2)], ids=str)
def test_equals_definition(grid, symmetric, passing, training):
    block = make(symmetric=symmetric, passing=passing).train(training)
    x = random_input(2, 8, *grid)
    y, _, _ = expected(block, x, symmetric, passing)
    assert (y - x).abs().max() > 1e-2
    assert_same_with_gradients(block(x), y, [x, *block.parameters()])


@pytest.mark.parametrize("options", [{"latent": (5,)}, {"latent": (1, 2, 3)}, {"reduction": 4}], ids=str)
def test_any_number_of_kernels(options):
    block = make(**options)
    x = random_input(2, 8, 3, 3)
    assert_same_with_gradients(block(x), expected(block, x)[0], [x, *block.parameters()])


def test_without_passing_every_node_keeps_its_own():
    """A is the identity: the weights are Psi_back^T Psi_in, symmetric if there is one Psi. Messages change that."""
    x = random_input(2, 8, 3, 4).detach()
    for symmetric in (False, True):
        quiet = make(symmetric=symmetric, passing=False)
        _, weights, pairs = expected(quiet, x, symmetric, False)
        for weight, (into, back) in zip(weights, pairs, strict=True):
            torch.testing.assert_close(weight, back.transpose(1, 2) @ into)
            assert torch.allclose(weight, weight.transpose(1, 2)) == symmetric
        talking = make(symmetric=symmetric)
        assert talking.load_state_dict(quiet.state_dict())
        assert (talking(x) - quiet(x)).abs().max() > 1e-2


@pytest.mark.parametrize("symmetric", [False, True])
def test_norms_of_features_weights_and_messages(symmetric):
    """Euclidean: features over channels, Psi on the way in over positions, back over nodes. Rows of A sum to 1."""
    block = make(symmetric=symmetric)
    a, b = block.features(random_input(2, 8, 3, 5).detach())
    for features in (a, b):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(2, 15, dtype=torch.float64))
    assert torch.equal(a, b) == symmetric
    for kernel in block.kernels:
        into, back = kernel.psi(a, b)
        for weights, axis in ((back, 1), (into, 1 if symmetric else 2)):
            norms = weights.norm(dim=axis)
            assert ((norms - 1).abs().lt(1e-9) | norms.eq(0)).all()  # where ReLU left anything
            assert norms.any()
        adjacency = kernel.adjacency(into @ a.transpose(1, 2))
        torch.testing.assert_close(adjacency.sum(dim=2), torch.ones(adjacency.shape[:2], dtype=torch.float64))


@pytest.mark.parametrize("passing", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("grid", [(5,), (2, 4), (2, 1, 3)], ids=str)
def test_attention_map_is_the_mean_row_of_the_kernels(grid, symmetric, passing):
    block = make(symmetric=symmetric, passing=passing)
    x = random_input(2, 8, *grid).detach()
    _, weights, _ = expected(block, x, symmetric, passing)
    for i, position in enumerate(itertools.product(*map(range, grid))):
        row = sum(weight[:, i] for weight in weights) / len(weights)
        torch.testing.assert_close(block.attention_map(x, position), row.reshape(2, *grid), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
def test_regions_are_the_weights_on_the_way_back(symmetric):
    block = make(symmetric=symmetric)
    x = random_input(2, 8, 3, 4).detach()
    _, _, pairs = expected(block, x, symmetric)
    back = torch.cat([pair[1] for pair in pairs], dim=1)
    torch.testing.assert_close(block.regions(x), back.reshape(2, 7, 3, 4), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_starts_as_the_identity(symmetric, training):
    x = random_input(2, 8, 5, 7).float()
    assert torch.equal(LatentGNN(8, symmetric=symmetric).train(training)(x), x)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 2)], ids=str)
def test_commutes_with_permutations_of_the_positions(grid, symmetric):
    assert permutation_gap(make(symmetric=symmetric), random_input(2, 8, *grid)) < 1e-10


def test_samples_do_not_mix():
    block = make()
    x = random_input(3, 8, 3, 4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"reduction": 8}, 578_849),
        ({"reduction": 8, "passing": False}, 578_849),
        # one feature and one Psi in each kernel less
        ({"reduction": 8, "symmetric": True}, 578_849 - (1024 * 128 + 256) - 2 * (128 * 100 + 200)),
        ({"latent": (64,)}, 2 * (1024 * 256 + 512) + 2 * (256 * 64 + 128) + 256 * 1024 + 2048 + 1),
    ],
    ids=str,
)
def test_parameter_count(options, count):
    """The official module has 578,849 at 1024 channels, two kernels of 100 nodes and reduction 8."""
    assert sum(p.numel() for p in LatentGNN(1024, **options).parameters()) == count


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradcheck(symmetric):
    assert torch.autograd.gradcheck(make(symmetric=symmetric), random_input(1, 8, 2, 3))


def test_nodes_that_nothing_reaches_leave_the_gradient_finite():
    """A Psi of zeros stays zeros: no division by its length."""
    block = LatentGNN(8, latent=(3,)).train()
    torch.nn.init.ones_(block.gamma)
    torch.nn.init.constant_(block.kernels[0].psi_in[1].bias, -100.0)
    y = block(torch.randn(2, 8, 3, 4))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position):
    with pytest.raises(ValueError, match="grid"):
        LatentGNN(8).attention_map(torch.zeros(1, 8, 3, 5), position)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_under_autocast_at_large_activations(dtype):
    torch.manual_seed(0)
    block = LatentGNN(16, latent=(8,)).eval()
    torch.nn.init.ones_(block.gamma)
    with torch.autocast("cpu", dtype=dtype):
        assert block(100 * torch.randn(1, 16, 32, 32)).isfinite().all()

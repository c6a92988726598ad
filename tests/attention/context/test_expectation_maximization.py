"""Expectation-maximisation attention against the EM loop written out, and the moving average of its bases."""

import itertools

import pytest
import torch
from torch import multiprocessing

from segvid.attention.context import ExpectationMaximizationAttention
from tests import reference
from tests.reference import (
    assert_same_with_gradients,
    conv_weights,
    norm_weights,
    permutation_gap,
    random_input,
    randomise,
)


def make(**options) -> ExpectationMaximizationAttention:
    torch.manual_seed(0)
    return randomise(ExpectationMaximizationAttention(6, bases=4, **options))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("em_grad", [False, True])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("grid", [(3, 4), (5, 1), (2, 2, 3)], ids=str)
def test_equals_definition(grid, iterations, em_grad, training):
    block = make(iterations=iterations, em_grad=em_grad).train(training)
    x = random_input(2, 6, *grid)
    expected = reference.expectation_maximization_attention(
        x,
        conv_weights(block.conv1),
        conv_weights(block.conv2),
        norm_weights(block.norm),
        block.bases[0].clone(),  # before the forward moves them
        iterations,
        em_grad,
    )
    learned = [p for p in block.parameters() if p.requires_grad]
    assert_same_with_gradients(block(x), expected, [x, *learned])


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_em_equals_definition_and_keeps_its_norms(iterations):
    """z: a softmax over the bases, not over the positions. mu: length 1 over the channels."""
    block = make(iterations=iterations)
    tokens = random_input(2, 6, 10).detach()
    mu, z = block.expectation_maximization(tokens)
    expected_mu, expected_z = reference.expectation_maximization(tokens, block.bases[0], iterations)
    torch.testing.assert_close(mu, expected_mu, rtol=0, atol=1e-10)
    torch.testing.assert_close(z, expected_z, rtol=0, atol=1e-10)
    torch.testing.assert_close(z.sum(dim=2), torch.ones(2, 10, dtype=torch.float64))
    torch.testing.assert_close(mu.norm(dim=1), torch.ones(2, 4, dtype=torch.float64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("grid", [(7,), (3, 4), (1, 5), (5, 1), (2, 2, 3)], ids=str)
def test_learned_bases_equal_definition(grid, iterations, training):
    """Their gradient comes from the first E step alone."""
    block = make(iterations=iterations, em_grad=True, learned_bases=True).train(training)
    x = random_input(2, 6, *grid)
    expected = reference.expectation_maximization_attention(
        x,
        conv_weights(block.conv1),
        conv_weights(block.conv2),
        norm_weights(block.norm),
        block.bases[0],
        iterations,
        em_grad=True,
    )
    assert block.bases in set(block.parameters())
    assert_same_with_gradients(block(x), expected, [x, *block.parameters()])


def test_learned_bases_are_not_moved():
    block = make(em_grad=True, learned_bases=True).train()
    assert "bases" not in dict(block.named_buffers())
    before = block.bases.detach().clone()
    block(random_input(2, 6, 3, 4)).square().sum().backward()
    assert torch.equal(block.bases, before)
    assert block.bases.grad.abs().max() > 1e-6
    torch.optim.SGD(block.parameters(), lr=0.1).step()
    assert not torch.equal(block.bases, before)


def test_learned_bases_need_a_gradient():
    with pytest.raises(ValueError, match="learned_bases needs em_grad"):
        ExpectationMaximizationAttention(6, learned_bases=True)


@pytest.mark.parametrize("learned_bases", [False, True])
@pytest.mark.parametrize("grid", [(5,), (2, 4), (2, 1, 3)], ids=str)
def test_attention_map_and_regions_are_those_of_the_last_e_step(grid, learned_bases):
    """Weights of the reconstruction before the bases are normalised: sum_k z_ik z_jk / sum_n z_nk, rows of sum 1."""
    block = make(em_grad=True, learned_bases=learned_bases).eval()
    x = random_input(2, 6, *grid).detach()
    tokens = reference.pointwise(x, *conv_weights(block.conv1)).flatten(2)
    _, z = reference.expectation_maximization(tokens, block.bases[0], block.iterations)
    regions = block.regions(x)
    torch.testing.assert_close(regions, z.transpose(1, 2).reshape(2, 4, *grid), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(regions.sum(dim=1), torch.ones(2, *grid, dtype=torch.float64))
    for i, position in enumerate(itertools.product(*map(range, grid))):
        row = sum(z[:, i, k, None] * z[:, :, k] / (1e-6 + z[:, :, k].sum(dim=1, keepdim=True)) for k in range(4))
        shown = block.attention_map(x, position)
        torch.testing.assert_close(shown, row.reshape(2, *grid), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(shown.flatten(1).sum(dim=1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position):
    with pytest.raises(ValueError, match="grid"):
        ExpectationMaximizationAttention(6).attention_map(torch.zeros(1, 6, 3, 5), position)


def test_defaults_are_the_papers():
    block = ExpectationMaximizationAttention(8)
    assert not block.learned_bases
    assert block.bases.shape == (1, 8, 64)
    assert (block.iterations, block.momentum, block.em_grad) == (3, 0.9, False)


def test_first_convolution_learns_only_with_em_grad():
    """Official code: EM runs without gradient, so conv1 keeps its random values for ever."""
    x = random_input(2, 6, 3, 4)
    frozen = make().train()
    frozen(x).sum().backward()
    assert frozen.conv1.weight.grad is None
    assert frozen.conv1.bias.grad is None
    assert not any(p.requires_grad for p in frozen.conv1.parameters())  # else DDP waits for it
    assert {name for name, p in frozen.named_parameters() if p.grad is not None} == {
        "conv2.weight",
        "norm.weight",
        "norm.bias",
    }
    learning = make(em_grad=True).train()
    learning(x).sum().backward()
    assert all(p.grad.abs().max() > 1e-8 for p in learning.parameters())


def test_input_gradient_passes_through_the_skip_alone():
    """Without em_grad the reconstruction is a constant: the gradient at x is that of the last ReLU."""
    block = make().eval()
    x = random_input(2, 6, 3, 4)
    y = block(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, (y > 0).double())


def test_bases_are_a_buffer_of_length_one():
    block = ExpectationMaximizationAttention(6, bases=4)
    assert "bases" in dict(block.named_buffers())
    assert "bases" in block.state_dict()
    torch.testing.assert_close(block.bases.norm(dim=1), torch.ones(1, 4))


@pytest.mark.parametrize("momentum", [0.9, 0.6])
def test_moving_average_is_exact_and_not_normalised_again(momentum):
    """bases = momentum * bases + (1 - momentum) * mean over the batch of the fitted bases; the length shrinks."""
    block = make(momentum=momentum).train()
    x = random_input(3, 6, 3, 4).detach()
    before = block.bases.clone()
    mu, _ = reference.expectation_maximization(
        reference.pointwise(x, *conv_weights(block.conv1)).flatten(2), before[0], block.iterations
    )
    block(x)
    expected = momentum * before + (1 - momentum) * mu.mean(dim=0, keepdim=True)
    torch.testing.assert_close(block.bases, expected, rtol=0, atol=1e-14)
    assert (block.bases.norm(dim=1) < 0.999).all()
    assert not block.bases.requires_grad


def test_bases_rest_in_eval():
    block = make().eval()
    before = block.bases.clone()
    block(random_input(3, 6, 3, 4))
    assert torch.equal(block.bases, before)


def test_backward_after_the_bases_have_moved():
    """The buffer is edited in place between forward and backward: autograd must not have kept it."""
    block = make(em_grad=True, iterations=1).train()
    x = random_input(1, 6, 3, 4)
    loss = block(x).sum() + block(x).sum()
    loss.backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"em_grad": True, "learned_bases": True}], ids=str)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grid", [(3, 5), (2, 3, 4)], ids=str)
def test_commutes_with_permutations_of_the_positions(grid, training, options):
    # momentum 1: the bases stay where they are between the two calls
    block = make(momentum=1.0, **options).train(training)
    assert permutation_gap(block, random_input(2, 6, *grid)) < 1e-10


def test_samples_do_not_mix_in_eval():
    block = make().eval()
    x = random_input(3, 6, 3, 4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


def test_parameter_count():
    """512 * 512 + 512 first convolution, 512 * 512 second, 2 * 512 batch norm."""
    assert sum(p.numel() for p in ExpectationMaximizationAttention(512).parameters()) == 525_824
    learned = ExpectationMaximizationAttention(512, em_grad=True, learned_bases=True)
    assert sum(p.numel() for p in learned.parameters()) == 525_824 + 512 * 64


@pytest.mark.parametrize("learned_bases", [False, True])
def test_gradcheck_with_em_grad(learned_bases):
    """Only with em_grad: otherwise the gradient leaves EM out by design."""
    block = make(em_grad=True, learned_bases=learned_bases).eval()
    assert torch.autograd.gradcheck(block, random_input(1, 6, 3, 2))


def test_at_least_one_iteration():
    with pytest.raises(ValueError, match="iterations"):
        ExpectationMaximizationAttention(6, iterations=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_em_runs_in_float32_under_autocast(dtype):
    torch.manual_seed(0)
    block = ExpectationMaximizationAttention(16, bases=8)
    tokens = 50 * torch.randn(2, 16, 400)
    mu, z = block.expectation_maximization(tokens)
    with torch.autocast("cpu", dtype=dtype):
        low_mu, low_z = block.expectation_maximization(tokens)
        assert block(50 * torch.randn(2, 16, 20, 20)).isfinite().all()
    assert torch.equal(low_mu, mu)
    assert torch.equal(low_z, z)
    assert block.bases.dtype == torch.float32


def train_rank(rank: int, folder: str, x: torch.Tensor) -> None:
    """Two training steps of one of two ranks on its half of x (steps, samples, C, H, W); stores its bases."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    block = make().train()
    for step in x:
        block(step.chunk(2)[rank])
    torch.save(block.bases, f"{folder}/bases{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_hold_the_bases_of_one_process_on_the_joined_batch(tmp_path, monkeypatch):
    """A rank-local moving average would leave DDP to broadcast rank 0's bases."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    x = random_input(2, 4, 6, 3, 4).detach()
    multiprocessing.spawn(train_rank, args=(str(tmp_path), x), nprocs=2)
    bases = [torch.load(tmp_path / f"bases{rank}.pt") for rank in range(2)]
    block = make().train()
    for step in x:
        block(step)
    assert torch.equal(bases[0], bases[1])
    torch.testing.assert_close(bases[0], block.bases, rtol=0, atol=1e-14)

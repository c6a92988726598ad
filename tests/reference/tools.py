"""Tools that the formula tests share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64 with every parameter and running statistic random and away from 0: nothing stays hidden.

    Zero-initialised gammas and batch norms would make a wrong mechanism look right.
    """
    generator = torch.Generator().manual_seed(seed)

    def away_from_zero(like: Tensor) -> Tensor:
        sign = torch.randint(2, like.shape, generator=generator) * 2.0 - 1
        return sign * (0.3 + torch.rand(like.shape, generator=generator))

    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.copy_(away_from_zero(parameter) / fan_in**0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * away_from_zero(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module


def random_input(*shape: int, seed: int = 1) -> Tensor:
    """A float64 input that wants its gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def conv_weights(conv: nn.Module) -> list[Tensor]:
    """`(weight, bias)` or `(weight,)` of a convolution, as the references take it."""
    return list(conv.parameters())


def norm_weights(norm: nn.Module) -> list[Tensor | None]:
    """`(weight, bias, mean, variance)` of a batch norm in its present mode, the running statistics copied."""
    if norm.training:
        return [norm.weight, norm.bias, None, None]
    return [norm.weight, norm.bias, norm.running_mean.clone(), norm.running_var.clone()]


def assert_same_with_gradients(actual: Tensor, expected: Tensor, inputs: Sequence[Tensor]) -> None:
    """Equal values, and equal gradients of a random projection of them with respect to each of `inputs`."""
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn(actual.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    actual_gradients = torch.autograd.grad(actual, inputs, direction)
    expected_gradients = torch.autograd.grad(expected, inputs, direction)
    for actual_gradient, expected_gradient in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual_gradient, expected_gradient, rtol=1e-9, atol=1e-9)


def permute_positions(x: Tensor, order: Tensor) -> Tensor:
    """The same pixels in another order on the same grid."""
    return x.flatten(2)[:, :, order].reshape(x.shape)


def permutation_gap(module: nn.Module, x: Tensor, seed: int = 3) -> float:
    """How far `module` is from commuting with one random permutation of the positions of x."""
    order = torch.randperm(x[0, 0].numel(), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        permuted_after = module(x)
        permuted_after = permute_positions(permuted_after, order)
        return (module(permute_positions(x, order)) - permuted_after).abs().max().item()


def conv_norm_weights(layer: nn.Sequential) -> tuple[Tensor, list[Tensor | None]]:
    """`(weight, norm)` of convolution, batch norm, ReLU."""
    conv, norm, relu = layer
    assert conv.bias is None
    assert isinstance(relu, nn.ReLU)
    return conv.weight, norm_weights(norm)


def reached(y: Tensor, x: Tensor, position: tuple[int, int]) -> Tensor:
    """Which positions (H, W) of the one image x the output y at `position` depends on, by its gradient."""
    (gradient,) = torch.autograd.grad(y[0, :, position[0], position[1]].sum(), x, retain_graph=True)
    return gradient[0].abs().sum(dim=0) > 0

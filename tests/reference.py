"""Naive float64 versions of the mechanisms: definitions spelled out as loops, to hold the fast ones against.

Nothing here is shared with `segvid`. Weights are arguments: a convolution is `(weight, bias)` or `(weight,)`, a batch
norm `(weight, bias, mean, variance)`, where mean and variance None stand for the batch's own (training). At the end
are the few tools that the formula tests share.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Convolution = Sequence[Tensor]
Norm = Sequence[Tensor | None]


# Layers


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution: the same linear map at every position, (B, C, *grid) -> (B, O, *grid)."""
    y = torch.einsum("oc,bcn->bon", weight.flatten(1), x.flatten(2))
    if bias is not None:
        y = y + bias[None, :, None]
    return y.reshape(x.shape[0], -1, *x.shape[2:])


def conv3x3(x: Tensor, weight: Tensor, rate: int = 1) -> Tensor:
    """3x3 convolution with dilation `rate`, zeros outside the map: tap (i, j) reads (i - 1, j - 1) * rate away."""
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, channels, height + 2 * rate, width + 2 * rate)
    padded[:, :, rate : rate + height, rate : rate + width] = x
    total = x.new_zeros(())
    for i in range(3):
        for j in range(3):
            seen = padded[:, :, i * rate : i * rate + height, j * rate : j * rate + width]
            total = total + pointwise(seen, weight[:, :, i, j])
    return total


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, variance: Tensor | None) -> Tensor:
    """Ioffe and Szegedy 2015, algorithm 1: (x - mean) / sqrt(variance + 1e-5) * weight + bias for each channel."""
    channels = []
    for c in range(x.shape[1]):
        values = x[:, c]
        centre = values.mean() if mean is None else mean[c]
        spread = ((values - values.mean()) ** 2).mean() if variance is None else variance[c]
        channels.append((values - centre) / torch.sqrt(spread + 1e-5) * weight[c] + bias[c])
    return torch.stack(channels, dim=1)


def conv_bn_relu(x: Tensor, weight: Tensor, norm: Norm, rate: int = 1) -> Tensor:
    """1x1 or 3x3 convolution without bias, batch norm, ReLU."""
    y = pointwise(x, weight) if weight.shape[-1] == 1 else conv3x3(x, weight, rate)
    return batch_norm(y, *norm).clamp(min=0)


def adaptive_avg_pool2d(x: Tensor, bins: int) -> Tensor:
    """Cell i covers the positions floor(i * size / bins) to ceil((i + 1) * size / bins), the last one excluded."""

    def cell(i: int, size: int) -> slice:
        return slice(math.floor(i * size / bins), math.ceil((i + 1) * size / bins))

    height, width = x.shape[2:]
    rows = []
    for i in range(bins):
        means = [x[:, :, cell(i, height), cell(j, width)].mean(dim=(2, 3)) for j in range(bins)]
        rows.append(torch.stack(means, dim=-1))
    return torch.stack(rows, dim=-2)


def resize_bilinear(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation between pixel centres (align_corners=False), the border repeated."""

    def neighbours(i: int, size: int, new_size: int) -> tuple[int, int, float]:
        position = max((i + 0.5) * size / new_size - 0.5, 0.0)
        low = min(math.floor(position), size - 1)
        return low, min(low + 1, size - 1), position - low

    rows = []
    for i in range(height):
        top, bottom, down = neighbours(i, x.shape[2], height)
        line = []
        for j in range(width):
            left, right, across = neighbours(j, x.shape[3], width)
            upper = (1 - across) * x[:, :, top, left] + across * x[:, :, top, right]
            lower = (1 - across) * x[:, :, bottom, left] + across * x[:, :, bottom, right]
            line.append((1 - down) * upper + down * lower)
        rows.append(torch.stack(line, dim=-1))
    return torch.stack(rows, dim=-2)


# Mechanisms


def attend(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float = 1.0) -> Tensor:
    """Softmax attention of one query (d): `sum_j exp(scale q.k_j) v_j / sum_j exp(scale q.k_j)`."""
    weights = [torch.exp(scale * (query * key).sum()) for key in keys]
    total = sum(weights)
    return sum(weight / total * value for weight, value in zip(weights, values, strict=True))


def attend_everywhere(query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0) -> Tensor:
    """Every position attends to all: (B, d, *grid), (B, d, *grid), (B, c, *grid) -> (B, c, *grid)."""
    samples = []
    for q, k, v in zip(query.flatten(2), key.flatten(2), value.flatten(2), strict=True):
        samples.append(torch.stack([attend(q_i, k.unbind(1), v.unbind(1), scale) for q_i in q.unbind(1)], dim=1))
    return torch.stack(samples).reshape(value.shape)


def non_local(
    x: Tensor, query: Convolution, key: Convolution, value: Convolution, out: Convolution, norm: Norm, scaled: bool
) -> Tensor:
    """Non-local block, Wang et al., CVPR 2018, section 3.2 (embedded Gaussian) and 3.3: z = BN(W_z y) + x."""
    scale = 1 / math.sqrt(query[0].shape[0]) if scaled else 1.0
    y = attend_everywhere(pointwise(x, *query), pointwise(x, *key), pointwise(x, *value), scale)
    return batch_norm(pointwise(y, *out), *norm) + x


def position_attention(x: Tensor, query: Convolution, key: Convolution, value: Convolution, gamma: Tensor) -> Tensor:
    """Position attention module, Fu et al. (DANet), CVPR 2019, section 3.2: no scaling, no output convolution."""
    return gamma * attend_everywhere(pointwise(x, *query), pointwise(x, *key), pointwise(x, *value)) + x


def channel_attention(x: Tensor, gamma: Tensor, affinity: str) -> Tensor:
    """Channel attention module, Fu et al. (DANet), CVPR 2019, section 3.3.

    "plus" is the paper's softmax(E), "minus" the released code's softmax(max(E) - E).
    """
    samples = []
    for maps in x.flatten(2):
        channels = []
        for own in maps:
            energies = [(own * other).sum() for other in maps]
            if affinity == "minus":
                weights = [torch.exp(max(energies) - energy) for energy in energies]
            else:
                weights = [torch.exp(energy) for energy in energies]
            total = sum(weights)
            context = sum(weight / total * other for weight, other in zip(weights, maps, strict=True))
            channels.append(gamma * context + own)
        samples.append(torch.stack(channels))
    return torch.stack(samples).reshape(x.shape)


def criss_cross_attention(
    x: Tensor, query: Convolution, key: Convolution, value: Convolution, gamma: Tensor, recurrence: int
) -> Tensor:
    """Criss-cross attention, Huang et al. (CCNet), ICCV 2019, sections 3.2 and 3.3.

    Dense attention masked to the H + W - 1 positions on the row or the column of each position, the module applied
    `recurrence` times with the same weights.
    """
    height, width = x.shape[2:]
    grid = [(row, column) for row in range(height) for column in range(width)]
    for _ in range(recurrence):
        q, k, v = pointwise(x, *query), pointwise(x, *key), pointwise(x, *value)
        samples = []
        for b in range(x.shape[0]):
            contexts = []
            for row, column in grid:
                cross = [(r, c) for r, c in grid if r == row or c == column]
                assert len(cross) == height + width - 1
                contexts.append(
                    attend(q[b, :, row, column], [k[b, :, *at] for at in cross], [v[b, :, *at] for at in cross])
                )
            samples.append(torch.stack(contexts, dim=1))
        x = gamma * torch.stack(samples).reshape(x.shape) + x
    return x


def expectation_maximization(tokens: Tensor, bases: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """EM iterations, Li et al. (EMANet), ICCV 2019, section 3.2: (B, C, N), (C, K) -> mu (B, C, K), z (B, N, K)."""
    all_mu, all_z = [], []
    for x in tokens:
        mu, z = bases, []
        for _ in range(iterations):
            z = []
            for x_n in x.unbind(1):  # E step: responsibilities of the K bases for one position
                likelihoods = [torch.exp((x_n * mu_k).sum()) for mu_k in mu.unbind(1)]
                z.append([likelihood / sum(likelihoods) for likelihood in likelihoods])
            columns = []
            for k in range(bases.shape[1]):  # M step: weighted mean of the positions, then length 1
                total = sum(z_n[k] for z_n in z)
                mu_k = sum(z_n[k] / (1e-6 + total) * x_n for z_n, x_n in zip(z, x.unbind(1), strict=True))
                columns.append(mu_k / (1e-6 + torch.sqrt((mu_k**2).sum())))
            mu = torch.stack(columns, dim=1)
        all_mu.append(mu)
        all_z.append(torch.stack([torch.stack(z_n) for z_n in z]))
    return torch.stack(all_mu), torch.stack(all_z)


def expectation_maximization_attention(
    x: Tensor, conv1: Convolution, conv2: Convolution, norm: Norm, bases: Tensor, iterations: int, em_grad: bool
) -> Tensor:
    """EMA unit, Li et al. (EMANet), ICCV 2019, sections 3.2 and 3.4: the reconstruction is mu z^T.

    mu comes from the last M step and z from the E step before it. Both are constants to the gradient in the official
    code (`em_grad` False).
    """
    mu, z = expectation_maximization(pointwise(x, *conv1).flatten(2), bases, iterations)
    if not em_grad:
        mu, z = mu.detach(), z.detach()
    rebuilt = torch.stack([mu_b @ z_b.T for mu_b, z_b in zip(mu, z, strict=True)]).reshape(x.shape)
    return (batch_norm(pointwise(rebuilt.clamp(min=0), *conv2), *norm) + x).clamp(min=0)


def pyramid_pooling(x: Tensor, bins: Sequence[int], weights: Sequence[Tensor], norms: Sequence[Norm]) -> Tensor:
    """Pyramid pooling module, Zhao et al. (PSPNet), CVPR 2017, section 3.2: x first, then a map for each bin size."""
    maps = [x]
    for size, weight, norm in zip(bins, weights, norms, strict=True):
        pooled = conv_bn_relu(adaptive_avg_pool2d(x, size), weight, norm)
        maps.append(resize_bilinear(pooled, *x.shape[2:]))
    return torch.cat(maps, dim=1)


def atrous_spatial_pyramid_pooling(
    x: Tensor, rates: Sequence[int], weights: Sequence[Tensor], norms: Sequence[Norm]
) -> Tensor:
    """ASPP, Chen et al. (DeepLabV3), 2017, section 3.3.

    `weights` and `norms` in the order of the concatenation: image pooling, 1x1, 3x3 for each rate, projection.
    """
    height, width = x.shape[2:]
    image = conv_bn_relu(x.mean(dim=(2, 3), keepdim=True), weights[0], norms[0])
    maps = [image.repeat(1, 1, height, width), conv_bn_relu(x, weights[1], norms[1])]
    for rate, weight, norm in zip(rates, weights[2:-1], norms[2:-1], strict=True):
        maps.append(conv_bn_relu(x, weight, norm, rate))
    return conv_bn_relu(torch.cat(maps, dim=1), weights[-1], norms[-1])


# Tools of the formula tests


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

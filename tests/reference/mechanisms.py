"""The mechanisms of the first release: non-local, DANet, CCNet, EMANet, PSPNet and DeepLab."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.layers import (
    Convolution,
    Norm,
    adaptive_avg_pool2d,
    batch_norm,
    conv_bn_relu,
    pointwise,
    resize_bilinear,
)


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

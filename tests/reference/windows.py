"""Mechanisms whose weights belong to the places of a window or to distances: DGMN, LR-Net, CARAFE, bilateral filter.

One position after the other. A convolution is `(weight, bias)` or `(weight,)`.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.layers import Convolution, Norm, batch_norm, conv3x3, pointwise


def softmax(logits: Sequence[Tensor]) -> list[Tensor]:
    """exp(a_k) / sum exp(a) for numbers, or maps of them."""
    numerators = [torch.exp(logit) for logit in logits]
    total = sum(numerators)
    return [numerator / total for numerator in numerators]


def on_grid(values: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """(N, ...) values of the positions, row by row -> (..., H, W)."""
    stacked = torch.stack(list(values), dim=-1)
    return stacked.reshape(*stacked.shape[:-1], *grid)


def positions_of(grid: Sequence[int]) -> list[tuple[int, int]]:
    """All (y, x), row by row."""
    return list(itertools.product(range(grid[0]), range(grid[1])))


# Dynamic graph message passing


def corners(y: Tensor, x: Tensor, grid: Sequence[int]) -> list[tuple[tuple[int, int], Tensor]]:
    """The pixels that bilinear interpolation at (y, x) reads and their shares; outside the image there is only 0."""
    top, left = math.floor(y.item()), math.floor(x.item())
    down, across = y - top, x - left
    shares = {
        (top, left): (1 - down) * (1 - across),
        (top, left + 1): (1 - down) * across,
        (top + 1, left): down * (1 - across),
        (top + 1, left + 1): down * across,
    }
    return [(at, share) for at, share in shares.items() if 0 <= at[0] < grid[0] and 0 <= at[1] < grid[1]]


def dynamic_graph_message_passing(
    x: Tensor,
    offsets: Sequence[Tensor] | None,
    predictors: Sequence[Tensor] | None,
    gammas: Sequence[Tensor],
    dilations: Sequence[int],
    groups: int,
    dynamic_weights: bool,
    dynamic_affinity: bool,
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """DGMN, Zhang et al., CVPR 2020, section 3.2: the output, and the weights w A and the places of each dilation.

    The message m_i = sum_k w_k A_k h'_k of dilation s reads nine places near the 3x3 grid of step s, each moved by an
    offset (dy, dx) of its own, bilinearly. `offsets`: 3x3 convolutions to 18 channels, (dy, dx) of tap 0, of tap 1...
    `predictors`: (groups * 9 + 9, C, 3, 3), applied to the moved places; weights w of each group, then the affinities,
    before their softmax over the nine. Weights are (B, groups, 9, N), places (B, 9, N, N): the share of pixel j in what
    tap k of position i reads, i before j.
    """
    batch, channels, height, width = x.shape
    group_of = [c // (channels // groups) for c in range(channels)]
    grid = (height, width)
    out, details = x, []
    for s, rate in enumerate(dilations):
        walk = x.new_zeros(batch, 18, height, width) if offsets is None else conv3x3(x, offsets[s], rate)
        messages, all_weights, all_places = [], [], []
        for b in range(batch):
            columns, weights, places = [], [], []
            for row, column in positions_of(grid):
                taps, readings = [], []
                for k in range(9):
                    y = row + (k // 3 - 1) * rate + walk[b, 2 * k, row, column]
                    x_ = column + (k % 3 - 1) * rate + walk[b, 2 * k + 1, row, column]
                    read = corners(y, x_, grid)
                    taps.append(sum((share * x[b, :, i, j] for (i, j), share in read), x.new_zeros(channels)))
                    shares = dict(read)
                    readings.append(torch.stack([shares.get(at, x.new_zeros(())) for at in positions_of(grid)]))
                filters, affinity = [x.new_ones(groups)] * 9, [x.new_full((), 1 / 9)] * 9
                if predictors is not None:
                    predicted = sum(predictors[s][:, :, k // 3, k % 3] @ taps[k] for k in range(9))
                    if dynamic_weights:
                        filters = [predicted[[g * 9 + k for g in range(groups)]] for k in range(9)]
                    if dynamic_affinity:
                        first = groups * 9 if dynamic_weights else 0
                        affinity = softmax([predicted[first + k] for k in range(9)])
                both = [filters[k] * affinity[k] for k in range(9)]
                columns.append(sum(both[k][group_of] * taps[k] for k in range(9)))
                weights.append(torch.stack(both, dim=1))
                places.append(torch.stack(readings))
            messages.append(on_grid(columns, grid))
            all_weights.append(torch.stack(weights, dim=2))
            all_places.append(torch.stack(places, dim=1))
        out = out + gammas[s] * torch.stack(messages)
        details.append((torch.stack(all_weights), torch.stack(all_places)))
    return out, details


# Local relation


def local_relation(
    x: Tensor,
    query: Convolution,
    key: Convolution,
    geometry: tuple[Convolution, Convolution] | None,
    out: Convolution,
    norm: Norm,
    window: int,
    channels_per_group: int,
    composability: str,
) -> tuple[Tensor, Tensor]:
    """LR-Net, Hu et al., ICCV 2019, section 3: the output and the weights (B, groups, N, N).

    w = softmax over the window inside the image of Phi(q_i, k_j) + g(j - i), for each group of channels, whose query
    and key are one number; g is a network on (dx, dy), both divided by the window's reach.
    """
    phi = {
        "squared_difference": lambda q, k: -((q - k) ** 2),
        "absolute_difference": lambda q, k: -(q - k).abs(),
        "product": lambda q, k: q * k,
    }[composability]
    height, width = x.shape[2:]
    reach = window // 2
    q, k = pointwise(x, *query), pointwise(x, *key)

    def prior(dy: int, dx: int) -> Tensor:
        if geometry is None:
            return x.new_zeros(q.shape[1])
        relative = x.new_tensor([dx, dy]) / max(reach, 1)
        hidden = pointwise(relative.reshape(1, 2, 1, 1), *geometry[0]).clamp(min=0)
        return pointwise(hidden, *geometry[1]).flatten()

    offsets = itertools.product(range(-reach, reach + 1), repeat=2)
    priors = {(dy, dx): prior(dy, dx) for dy, dx in offsets}
    averages, weights = [], []
    for b in range(x.shape[0]):
        columns, rows = [], []
        for row, column in positions_of((height, width)):
            near = []
            for at in positions_of((height, width)):
                if abs(at[0] - row) <= reach and abs(at[1] - column) <= reach:
                    near.append(at)
            logits = []
            for i, j in near:
                logits.append(phi(q[b, :, row, column], k[b, :, i, j]) + priors[i - row, j - column])
            weight = dict(zip(near, softmax(logits), strict=True))
            values = []
            for c in range(x.shape[1]):
                values.append(sum(weight[i, j][c // channels_per_group] * x[b, c, i, j] for i, j in near))
            columns.append(torch.stack(values))
            none = x.new_zeros(q.shape[1])
            rows.append(torch.stack([weight.get(at, none) for at in positions_of((height, width))], dim=-1))
        averages.append(on_grid(columns, (height, width)))
        weights.append(torch.stack(rows, dim=1))
    return batch_norm(pointwise(torch.stack(averages), *out), *norm) + x, torch.stack(weights)


# CARAFE


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution with a square kernel of odd side, zeros outside the map."""
    reach = weight.shape[2] // 2
    height, width = x.shape[2:]
    columns = []
    for row, column in positions_of((height, width)):
        total = bias.expand(x.shape[0], -1)
        for i, j in positions_of(weight.shape[2:]):
            y, x_ = row + i - reach, column + j - reach
            if 0 <= y < height and 0 <= x_ < width:
                total = total + x[:, :, y, x_] @ weight[:, :, i, j].T
        columns.append(total)
    return on_grid(columns, (height, width))


def carafe_kernels(
    x: Tensor, compress: Convolution, encode: Convolution, scale: int, kernel_size: int, groups: int
) -> Tensor:
    """Wang et al. (CARAFE), ICCV 2019, section 3.2, kernel prediction: (B, groups, k * k, s * H, s * W).

    Channel (g * k * k + tap) * s * s + i * s + j of the prediction belongs to the output pixel (s * y + i, s * x + j).
    """
    logits = convolve(pointwise(x, *compress), *encode)
    height, width = x.shape[2:]
    columns = []
    for row, column in positions_of((scale * height, scale * width)):
        place = row % scale * scale + column % scale
        here = logits[:, :, row // scale, column // scale]
        kernels = []
        for g in range(groups):
            taps = range(g * kernel_size**2, (g + 1) * kernel_size**2)
            kernels.append(torch.stack(softmax([here[:, tap * scale**2 + place] for tap in taps]), dim=1))
        columns.append(torch.stack(kernels, dim=1))
    return on_grid(columns, (scale * height, scale * width))


def carafe(
    x: Tensor, compress: Convolution, encode: Convolution, scale: int, kernel_size: int, groups: int
) -> tuple[Tensor, Tensor]:
    """Wang et al. (CARAFE), ICCV 2019, section 3.2: the reassembled map (B, C, s * H, s * W) and the kernels.

    Taps outside the image are left out; the others do not grow for it.
    """
    kernels = carafe_kernels(x, compress, encode, scale, kernel_size, groups)
    channels, height, width = x.shape[1:]
    group_of = [c // (channels // groups) for c in range(channels)]
    reach = kernel_size // 2
    columns = []
    for row, column in positions_of((scale * height, scale * width)):
        total = x.new_zeros(x.shape[:2])
        for i, j in positions_of((kernel_size, kernel_size)):
            y, x_ = row // scale + i - reach, column // scale + j - reach
            if 0 <= y < height and 0 <= x_ < width:
                total = total + kernels[:, group_of, i * kernel_size + j, row, column] * x[:, :, y, x_]
        columns.append(total)
    return on_grid(columns, (scale * height, scale * width)), kernels


# Bilateral filter


def bilateral_weights(current: Tensor, data: Tensor, window: int | None, sr: Tensor, ss: Tensor) -> Tensor:
    """Weights (B, N, N) of every data point j around every point i, which sum to 1 over j; 0 outside the window.

    exp(-||f_i - f_j||^2 / (2 sr^2) - ||p_i - p_j||^2 / (2 ss^2)), places p in units of the longer side of the image.
    """
    height, width = data.shape[2:]
    unit = max(height, width)
    samples = []
    for y, x in zip(current, data, strict=True):
        rows = []
        for row, column in positions_of((height, width)):
            weights = []
            for i, j in positions_of((height, width)):
                if window is not None and max(abs(i - row), abs(j - column)) > window // 2:
                    weights.append(x.new_zeros(()))
                    continue
                feature = ((y[:, row, column] - x[:, i, j]) ** 2).sum() / (2 * sr**2)
                place = ((i - row) ** 2 + (j - column) ** 2) / unit**2 / (2 * ss**2)
                weights.append(torch.exp(-feature - place))
            total = sum(weights)
            rows.append(torch.stack([weight / total for weight in weights]))
        samples.append(torch.stack(rows))
    return torch.stack(samples)


def bilateral_filter(
    x: Tensor, window: int | None, iterations: int, blurring: bool, sr: Tensor, ss: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Bilateral filter (Tomasi and Manduchi, ICCV 1998), iterated: the average and the weights of each iteration.

    Blurring mean-shift filters its own result again; the other kind moves the points through the fixed data.
    """
    y, weights = x, []
    for _ in range(iterations):
        data = y if blurring else x
        weights.append(bilateral_weights(y, data, window, sr, ss))
        averages = []
        for rows, values in zip(weights[-1], data.flatten(2), strict=True):
            averages.append(torch.stack([(row * values).sum(dim=1) for row in rows], dim=1))
        y = torch.stack(averages).reshape(x.shape)
    return y, weights


def bilateral_block(
    x: Tensor, out: Convolution, norm: Norm, window: int | None, iterations: int, blurring: bool, sr: Tensor, ss: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The filter as a residual block, `BN(W y) + x`, and the weights of each iteration."""
    y, weights = bilateral_filter(x, window, iterations, blurring, sr, ss)
    return batch_norm(pointwise(y, *out), *norm) + x, weights

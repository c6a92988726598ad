"""Mechanisms in which every position weighs others one by one: non-local, PSANet, OCNet, ISA, masked self-attention.

The restricted ones are dense attention with a boolean mask, `mask[i, j]` True where query i may see key j, positions
numbered row by row. A convolution with batch norm and ReLU is `(weight, norm)`.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.reference.layers import Convolution, Norm, batch_norm, conv_bn_relu, pointwise, resize_bilinear

ConvNormReLU = tuple[Tensor, Norm]


# Masks


def pair_mask(grid: tuple[int, int], visible: Callable[[int, int, int, int], bool]) -> Tensor:
    """(N, N) from `visible(y, x, y', x')`: does the query at (y, x) see the key at (y', x')?"""
    positions = list(itertools.product(range(grid[0]), range(grid[1])))
    return torch.tensor([[visible(*query, *key) for key in positions] for query in positions])


def padding_before(grid: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Rows above and columns left of a grid padded to whole blocks: half of the padding, rounded down."""
    top, left = (((-size) % edge) // 2 for size, edge in zip(grid, block, strict=True))
    return top, left


def long_range_mask(grid: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """Huang et al. 2019 (ISA), section 3.2, long-range attention: the same place in every block."""
    top, left = padding_before(grid, block)

    def visible(y: int, x: int, other_y: int, other_x: int) -> bool:
        same_row = (y + top) % block[0] == (other_y + top) % block[0]
        return same_row and (x + left) % block[1] == (other_x + left) % block[1]

    return pair_mask(grid, visible)


def short_range_mask(grid: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """Huang et al. 2019 (ISA), section 3.2, short-range attention: the same block."""
    top, left = padding_before(grid, block)

    def visible(y: int, x: int, other_y: int, other_x: int) -> bool:
        same_row = (y + top) // block[0] == (other_y + top) // block[0]
        return same_row and (x + left) // block[1] == (other_x + left) // block[1]

    return pair_mask(grid, visible)


def pyramid_mask(grid: tuple[int, int], size: int) -> Tensor:
    """Yuan and Wang 2018 (OCNet), pyramid object context: size x size blocks, the last ones take what remains."""

    def edges(length: int) -> list[int]:
        return [i * (length // size) for i in range(size)] + [length]

    def interval(at: int, length: int) -> int:
        ends = edges(length)
        return next(i for i in range(size) if ends[i] <= at < ends[i + 1])

    def visible(y: int, x: int, other_y: int, other_x: int) -> bool:
        same_row = interval(y, grid[0]) == interval(other_y, grid[0])
        return same_row and interval(x, grid[1]) == interval(other_x, grid[1])

    return pair_mask(grid, visible)


def space_mask(grid: tuple[int, int], space: str, window: int, stride: int) -> Tensor:
    """The spaces that a query may look at: all, a window, a comb, both, its row, its column, both."""
    radius = window // 2

    def visible(y: int, x: int, other_y: int, other_x: int) -> bool:
        near = abs(y - other_y) <= radius and abs(x - other_x) <= radius
        comb = (y - other_y) % stride == 0 and (x - other_x) % stride == 0
        return {
            "global": True,
            "local": near,
            "atrous": comb,
            "sparse": near or comb,
            "row": y == other_y,
            "column": x == other_x,
            "row_column": y == other_y or x == other_x,
        }[space]

    return pair_mask(grid, visible)


# Attention


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """(B, N, M) weights of (B, d, *grid) queries on (B, d, *key_grid) keys: softmax over the keys a query sees."""
    queries, keys = query.flatten(2), key.flatten(2)
    if mask is None:
        mask = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool)
    samples = []
    for q, k in zip(queries, keys, strict=True):
        rows = []
        for i, seen in enumerate(mask):
            numerators = [torch.exp(scale * (q[:, i] * k[:, j]).sum()) for j in range(len(seen)) if seen[j]]
            total = sum(numerators)
            left = iter(numerators)
            rows.append(torch.stack([next(left) / total if seen[j] else q.new_zeros(()) for j in range(len(seen))]))
        samples.append(torch.stack(rows))
    return torch.stack(samples)


def weigh(weights: Tensor, value: Tensor, grid: Sequence[int]) -> Tensor:
    """y_i = sum_j weights_ij value_j: (B, N, M), (B, c, *key_grid) -> (B, c, *grid)."""
    samples = []
    for rows, v in zip(weights, value.flatten(2), strict=True):
        samples.append(torch.stack([(row * v).sum(dim=1) for row in rows], dim=1))
    return torch.stack(samples).reshape(value.shape[0], value.shape[1], *grid)


def max_pool(x: Tensor, size: int) -> Tensor:
    """Maxima of size x size cells of the last two axes; cells that stick out at the end keep what they have."""
    rows = []
    for top in range(0, x.shape[-2], size):
        cells = [x[..., top : top + size, left : left + size] for left in range(0, x.shape[-1], size)]
        rows.append(torch.stack([cell.amax(dim=(-2, -1)) for cell in cells], dim=-1))
    return torch.stack(rows, dim=-2)


# Non-local


def non_local_weights(query: Tensor, key: Tensor, affinity: str, scaled: bool, concat: Tensor | None = None) -> Tensor:
    """Wang et al., CVPR 2018, section 3.2, f(x_i, x_j) / C(x): (B, d, *grid), (B, d, *key_grid) -> (B, N, M)."""
    channels = query.shape[1]
    scale = 1 / math.sqrt(channels) if scaled else 1.0
    if affinity in ("gaussian", "embedded_gaussian"):
        return attention_weights(query, key, scale=scale)
    samples = []
    for q, k in zip(query.flatten(2), key.flatten(2), strict=True):
        rows = []
        for q_i in q.unbind(1):
            if affinity == "dot_product":
                f = [(q_i * k_j).sum() for k_j in k.unbind(1)]
            else:
                f = [(concat.flatten() * torch.cat([q_i, k_j])).sum().clamp(min=0) for k_j in k.unbind(1)]
            rows.append(torch.stack([scale * f_j / len(f) for f_j in f]))
        samples.append(torch.stack(rows))
    return torch.stack(samples)


def non_local_variant(
    x: Tensor,
    query: Convolution | None,
    key: Convolution | None,
    value: Convolution | None,
    out: Convolution,
    norm: Norm,
    affinity: str,
    scaled: bool,
    concat: Tensor | None = None,
    pool: str = "none",
) -> tuple[Tensor, Tensor]:
    """Non-local block, Wang et al., CVPR 2018, sections 3.2 and 3.3: the output and the weights (B, N, M).

    A convolution that is None is the identity. `pool` "first" pools x before the convolutions of key and value, "after"
    their results.
    """

    def project(source: Tensor, conv: Convolution | None) -> Tensor:
        return source if conv is None else pointwise(source, *conv)

    source = max_pool(x, 2) if pool == "first" else x
    k, v = project(source, key), project(source, value)
    if pool == "after":
        k, v = max_pool(k, 2), max_pool(v, 2)
    weights = non_local_weights(project(x, query), k, affinity, scaled, concat)
    y = weigh(weights, v, x.shape[2:])
    return batch_norm(pointwise(y, *out), *norm) + x, weights


# Point-wise spatial attention


def resize_bilinear_corners(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation with the corner pixels kept in place (align_corners=True)."""

    def neighbours(i: int, size: int, new_size: int) -> tuple[int, int, float]:
        position = i * (size - 1) / (new_size - 1) if new_size > 1 else 0.0
        low = min(math.floor(position + 1e-9), size - 1)
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


def psa_weights(masks: Tensor, mask_size: tuple[int, int], direction: str, compact: bool) -> Tensor:
    """Zhao et al. (PSANet), ECCV 2018, section 3.2: masks (B, Mh * Mw, h, w) -> weights (B, target, source).

    The vector at a position holds a logit for each offset (or, compact, for each position). "collect": the target
    holds the logits of its sources. "distribute": the source holds the logits of its targets. Offsets beyond the mask
    have logit 0; the mask of M elements along an axis begins at the offset -((M - 1) // 2), the authors' half_mask. The
    softmax runs over the sources of one target.
    """
    height, width = masks.shape[2:]
    positions = list(itertools.product(range(height), range(width)))

    def logit(sample: Tensor, holder: tuple[int, int], other: tuple[int, int]) -> Tensor:
        if compact:
            return sample[other[0] * width + other[1], holder[0], holder[1]]
        row = other[0] - holder[0] + (mask_size[0] - 1) // 2
        column = other[1] - holder[1] + (mask_size[1] - 1) // 2
        if not (0 <= row < mask_size[0] and 0 <= column < mask_size[1]):
            return sample.new_zeros(())
        return sample[row * mask_size[1] + column, holder[0], holder[1]]

    samples = []
    for sample in masks:
        targets = []
        for target in positions:
            if direction == "collect":
                numerators = [torch.exp(logit(sample, target, source)) for source in positions]
            else:
                numerators = [torch.exp(logit(sample, source, target)) for source in positions]
            total = sum(numerators)
            targets.append(torch.stack([numerator / total for numerator in numerators]))
        samples.append(torch.stack(targets))
    return torch.stack(samples)


def released_psa_mask(mask: Tensor, mask_size: tuple[int, int], direction: str) -> Tensor:
    """The released operator (hszhao/semseg, lib/psa), entry by entry: (B, Mh * Mw, h, w) -> logits (B, source, target).

    Each position (h, w) holds a mask laid over the map with its element half_mask = (M - 1) // 2 on (h, w); what lies
    on the map goes to the affinity of the two positions, everything else stays 0.
    """
    height, width = mask.shape[2:]
    half = [(m - 1) // 2 for m in mask_size]
    logits = mask.new_zeros(len(mask), height * width, height * width)
    for b, h, w in itertools.product(range(len(mask)), range(height), range(width)):
        for i, j in itertools.product(range(mask_size[0]), range(mask_size[1])):
            y, x = h + i - half[0], w + j - half[1]
            if 0 <= y < height and 0 <= x < width:
                holder, other = h * width + w, y * width + x
                place = (b, other, holder) if direction == "collect" else (b, holder, other)
                logits[place] = mask[b, i * mask_size[1] + j, h, w]
    return logits


def pointwise_spatial_attention(
    x: Tensor,
    paths: dict[str, tuple[ConvNormReLU, ConvNormReLU, Tensor]],
    proj: ConvNormReLU,
    mask_size: tuple[int, int],
    compact: bool,
    shrink: int,
    normalization: float | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Zhao et al. (PSANet), ECCV 2018, section 3.3: the output and the weights (B, target, source) of each direction.

    `paths`: for each direction, in the order of the concatenation, reduction, adaption and the convolution to the mask.
    """
    height, width = x.shape[2:]
    divisor = mask_size[0] * mask_size[1] if normalization is None else normalization
    maps, weights = [], {}
    for direction, (reduce, adapt, mask) in paths.items():
        z = conv_bn_relu(x, *reduce)
        z = resize_bilinear_corners(z, (height - 1) // shrink + 1, (width - 1) // shrink + 1)
        logits = pointwise(conv_bn_relu(z, *adapt), mask)
        weights[direction] = psa_weights(logits, mask_size, direction, compact)
        maps.append(weigh(weights[direction], z, z.shape[2:]) / divisor)
    y = conv_bn_relu(torch.cat(maps, dim=1), *proj)
    return resize_bilinear_corners(y, height, width), weights


# Object context


def masked_object_context(
    x: Tensor, query: ConvNormReLU, key: ConvNormReLU, value: Convolution, out: Convolution, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """W(A v) with A = softmax(q k / sqrt(d)) over the visible positions, and A."""
    q, k = conv_bn_relu(x, *query), conv_bn_relu(x, *key)
    weights = attention_weights(q, k, mask, scale=1 / math.sqrt(q.shape[1]))
    return pointwise(weigh(weights, pointwise(x, *value), x.shape[2:]), *out), weights


def object_context(
    x: Tensor, query: ConvNormReLU, key: ConvNormReLU, value: Convolution, out: Convolution, downsample: int
) -> Tensor:
    """Object context pooling, Yuan and Wang 2018 (OCNet), section 3.2."""
    context, _ = masked_object_context(max_pool(x, downsample), query, key, value, out, None)
    return context if downsample == 1 else resize_bilinear(context, *x.shape[2:])


def pyramid_object_context(
    x: Tensor,
    up: ConvNormReLU,
    query: ConvNormReLU,
    key: ConvNormReLU,
    value: Convolution,
    out: Convolution,
    sizes: Sequence[int],
) -> Tensor:
    """Pyramid object context, Yuan and Wang 2018 (OCNet), section 3.3: one set of weights for all block sizes."""
    height, width = x.shape[2:]
    maps = [conv_bn_relu(x, *up)]
    for size in sizes:
        mask = pyramid_mask((height, width), size)
        maps.append(masked_object_context(x, query, key, value, out, mask)[0])
    return torch.cat(maps, dim=1)


def atrous_pyramid_object_context(
    x: Tensor,
    pre: ConvNormReLU,
    context: tuple[ConvNormReLU, ConvNormReLU, Convolution, Convolution],
    fuse: ConvNormReLU,
    one: ConvNormReLU,
    atrous: Sequence[ConvNormReLU],
    rates: Sequence[int],
    project: ConvNormReLU,
) -> Tensor:
    """ASP-OC, Yuan and Wang 2018 (OCNet), section 3.3: ASPP with object context at half size for image pooling."""
    reduced = conv_bn_relu(x, *pre)
    attended = object_context(reduced, *context, downsample=2)
    maps = [conv_bn_relu(torch.cat([attended, reduced], dim=1), *fuse), conv_bn_relu(x, *one)]
    for (weight, norm), rate in zip(atrous, rates, strict=True):
        maps.append(conv_bn_relu(x, weight, norm, rate))
    return conv_bn_relu(torch.cat(maps, dim=1), *project)


# Interlaced sparse self-attention


def masked_self_attention(
    x: Tensor,
    query: Sequence[ConvNormReLU],
    key: Sequence[ConvNormReLU],
    value: Tensor,
    out: ConvNormReLU,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """One of the two attentions of ISA, dense with a mask, and its weights (B, N, N)."""
    q, k = x, x
    for layer in query:
        q = conv_bn_relu(q, *layer)
    for layer in key:
        k = conv_bn_relu(k, *layer)
    weights = attention_weights(q, k, mask, scale=1 / math.sqrt(q.shape[1]))
    return conv_bn_relu(weigh(weights, pointwise(x, value), x.shape[2:]), *out), weights


# Self-attention in a space


def grid_self_attention(
    x: Tensor,
    query: Convolution,
    key: Convolution,
    value: Convolution,
    out: Convolution,
    norm: Norm,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """A non-local block whose queries see what the mask shows, and its weights (B, N, N)."""
    q, k, v = pointwise(x, *query), pointwise(x, *key), pointwise(x, *value)
    weights = attention_weights(q, k, mask, scale=1 / math.sqrt(q.shape[1]))
    return batch_norm(pointwise(weigh(weights, v, x.shape[2:]), *out), *norm) + x, weights

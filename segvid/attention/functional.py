"""Tensor functions that several mechanisms share: attention, sums over a window, pooling; and how they are counted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Up to this many affinities the whole map is stored; above, never more than CHUNK of them at a time.
EXPLICIT = 2**20
CHUNK = 2**21

_counting = False


@contextmanager
def counting() -> Iterator[None]:
    """While it lasts, mechanisms compute their formula as it stands, so that torch's FlopCounterMode counts that.

    Every convolution with its padding, every affinity, and the sums over windows as the matrix products that they are,
    whatever is faster on the device at hand. Averages and resampling are no products. It may take much memory: made for
    fake tensors, which have none.
    """
    global _counting
    before, _counting = _counting, True
    try:
        yield
    finally:
        _counting = before


def plain_formula() -> bool:
    """Whether the formula itself is wanted, not its fastest form: in graphs, which serve all sizes, and in counting."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or _counting  # type: ignore[attr-defined, no-untyped-call]


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0) -> Tensor:
    """Weighted average of the values, weights `softmax(scale * query . key)` over the keys: the one attention kernel.

    Exact everywhere, and the (N, M) map of a large grid is never stored: on a CPU rows are worked off in chunks and
    computed again in the backward pass; elsewhere torch's fused kernels do the same. Small maps, and graphs that are
    traced, scripted or exported, use the plain formula; so does `counting`.

    Shape:
        query (B, N, d), key (B, M, d), value (B, M, c) -> (B, N, c).
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _explicit_attention(query, key, value, scale)
    elif plain_formula():
        return _explicit_attention(query, key, value, scale)
    elif query.device.type != "cpu":
        return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=scale)[:, 0]
    elif query.shape[0] * query.shape[1] * key.shape[1] <= EXPLICIT:
        return _explicit_attention(query, key, value, scale)
    else:
        out: Tensor = _ChunkedAttention.apply(query, key, value, scale)
        return out.to(value.dtype)


def _explicit_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    # The scale is folded into the query: one pass over (B, N, d) instead of one over (B, N, M).
    affinity = torch.softmax(torch.matmul(query * scale, key.transpose(1, 2)), dim=-1)  # (B, N, M)
    return torch.matmul(affinity, value)


def _chunks(batch: int, rows: int, keys: int) -> list[tuple[slice, slice]]:
    """(samples, rows) of each chunk: whole samples while they fit, else some rows of one sample."""
    samples = max(CHUNK // (rows * keys), 1)
    step = rows if samples > 1 else max(CHUNK // keys, 1)
    return [(slice(b, b + samples), slice(n, n + step)) for b in range(0, batch, samples) for n in range(0, rows, step)]


class _ChunkedAttention(torch.autograd.Function):
    """Softmax attention that keeps the log-sum-exp of each row and computes the weights again in the backward pass.

    Rabe and Staats, "Self-attention Does Not Need O(n^2) Memory", 2021; the backward formulae as in Dao et al.,
    "FlashAttention", NeurIPS 2022, appendix B. In float32 or float64, also under autocast.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        batch, rows, keys = query.shape[0], query.shape[1], key.shape[1]
        # Channels first: the convolution that follows finds its input contiguous.
        out = query.new_empty(batch, value.shape[2], rows)
        log_sum = query.new_empty(batch, rows, 1)
        for b, n in _chunks(batch, rows, keys):
            weights = torch.bmm(query[b, n] * scale, key[b].transpose(1, 2))  # (b, n, M)
            largest = weights.amax(dim=-1, keepdim=True)
            weights.sub_(largest).exp_()
            total = weights.sum(dim=-1, keepdim=True)
            out[b, :, n] = torch.bmm(value[b].transpose(1, 2), weights.transpose(1, 2)).div_(total.transpose(1, 2))
            log_sum[b, n] = largest + total.log()
        ctx.save_for_backward(query, key, value, out, log_sum)
        ctx.scale = scale
        return out.transpose(1, 2)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, out, log_sum = ctx.saved_tensors
        grad = grad.to(query.dtype)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for b, n in _chunks(query.shape[0], query.shape[1], key.shape[1]):
            row_query, row_grad = query[b, n] * ctx.scale, grad[b, n]
            weights = torch.bmm(row_query, key[b].transpose(1, 2)).sub_(log_sum[b, n]).exp_()  # (b, n, M)
            grad_value[b].baddbmm_(weights.transpose(1, 2), row_grad)
            mean = (row_grad * out[b, :, n].transpose(1, 2)).sum(dim=-1, keepdim=True)
            grad_weights = torch.bmm(row_grad, value[b].transpose(1, 2)).sub_(mean).mul_(weights)
            grad_query[b, n] = torch.bmm(grad_weights, key[b]).mul_(ctx.scale)
            grad_key[b].baddbmm_(grad_weights.transpose(1, 2), row_query)
        return grad_query, grad_key, grad_value, None


def matmul_float32(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` in float32 (float64 stays), also under autocast: for sums over all positions, which overflow float16.

    Shape:
        (..., n, k), (..., k, m) -> (..., n, m).
    """
    if a.dtype != torch.float64:
        a, b = a.float(), b.float()
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return torch.matmul(a, b)
    else:  # TorchScript accepts no device that is not a constant here
        with torch.autocast(a.device.type, enabled=False):
            return torch.matmul(a, b)


def _pooling_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """Row `i` averages the positions floor(i * size / bins) to ceil((i + 1) * size / bins) - 1."""
    index = torch.arange(bins, device=like.device).unsqueeze(1)
    start = torch.div(index * size, bins, rounding_mode="floor")
    stop = torch.div((index + 1) * size + bins - 1, bins, rounding_mode="floor")
    position = torch.arange(size, device=like.device).unsqueeze(0)
    inside = ((position >= start) & (position < stop)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)  # (bins, size)


def adaptive_avg_pool2d(x: Tensor, bins: int) -> Tensor:
    """`torch.nn.functional.adaptive_avg_pool2d(x, bins)` as two small matrix products.

    The same numbers, but a graph whose height and width stay dynamic when it is exported: torch's own operator exports
    to a wrong or crashing ONNX graph.

    Shape:
        (B, C, H, W) -> (B, C, bins, bins).
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        pass
    elif _counting:
        return F.adaptive_avg_pool2d(x, bins)
    rows = _pooling_matrix(x.shape[2], bins, x)
    columns = _pooling_matrix(x.shape[3], bins, x)
    return torch.matmul(torch.matmul(rows, x), columns.transpose(0, 1))


def position_index(grid: Sequence[int], position: Sequence[int]) -> int:
    """Index of a position in the flattened grid.

    Raises:
        ValueError: the position lies outside the grid or has another number of axes.
    """
    if len(position) != len(grid) or any(not 0 <= p < size for p, size in zip(position, grid, strict=False)):
        raise ValueError(f"position {tuple(position)} does not lie on the grid {tuple(grid)}.")
    index = 0
    for p, size in zip(position, grid, strict=True):
        index = index * size + p
    return index


def shifted(x: Tensor, window: int, fill: float = 0.0) -> list[Tensor]:
    """The map as seen from each place of a window: item (dy + r) * window + dx + r is x at (y + dy, x + dx).

    Views of one padded copy, so that a large window costs no memory.

    Shape:
        (B, C, H, W) -> window ** 2 maps (B, C, H, W), `fill` outside the image.
    """
    reach = window // 2
    height, width = x.shape[2], x.shape[3]
    padded = F.pad(x, (reach, reach, reach, reach), value=fill)
    maps = []
    for i in range(window):
        for j in range(window):
            maps.append(padded[:, :, i : i + height, j : j + width])
    return maps


def summed_product(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """`(a * b).sum(dim)` of two tensors with equally many axes, broadcast; in `counting`, as a matrix product."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        pass
    elif _counting:
        return torch.matmul(a.movedim(dim, -1).unsqueeze(-2), b.movedim(dim, -1).unsqueeze(-1))[..., 0, 0]
    return (a * b).sum(dim=dim)


def window_sum(weights: Tensor, x: Tensor, window: int) -> Tensor:
    """`y_i = sum_k w_ik x_(i + k)` over the places k of a window, weights for each group of channels; 0 outside.

    Place by place: nothing is unfolded.

    Shape:
        weights (B, G, window ** 2, S, H, W), x (B, C, H, W) -> (B, G, C / G, S, H, W), S sums at each position.
    """
    grouped = (weights.shape[1], x.shape[1] // weights.shape[1], 1)
    maps = shifted(x, window)
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        pass
    elif _counting:
        places = torch.stack(maps, dim=2).unflatten(1, grouped[:2]).unsqueeze(4)  # (B, G, c, window^2, 1, H, W)
        return summed_product(weights.unsqueeze(2), places, 3)
    y: Tensor = torch.zeros_like(x).unflatten(1, grouped)  # (B, G, c, 1, H, W), grows to S
    for k, moved in enumerate(maps):
        y = y + weights[:, :, k].unsqueeze(2) * moved.unflatten(1, grouped)
    return y


def split_blocks(x: Tensor, block: tuple[int, int], blocks: list[int], interlaced: bool) -> Tensor:
    """Positions in groups: blocks of neighbours, or (interlaced) all positions at the same place of their block.

    Args:
        x: the map, of whole blocks.
        block: height dh and width dw of a block.
        blocks: how many there are along each axis, oh and ow.
        interlaced: see above.

    Shape:
        (B, C, oh * dh, ow * dw) -> (B * oh * ow, dh * dw, C), interlaced (B * dh * dw, oh * ow, C).
    """
    # Sizes are spelled out and copies forced: an exported graph would otherwise be tied to those of its example.
    batch, channels, dh, dw, oh, ow = x.shape[0], x.shape[1], block[0], block[1], blocks[0], blocks[1]
    x = x.reshape(batch, channels, oh, dh, ow, dw)
    if interlaced:
        x = x.permute(0, 3, 5, 2, 4, 1).clone(memory_format=torch.contiguous_format)
        return x.view(batch * dh * dw, oh * ow, channels)
    x = x.permute(0, 2, 4, 3, 5, 1).clone(memory_format=torch.contiguous_format)
    return x.view(batch * oh * ow, dh * dw, channels)


def join_blocks(groups: Tensor, block: tuple[int, int], blocks: list[int], interlaced: bool, batch: int) -> Tensor:
    """The inverse of `split_blocks`.

    Shape:
        groups as there -> (B, C, oh * dh, ow * dw).
    """
    channels, dh, dw, oh, ow = groups.shape[2], block[0], block[1], blocks[0], blocks[1]
    if interlaced:
        x = groups.view(batch, dh, dw, oh, ow, channels).permute(0, 5, 3, 1, 4, 2)
    else:
        x = groups.view(batch, oh, ow, dh, dw, channels).permute(0, 5, 1, 3, 2, 4)
    return x.clone(memory_format=torch.contiguous_format).view(batch, channels, oh * dh, ow * dw)


def crop(x: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """`x[:, :, top:bottom, left:right]` as a contiguous copy.

    By index: a strided slice, copied later, would tie an exported graph to the sizes of its example.
    """
    rows = torch.arange(top, bottom, device=x.device)
    columns = torch.arange(left, right, device=x.device)
    return x.index_select(2, rows).index_select(3, columns)

"""Tensor functions that several mechanisms share: softmax attention and adaptive pooling by matrix products."""

import torch
from torch import Tensor


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0) -> Tensor:
    """Weighted average of the values, weights `softmax(scale * query . key)` over the keys.

    The scale is folded into the query: one pass over (B, N, d) instead of one over (B, N, M).

    Shape:
        query (B, N, d), key (B, M, d), value (B, M, c) -> (B, N, c).
    """
    affinity = torch.softmax(torch.matmul(query * scale, key.transpose(1, 2)), dim=-1)  # (B, N, M)
    return torch.matmul(affinity, value)


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
    rows = _pooling_matrix(x.shape[2], bins, x)
    columns = _pooling_matrix(x.shape[3], bins, x)
    return torch.matmul(torch.matmul(rows, x), columns.transpose(0, 1))

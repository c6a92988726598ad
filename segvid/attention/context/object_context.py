"""Object context: the attention-weighted average of the features, with one projection for queries and keys.

Paper: Yuan, Huang, Guo, Zhang, Chen, Wang, "OCNet: Object Context for Semantic Segmentation", IJCV 2021 (2018),
section 3, https://arxiv.org/abs/1809.00916
Official code consulted: openseg-group/OCNet.pytorch. Deliberate: ReLU where it has leaky ReLU(0.01) (in-place ABN);
bilinear upsampling with align_corners=False, as everywhere here. The pyramid shares one set of projections, with values
of C / 2 channels, among its sizes (there each size has a set of its own, values of C channels); in ASP the context is
fused together with the map it comes from (there alone), and the max pooling before it keeps an odd last row and column
(there they are dropped).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import crop, position_index, softmax_attention
from segvid.attention.layers import conv_bn_relu


class ObjectContext(nn.Module):
    """`W sum_j softmax_j(q_i . k_j / sqrt(d)) v_j`, q = k unless said otherwise: BN and ReLU behind the projection.

    W starts at zero and there is no residual: the context is concatenated with the input, and starts empty.

    Args:
        channels: C of the input.
        key_channels: d of query and key; the paper's C / 2 when None.
        value_channels: channels of the values; the paper's C / 2 when None.
        shared_query_key: one projection for both, as in the paper; the authors' later code separates them.
        downsample: max pooling before attention, bilinear upsampling after it.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(
        self,
        channels: int,
        *,
        key_channels: int | None = None,
        value_channels: int | None = None,
        shared_query_key: bool = True,
        downsample: int = 1,
    ) -> None:
        super().__init__()
        key_channels = key_channels or max(channels // 2, 1)
        value_channels = value_channels or max(channels // 2, 1)
        self.scale = key_channels**-0.5
        self.shared = shared_query_key
        self.downsample = downsample
        self.key = conv_bn_relu(channels, key_channels)
        self.query = nn.Identity() if shared_query_key else conv_bn_relu(channels, key_channels)
        self.value = nn.Conv2d(channels, value_channels, 1)
        self.out = nn.Conv2d(value_channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x)
        context: Tensor = self.out(self.average(query, key, value))
        if self.downsample > 1:
            context = F.interpolate(context, size=x.shape[2:], mode="bilinear", align_corners=False)
        return context

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key (B, d, h, w) and value (B, c, h, w)."""
        if self.downsample > 1:
            x = F.max_pool2d(x, self.downsample, ceil_mode=True)
        key = self.key(x)
        query = key if self.shared else self.query(x)
        return query, key, self.value(x)

    def average(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention over the whole of the maps given, (B, c, h, w)."""
        tokens = [t.flatten(2).transpose(1, 2) for t in (query, key, value)]
        return softmax_attention(tokens[0], tokens[1], tokens[2], self.scale).transpose(1, 2).reshape(value.shape)

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Weights of all positions for the query at `position`, (B, H, W); of pooled ones each has its cell's."""
        position_index(x.shape[2:], position)
        query, key, _ = self.project(x)
        index = position_index(query.shape[2:], [p // self.downsample for p in position])
        energy = torch.matmul(query.flatten(2)[:, None, :, index] * self.scale, key.flatten(2))  # (B, 1, n)
        coarse = torch.softmax(energy, dim=-1).reshape(-1, *query.shape[2:])
        fine = coarse.repeat_interleave(self.downsample, dim=1).repeat_interleave(self.downsample, dim=2)
        return fine[:, : x.shape[2], : x.shape[3]]


class PyramidObjectContext(nn.Module):
    """`concat(ReLU(BN(W x)), context_1, context_2, ...)`: attention inside each of s x s blocks, for several s.

    One set of projections serves all sizes, unlike in the released code. The last block of a row or column takes the
    remainder.

    Args:
        channels: C of the input.
        sizes: numbers of blocks along each axis.
        key_channels: d of query and key; C / 2 when None.
        value_channels: channels of the values; C / 2 when None.
        shared_query_key: one projection for both.

    Shape:
        (B, C, H, W) -> (B, out_channels, H, W) with out_channels = 2 * len(sizes) * C.
    """

    def __init__(
        self,
        channels: int,
        *,
        sizes: Sequence[int] = (1, 2, 3, 6),
        key_channels: int | None = None,
        value_channels: int | None = None,
        shared_query_key: bool = True,
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.out_channels = 2 * len(self.sizes) * channels
        self.context = ObjectContext(
            channels, key_channels=key_channels, value_channels=value_channels, shared_query_key=shared_query_key
        )
        self.widen = conv_bn_relu(channels, len(self.sizes) * channels)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.context.project(x)
        maps = [self.widen(x)]
        for size in self.sizes:
            maps.append(self.context.out(self.blockwise(query, key, value, size)))
        return torch.cat(maps, dim=1)

    def blockwise(self, query: Tensor, key: Tensor, value: Tensor, size: int) -> Tensor:
        """Attention inside each of size x size blocks, (B, c, H, W)."""
        height, width = value.shape[2], value.shape[3]
        step_y, step_x = height // size, width // size
        rows = []
        for i in range(size):
            stop_y = height if i == size - 1 else (i + 1) * step_y
            row = []
            for j in range(size):
                stop_x = width if j == size - 1 else (j + 1) * step_x
                q = crop(query, i * step_y, stop_y, j * step_x, stop_x)
                k = crop(key, i * step_y, stop_y, j * step_x, stop_x)
                v = crop(value, i * step_y, stop_y, j * step_x, stop_x)
                row.append(self.context.average(q, k, v))
            rows.append(torch.cat(row, dim=3))
        return torch.cat(rows, dim=2)

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Weights for the query at `position`, averaged over the sizes, (B, H, W)."""
        height, width = x.shape[2:]
        position_index((height, width), position)
        query, key, _ = self.context.project(x)
        energy = torch.einsum("bd,bdhw->bhw", query[:, :, position[0], position[1]] * self.context.scale, key)
        total = torch.zeros_like(energy)
        for size in self.sizes:
            inside = []
            for p, length in zip(position, (height, width), strict=True):
                step = length // size
                block = min(p // step, size - 1) if step else size - 1
                stop = length if block == size - 1 else (block + 1) * step
                inside.append(slice(block * step, stop))
            part = energy[:, inside[0], inside[1]]
            total[:, inside[0], inside[1]] += torch.softmax(part.flatten(1), dim=1).reshape(part.shape)
        return total / len(self.sizes)


class ASPObjectContext(nn.Module):
    """ASPP whose image pooling is replaced by object context (ASP-OC), all branches of C / 2 channels.

    Args:
        channels: C of the input and of the output.
        rates: dilations of the 3x3 branches.
        shared_query_key: one projection for query and key.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, *, rates: Sequence[int] = (12, 24, 36), shared_query_key: bool = True) -> None:
        super().__init__()
        branch = max(channels // 2, 1)
        self.reduce = conv_bn_relu(channels, branch, 3)
        self.context = ObjectContext(
            branch,
            key_channels=max(branch // 2, 1),
            value_channels=branch,
            shared_query_key=shared_query_key,
            downsample=2,
        )
        self.fuse = conv_bn_relu(2 * branch, branch)
        self.branches = nn.ModuleList([conv_bn_relu(channels, branch)])
        self.branches.extend(conv_bn_relu(channels, branch, 3, dilation=rate) for rate in rates)
        self.project = conv_bn_relu((2 + len(rates)) * branch, channels)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        maps = [self.fuse(torch.cat([self.context(reduced), reduced], dim=1))]
        for branch in self.branches:
            maps.append(branch(x))
        out: Tensor = self.project(torch.cat(maps, dim=1))
        return out

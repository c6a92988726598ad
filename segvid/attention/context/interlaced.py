"""Interlaced sparse self-attention: dense attention as the product of a long-range and a short-range one.

Paper: Huang, Yuan, Guo, Zhang, Chen, Wang, "Interlaced Sparse Self-Attention for Semantic Segmentation", 2019,
section 3, https://arxiv.org/abs/1907.12273
Official code consulted: openseg-group/openseg.pytorch. Deliberate: padded positions are no keys; there they take part
in the softmax with the batch norm's bias as their features.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import crop, join_blocks, position_index, softmax_attention, split_blocks
from segvid.attention.layers import conv_bn_relu


class BlockAttention(nn.Module):
    """Self-attention inside groups of positions, `ReLU(BN(W sum_j softmax_j(q_i . k_j / sqrt(d)) v_j))`.

    Args:
        channels: C of the input.
        block: height and width of a block.
        interlaced: a group is every position at the same place of its block (long range), else the block (short).
        key_channels: d of query and key.
        value_channels: channels of the values.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(
        self, channels: int, *, block: tuple[int, int], interlaced: bool, key_channels: int, value_channels: int
    ) -> None:
        super().__init__()
        self.block = block
        self.interlaced = interlaced
        self.scale = key_channels**-0.5
        self.query = nn.Sequential(conv_bn_relu(channels, key_channels), conv_bn_relu(key_channels, key_channels))
        self.key = nn.Sequential(conv_bn_relu(channels, key_channels), conv_bn_relu(key_channels, key_channels))
        self.value = nn.Conv2d(channels, value_channels, 1, bias=False)
        self.out = conv_bn_relu(value_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        # The projections see the map once; only their results are padded and grouped.
        context = blockwise_attention(
            self.query(x), self.key(x), self.value(x), self.block, self.interlaced, self.scale
        )
        out: Tensor = self.out(context)
        return out

    def attention_rows(self, x: Tensor, weights: Tensor) -> Tensor:
        """Row vectors over the positions times the affinity: what the weights (B, H, W) become one attention back."""
        # sum_i r_i A_ij = gradient of <r, A v> with respect to a value map v of one channel.
        value = torch.zeros_like(weights[:, None]).requires_grad_()
        with torch.enable_grad():
            context = blockwise_attention(
                self.query(x).detach(), self.key(x).detach(), value, self.block, self.interlaced, self.scale
            )
            (back,) = torch.autograd.grad(context, value, weights[:, None])
        return back[:, 0]


def whole_blocks(height: int, width: int, block: tuple[int, int]) -> tuple[list[int], list[int]]:
    """How many blocks along each axis, and the padding to them (left, right, top, bottom), half on each side."""
    blocks = [(height + block[0] - 1) // block[0], (width + block[1] - 1) // block[1]]
    pad_y, pad_x = blocks[0] * block[0] - height, blocks[1] * block[1] - width
    top, left = pad_y // 2, pad_x // 2
    return blocks, [left, pad_x - left, top, pad_y - top]


def block_tokens(
    query: Tensor, key: Tensor, value: Tensor, block: tuple[int, int], interlaced: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value in the groups of `split_blocks`; one more channel of the first two shuts padding out."""
    blocks, pad = whole_blocks(value.shape[2], value.shape[3], block)
    # Affinity -10,000 with padding. Finite: a group of padding alone must not divide 0 by 0; half of it on each side:
    # in one, divided by the scale, it leaves the range of float16 from 43 channels on.
    query = torch.cat([query, torch.full_like(query[:, :1], 100.0)], dim=1)
    shut = F.pad(torch.zeros_like(key[:, :1]), pad, value=-100.0 / scale)
    key = torch.cat([F.pad(key, pad), shut], dim=1)
    q = split_blocks(F.pad(query, pad), block, blocks, interlaced)
    k = split_blocks(key, block, blocks, interlaced)
    return q, k, split_blocks(F.pad(value, pad), block, blocks, interlaced)


def from_blocks(groups: Tensor, block: tuple[int, int], interlaced: bool, like: Tensor) -> Tensor:
    """Groups (see `split_blocks`) back to a map (B, c, H, W), B, H and W those of `like`, without the padding."""
    height, width = like.shape[2], like.shape[3]
    blocks, pad = whole_blocks(height, width, block)
    joined = join_blocks(groups, block, blocks, interlaced, like.shape[0])
    return crop(joined, pad[2], pad[2] + height, pad[0], pad[0] + width)


def blockwise_attention(
    query: Tensor, key: Tensor, value: Tensor, block: tuple[int, int], interlaced: bool, scale: float
) -> Tensor:
    """Softmax attention inside the groups of `split_blocks`, for any size: padding is never a key.

    Shape:
        query, key (B, d, H, W), value (B, c, H, W) -> (B, c, H, W).
    """
    q, k, v = block_tokens(query, key, value, block, interlaced, scale)
    context = softmax_attention(q, k, v, scale)
    return from_blocks(context, block, interlaced, value)


class InterlacedAttention(nn.Module):
    """Long-range attention between positions `block` apart, then short-range attention inside each block.

    Either alone sees few positions, the two together all: at block = sqrt(N) of them, N sqrt(N) affinities suffice.

    Args:
        channels: C of the input.
        block: height and width of the short range's blocks, the distance of the long range's positions.
        key_channels: d of query and key; C / 2 when None.
        value_channels: channels of the values; C when None.
        order: "long_short" as in the paper, the reverse, or one of the two alone.

    Shape:
        (B, C, H, W) -> (B, C, H, W), to be concatenated with the input (no residual).
    """

    def __init__(
        self,
        channels: int,
        *,
        block: tuple[int, int] = (8, 8),
        key_channels: int | None = None,
        value_channels: int | None = None,
        order: Literal["long_short", "short_long", "long", "short"] = "long_short",
    ) -> None:
        super().__init__()
        if order not in ("long_short", "short_long", "long", "short"):
            raise ValueError(f"order is {order!r}; use 'long_short', 'short_long', 'long' or 'short'.")
        self.attentions = nn.Sequential(
            *(
                BlockAttention(
                    channels,
                    block=(block[0], block[1]),
                    interlaced=name == "long",
                    key_channels=key_channels or max(channels // 2, 1),
                    value_channels=value_channels or channels,
                )
                for name in order.split("_")
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attentions(x)
        return out

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Weights for the position through both attentions: the product of their affinities, (B, H, W)."""
        inputs = []
        for attention in self.attentions:
            inputs.append(x)
            x = attention(x)
        weights = torch.zeros(x.shape[0], x.shape[2] * x.shape[3], dtype=x.dtype, device=x.device)
        weights[:, position_index(x.shape[2:], position)] = 1.0
        weights = weights.reshape(x.shape[0], *x.shape[2:])
        attentions = cast(list[BlockAttention], list(self.attentions))
        for attention, seen in zip(reversed(attentions), reversed(inputs), strict=True):
            weights = attention.attention_rows(seen, weights)
        return weights

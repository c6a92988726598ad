"""Double attention: features are gathered into a few global descriptors, each position takes what it needs of them.

Paper: Chen, Kalantidis, Li, Yan, Feng, "A^2-Nets: Double Attention Networks", NeurIPS 2018, section 3,
https://arxiv.org/abs/1810.11579
No official code in PyTorch. Deliberate: batch norm, starting at zero, on the output, so that the block starts as the
identity like its peers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segvid.attention.functional import position_index
from segvid.attention.layers import zero_norm


class DoubleAttention(nn.Module):
    """`BN(W G V) + x`, G = `A softmax_n(B)^T` (descriptors, gathering), V = `softmax_k` of node weights (distribution).

    The same as attention with the affinity `V^T softmax_n(B)` of rank `nodes`, whose rows sum to 1.

    Args:
        channels: C of the input.
        inner_channels: channels of A, the paper's c_m; C / 4 when None.
        nodes: number of descriptors, the paper's c_n; C / 4 when None.

    Shape:
        (B, C, *grid) -> (B, C, *grid), grid of any number of axes.
    """

    def __init__(self, channels: int, *, inner_channels: int | None = None, nodes: int | None = None) -> None:
        super().__init__()
        inner = inner_channels or max(channels // 4, 1)
        nodes = nodes or max(channels // 4, 1)
        self.value = nn.Conv1d(channels, inner, 1)
        self.gather = nn.Conv1d(channels, nodes, 1)
        self.distribute = nn.Conv1d(channels, nodes, 1)
        self.out = nn.Conv1d(inner, channels, 1, bias=False)
        self.norm = zero_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)  # (B, C, N)
        gather = torch.softmax(self.gather(tokens), dim=2)  # (B, K, N), over the positions
        distribute = torch.softmax(self.distribute(tokens), dim=1)  # (B, K, N), over the nodes
        descriptors = torch.matmul(self.value(tokens), gather.transpose(1, 2))  # (B, c, K)
        z: Tensor = self.norm(self.out(torch.matmul(descriptors, distribute))).reshape(x.shape)
        return z + x

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Weights of all positions in the context of one, (B, *grid)."""
        tokens = x.flatten(2)
        gather = torch.softmax(self.gather(tokens), dim=2)
        distribute = torch.softmax(self.distribute(tokens), dim=1)
        index = position_index(x.shape[2:], position)
        return torch.einsum("bk,bkn->bn", distribute[:, :, index], gather).reshape(x.shape[0], *x.shape[2:])

    def regions(self, x: Tensor) -> Tensor:
        """Where each descriptor is used: the distribution weights, (B, K, *grid)."""
        weights = torch.softmax(self.distribute(x.flatten(2)), dim=1)
        return weights.reshape(x.shape[0], -1, *x.shape[2:])

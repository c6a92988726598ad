"""Global context block: one attention map for all queries, since non-local's hardly differ.

Paper: Cao, Xu, Lin, Wei, Hu, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCVW 2019,
section 3, https://arxiv.org/abs/1904.11492
Official code consulted: xvjiarui/GCNet.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import position_index


class GlobalContext(nn.Module):
    """`x + W2 ReLU(LN(W1 sum_j softmax_j(w . x_j) x_j))`: attention pooling and a bottleneck transform.

    W2 starts at zero, so the block starts as the identity.

    Args:
        channels: C of the input.
        reduction: the bottleneck has C / reduction channels; 4 in segmentation, 16 in detection.

    Shape:
        (B, C, *grid) -> (B, C, *grid), grid of any number of axes.
    """

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.mask = nn.Conv1d(channels, 1, 1)
        self.reduce = nn.Linear(channels, inner)
        self.norm = nn.LayerNorm(inner)
        self.expand = nn.Linear(inner, channels)
        nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")
        assert self.mask.bias is not None
        nn.init.zeros_(self.mask.bias)
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)  # (B, C, N)
        weights = torch.softmax(self.mask(tokens), dim=2)  # (B, 1, N)
        context = torch.matmul(tokens, weights.transpose(1, 2))[:, :, 0]  # (B, C)
        added: Tensor = self.expand(F.relu(self.norm(self.reduce(context))))
        return (tokens + added.unsqueeze(2)).reshape(x.shape)

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """The one map of all positions, (B, *grid)."""
        position_index(x.shape[2:], position)
        return torch.softmax(self.mask(x.flatten(2)), dim=2).reshape(x.shape[0], *x.shape[2:])

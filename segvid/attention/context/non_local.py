"""Non-local block: every position is a weighted average of all positions.

Paper: Wang, Girshick, Gupta, He, "Non-local Neural Networks", CVPR 2018, section 3, https://arxiv.org/abs/1711.07971
Official code consulted: facebookresearch/video-nonlocal-net. As there, and unlike the text, the dot product is scaled
by `d ** -0.5`. Deliberate: its initial weights N(0, 0.01) are wider in blocks of less than 500 channels, where the
output would be so small beside the last batch norm's epsilon that nothing is learned.
"""

from torch import Tensor, nn

from segvid.attention.functional import softmax_attention


class NonLocal(nn.Module):
    """`z = BN(W_z y) + x` with `y_i = sum_j softmax_j(theta(x_i) . phi(x_j) / sqrt(d)) g(x_j)` (embedded Gaussian).

    Query, key and value are the paper's theta, phi and g. The last batch norm starts at zero, so the block starts as
    the identity.

    Args:
        channels: C of the input.
        inner_channels: d of query, key and value; the paper's C / 2 when None.
        scale: divide the dot product by sqrt(d), as the official code does.

    Shape:
        (B, C, *grid) -> (B, C, *grid), grid of any number of axes.
    """

    def __init__(self, channels: int, *, inner_channels: int | None = None, scale: bool = True) -> None:
        super().__init__()
        inner = inner_channels or max(channels // 2, 1)
        self.scale = inner**-0.5 if scale else 1.0
        self.query = nn.Conv1d(channels, inner, 1)
        self.key = nn.Conv1d(channels, inner, 1)
        self.value = nn.Conv1d(channels, inner, 1)
        self.out = nn.Conv1d(inner, channels, 1)
        self.norm = nn.BatchNorm1d(channels)
        for conv in (self.query, self.key, self.value, self.out):
            nn.init.normal_(conv.weight, std=max(0.01, (0.05 / channels) ** 0.5))
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)  # (B, C, N)
        query = self.query(tokens).transpose(1, 2)  # (B, N, d)
        key = self.key(tokens).transpose(1, 2)
        value = self.value(tokens).transpose(1, 2)
        y = softmax_attention(query, key, value, self.scale).transpose(1, 2)  # (B, d, N)
        z: Tensor = self.norm(self.out(y)).reshape(x.shape)
        return z + x

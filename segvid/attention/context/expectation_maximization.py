"""Expectation-maximisation attention: the feature map is rebuilt from a few bases that EM fits to it.

Paper: Li, Zhong, Wu, Yang, Lin, Liu, "Expectation-Maximization Attention Networks for Semantic Segmentation", ICCV
2019, section 3, https://arxiv.org/abs/1907.13426
Official code consulted: XiaLiPKU/EMANet. As there, EM runs without gradient, so the first convolution never learns: it
is frozen here, where the official code leaves it without a gradient. Deliberate: the moving average of the bases is
taken in the module, in the training forward, and averaged over all ranks (their batches being of one size).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import matmul_float32, position_index


class ExpectationMaximizationAttention(nn.Module):
    """`ReLU(BN(W2 ReLU(mu z^T)) + x)`, mu (C, K) and z (N, K) from T steps of EM on `W1 x`.

    E step: `z = softmax_k(x^T mu)`. M step: mu = weighted mean of x with weights z, then L2-normalised over C.
    The starting bases are a buffer; in training it moves towards the fitted ones:
    `bases = momentum * bases + (1 - momentum) * mean of mu over the global batch` (not re-normalised, as released).

    Args:
        channels: C of the input.
        bases: K.
        iterations: T.
        momentum: how much of the old bases is kept at each training step.
        em_grad: let gradients flow through EM (a different model from the paper's; the first convolution then learns).
        learned_bases: the starting bases are learned by gradient instead of moved; needs `em_grad`. With one iteration
            this is close to double attention.

    Shape:
        (B, C, *grid) -> (B, C, *grid), grid of any number of axes.
    """

    bases: Tensor

    def __init__(
        self,
        channels: int,
        *,
        bases: int = 64,
        iterations: int = 3,
        momentum: float = 0.9,
        em_grad: bool = False,
        learned_bases: bool = False,
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations is {iterations}; EM needs at least one step.")
        if learned_bases and not em_grad:
            raise ValueError("learned_bases needs em_grad: without it no gradient reaches the bases.")
        self.iterations = iterations
        self.learned_bases = learned_bases
        self.momentum = momentum
        self.em_grad = em_grad
        self.conv1 = nn.Conv1d(channels, channels, 1)
        self.conv2 = nn.Conv1d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm1d(channels)
        for conv in (self.conv1, self.conv2):
            nn.init.normal_(conv.weight, std=(2.0 / channels) ** 0.5)
        if not em_grad:
            self.conv1.requires_grad_(False)
        start = torch.randn(1, channels, bases) * (2.0 / bases) ** 0.5
        start = F.normalize(start, dim=1)
        if learned_bases:
            self.bases = nn.Parameter(start)
        else:
            self.register_buffer("bases", start)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv1(x.flatten(2))  # (B, C, N)
        if self.em_grad:
            mu, z = self.expectation_maximization(tokens)
        else:
            with torch.no_grad():
                mu, z = self.expectation_maximization(tokens)
        if self.training and not self.learned_bases:
            self.update_bases(mu.detach())
        rebuilt = torch.matmul(mu.to(x.dtype), z.transpose(1, 2).to(x.dtype))  # (B, C, N)
        return F.relu(self.norm(self.conv2(F.relu(rebuilt))).reshape(x.shape) + x)

    def expectation_maximization(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """T steps of EM in float32 or better: (B, C, N) -> mu (B, C, K), z (B, N, K)."""
        mu = self.bases.repeat(tokens.shape[0], 1, 1)
        z = mu  # only so that TorchScript sees it defined
        for _ in range(self.iterations):
            z = torch.softmax(matmul_float32(tokens.transpose(1, 2), mu), dim=2)  # (B, N, K), E step
            mu = matmul_float32(tokens, z / (1e-6 + z.sum(dim=1, keepdim=True)))  # (B, C, K), M step
            mu = mu / (1e-6 + torch.linalg.vector_norm(mu, dim=1, keepdim=True))
        return mu, z

    @torch.jit.unused
    @torch.no_grad()
    def update_bases(self, mu: Tensor) -> None:
        """Moves the starting bases towards the mean of `mu` (B, C, K) over the batches of all ranks."""
        mean = mu.mean(dim=0, keepdim=True).to(self.bases.dtype)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(mean)
            mean /= torch.distributed.get_world_size()
        self.bases.mul_(self.momentum).add_(mean, alpha=1.0 - self.momentum)

    def responsibilities(self, x: Tensor) -> Tensor:
        """z after the last E step, (B, N, K)."""
        return self.expectation_maximization(self.conv1(x.flatten(2)))[1]

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Affinity of the reconstruction, `z_i . z_j / sum_n z_nk` (the length of the bases left out), (B, *grid)."""
        z = self.responsibilities(x)
        row = z[:, position_index(x.shape[2:], position)]  # (B, K)
        weights = torch.einsum("bk,bnk->bn", row, z / (1e-6 + z.sum(dim=1, keepdim=True)))
        return weights.reshape(x.shape[0], *x.shape[2:])

    def regions(self, x: Tensor) -> Tensor:
        """How much each basis answers for each position, (B, K, *grid)."""
        return self.responsibilities(x).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])

"""LatentGNN: non-local relations through a small set of latent nodes.

Paper: Zhang, He, Yan, "LatentGNN: Learning Efficient Non-local Relations for Visual Recognition", ICML 2019,
section 3, https://arxiv.org/abs/1905.11634
Official code consulted: latentgnn/LatentGNN-V1-PyTorch. As there, the bipartite weights are L2-normalised. Not here:
its option `graph_conv_flag`, off by default there too, a convolution, batch norm and ReLU behind each kernel.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import position_index
from segvid.attention.layers import point_conv_bn_relu


class LatentKernel(nn.Module):
    """One latent graph: `psi_back^T A (psi_in a^T)`, A = softmax of the cosine similarities of the latent nodes.

    Args:
        channels: channels of a and b.
        nodes: K.
        symmetric: one psi, normalised over the nodes, for both directions.
        passing: False sets A to the identity.

    Shape:
        a, b (B, c, N) -> (B, c, N).
    """

    def __init__(self, channels: int, nodes: int, *, symmetric: bool, passing: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.passing = passing
        self.psi_in = point_conv_bn_relu(channels, nodes)
        self.psi_back = nn.Identity() if symmetric else point_conv_bn_relu(channels, nodes)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        psi_in, psi_back = self.psi(a, b)  # (B, K, N)
        z = torch.matmul(psi_in, a.transpose(1, 2))  # (B, K, c)
        if self.passing:
            z = torch.matmul(self.adjacency(z), z)
        return torch.matmul(z.transpose(1, 2), psi_back)

    def psi(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Weights between positions and latent nodes, there and back, (B, K, N) each."""
        if self.symmetric:
            psi = F.normalize(self.psi_in(a), dim=1)
            return psi, psi
        return F.normalize(self.psi_in(a), dim=2), F.normalize(self.psi_back(b), dim=1)

    def adjacency(self, z: Tensor) -> Tensor:
        """(B, K, c) -> (B, K, K)."""
        unit = F.normalize(z, dim=2)
        return torch.softmax(torch.matmul(unit, unit.transpose(1, 2)), dim=2)


class LatentGNN(nn.Module):
    """`x + gamma * BN(W concat(kernel_1, kernel_2, ...))` on a reduced, normalised map; gamma starts at 0.

    Args:
        channels: C of the input.
        latent: latent nodes of each kernel.
        reduction: the kernels work on C / reduction channels.
        symmetric: one set of features and weights for both directions.
        passing: message passing between the latent nodes.

    Shape:
        (B, C, *grid) -> (B, C, *grid), grid of any number of axes.
    """

    def __init__(
        self,
        channels: int,
        *,
        latent: Sequence[int] = (100, 100),
        reduction: int = 4,
        symmetric: bool = False,
        passing: bool = True,
    ) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.symmetric = symmetric
        self.a = nn.Sequential(nn.Conv1d(channels, inner, 1, bias=False), nn.BatchNorm1d(inner))
        self.b = (
            nn.Identity()
            if symmetric
            else nn.Sequential(nn.Conv1d(channels, inner, 1, bias=False), nn.BatchNorm1d(inner))
        )
        self.kernels = nn.ModuleList(
            LatentKernel(inner, nodes, symmetric=symmetric, passing=passing) for nodes in latent
        )
        self.out = nn.Sequential(nn.Conv1d(len(latent) * inner, channels, 1, bias=False), nn.BatchNorm1d(channels))
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.features(x)
        maps = []
        for kernel in self.kernels:
            maps.append(kernel(a, b))
        z: Tensor = self.out(torch.cat(maps, dim=1)).reshape(x.shape)
        return x + self.gamma * z

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The reduced map for the way in and for the way back, each position of length 1, (B, c, N)."""
        tokens = x.flatten(2)
        a = F.normalize(self.a(tokens), dim=1)
        return a, (a if self.symmetric else F.normalize(self.b(tokens), dim=1))

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Affinity in through the latent graph and back, averaged over the kernels, (B, *grid)."""
        a, b = self.features(x)
        index = position_index(x.shape[2:], position)
        rows = []
        for kernel in cast(list[LatentKernel], self.kernels):
            psi_in, psi_back = kernel.psi(a, b)
            row = psi_back[:, :, index]  # (B, K)
            if kernel.passing:
                row = torch.einsum("bk,bkl->bl", row, kernel.adjacency(torch.matmul(psi_in, a.transpose(1, 2))))
            rows.append(torch.einsum("bk,bkn->bn", row, psi_in))
        return torch.stack(rows).mean(dim=0).reshape(x.shape[0], *x.shape[2:])

    def regions(self, x: Tensor) -> Tensor:
        """Weights of the latent nodes of all kernels on the way back, (B, sum of latent, *grid)."""
        a, b = self.features(x)
        weights = [cast(LatentKernel, kernel).psi(a, b)[1] for kernel in self.kernels]
        return torch.cat(weights, dim=1).reshape(x.shape[0], -1, *x.shape[2:])

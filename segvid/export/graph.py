"""What an exported file computes: from an image as it is read to scores or classes at its size."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InferenceGraph(nn.Module):
    """The evaluation path of a model alone: normalisation, backbone, head, upsampling.

    Args:
        backbone: image to feature maps.
        head: feature maps to logits.
        mean: of the normalisation, of colours in 0..1.
        std: likewise.
        output_type: "logits", "probabilities" or "classes".

    Shape:
        image: RGB (B, 3, H, W), uint8 in 0..255 or floating point in 0..1.
        returns (B, num_classes, H, W) float32, or for "classes" (B, H, W) uint8.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, mean: Sequence[float], std: Sequence[float], output_type: str
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.output_type = output_type
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Scores or classes at image size."""
        pixels = image if torch.is_floating_point(image) else image.float() / 255
        normalised = (pixels.float() - self.mean) / self.std
        logits: Tensor = self.head(self.backbone(normalised))
        logits = F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)
        if self.output_type == "probabilities":
            return torch.softmax(logits, dim=1)
        if self.output_type == "classes":
            return logits.argmax(dim=1).to(torch.uint8)
        return logits

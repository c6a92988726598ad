"""Losses on logits at mask size. All ignore the label 255 and give 0 (with a gradient) where nothing is labelled."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.data.reading import IGNORED
from segvid.errors import UserError
from segvid.recorded import Recorded


class SegmentationLoss(Recorded, nn.Module):
    """A loss of logits (B, num_classes, H, W) and mask (B, H, W) int64; a scalar, at least in float32."""

    def __call__(self, logits: Tensor, mask: Tensor) -> Any:
        """The loss of a batch; under any precision of the training its sums are in float32."""
        with torch.autocast(logits.device.type, enabled=False):
            return super().__call__(logits.float() if logits.dtype.itemsize < 4 else logits, mask)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The loss of a batch."""
        raise NotImplementedError

    def weight(self, mask: Tensor) -> Tensor:
        """What every image counts in the mean over a data set, (B, H, W) -> (B,): its pixels that are not ignored."""
        return (mask != IGNORED).flatten(1).sum(dim=1)


class CrossEntropy(SegmentationLoss):
    """Cross entropy averaged over the pixels that count.

    As `torch.nn.CrossEntropyLoss(weight, ignore_index=255)`, which the papers use, but 0 and not NaN where every pixel
    is ignored. (mmsegmentation divides by all pixels, the ignored ones too.)

    Args:
        class_weights: one weight per class; the average is then weighted by them.
    """

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        # No buffer: a model in half precision would round it, and a trained model is of use without it.
        self.class_weights = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        weights = self.class_weights
        if weights is not None and len(weights) != logits.shape[1]:
            raise UserError(f"The loss has {len(weights)} class weights, but there are {logits.shape[1]} classes.")
        if weights is not None:
            weights = self.class_weights = weights.to(logits.device)
        total = F.cross_entropy(
            logits, mask, weight=None if weights is None else weights.to(logits), ignore_index=IGNORED, reduction="sum"
        )
        count = self.weight(mask).sum()
        return total / torch.where(count > 0, count, torch.ones_like(count))

    def weight(self, mask: Tensor) -> Tensor:
        """The weights of its classes, summed over the pixels that are not ignored; without weights their number."""
        if self.class_weights is None:
            return super().weight(mask)
        counted = mask != IGNORED
        weights = self.class_weights.to(mask.device)
        return (weights[torch.where(counted, mask, 0)] * counted).flatten(1).sum(dim=1)


class OhemCrossEntropy(SegmentationLoss):
    """Cross entropy over the hard pixels: those whose class has a probability below `threshold`.

    If they are fewer than `min_kept` an image, the hardest `min_kept` x B pixels of the batch are taken. Shrivastava,
    Gupta, Girshick, "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016; in the form of
    the segmentation papers (CCNet, OCNet, EMANet on Cityscapes: 0.7 and 100,000).

    The mean is over the kept pixels, as in the code that those papers released (the others get the ignored label).
    mmsegmentation's OHEMPixelSampler weighs the others with 0 and divides by all pixels of the batch, the ignored ones
    too: its loss and gradients are smaller by the share that is kept, and fall as training proceeds.

    Args:
        threshold: probability of the true class below which a pixel is hard.
        min_kept: pixels of an image that are kept at least, on average over the batch.
        class_weights: one weight per class.
    """

    def __init__(
        self, threshold: float = 0.7, min_kept: int = 100_000, class_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.min_kept = min_kept
        self.cross_entropy = CrossEntropy(class_weights)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        counted = mask != IGNORED
        if not bool(counted.any()):
            return logits.sum() * 0.0
        with torch.no_grad():
            index = torch.where(counted, mask, torch.zeros_like(mask)).unsqueeze(1)
            probability = logits.float().softmax(dim=1).gather(1, index).squeeze(1)  # (B, H, W)
            confident, _ = probability[counted].sort()
            kept = min(self.min_kept * len(mask), len(confident))
            hard = counted & (probability < self.threshold)
            if kept > 0:
                hard = hard | (counted & (probability <= confident[kept - 1]))
        loss: Tensor = self.cross_entropy(logits, torch.where(hard, mask, torch.full_like(mask, IGNORED)))
        return loss


class Dice(SegmentationLoss):
    """Dice loss of segmentation-models-pytorch, averaged over all classes; one that is absent from the batch adds 0.

    Milletari, Navab, Ahmadi, "V-Net", 3DV 2016, section 3, https://arxiv.org/abs/1606.04797
    """

    def __init__(self) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp  # a second, for who uses it

        self.dice = smp.losses.DiceLoss(mode="multiclass", ignore_index=IGNORED)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        loss: Tensor = self.dice(logits, mask)
        return loss


class Lovasz(SegmentationLoss):
    """Lovasz-softmax loss of segmentation-models-pytorch.

    Berman, Triki, Blaschko, "The Lovasz-Softmax loss", CVPR 2018, https://arxiv.org/abs/1705.08790
    """

    def __init__(self) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp

        self.lovasz = smp.losses.LovaszLoss(mode="multiclass", ignore_index=IGNORED)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        if not bool((mask != IGNORED).any()):
            return logits.sum() * 0.0
        loss: Tensor = self.lovasz(logits, mask)
        return loss


class WeightedSum(SegmentationLoss):
    """A sum of losses, for example cross entropy + Dice.

    Args:
        losses: the terms.
        weights: one factor for each; all 1 when None.
    """

    def __init__(self, losses: list[SegmentationLoss], weights: list[float] | None = None) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = [1.0] * len(losses) if weights is None else weights
        if len(self.weights) != len(losses):
            raise UserError(f"WeightedSum has {len(losses)} losses but {len(self.weights)} weights.")

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        total = logits.new_zeros(())
        for weight, loss in zip(self.weights, self.losses, strict=True):
            total = total + weight * loss(logits, mask)
        return total

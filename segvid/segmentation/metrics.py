"""All figures of a segmentation from one int64 confusion matrix over the whole data set.

Equal to mmsegmentation's definition: mIoU is the mean over the classes that occur, in the masks or in the predictions,
of intersection / union over *all* pixels of the set; 255 is ignored. (`torchmetrics.segmentation.MeanIoU` averages
over images and cannot ignore a label: another number.)
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.utilities import dim_zero_cat

from segvid.data.reading import IGNORED


def confusion_matrix(num_classes: int) -> MulticlassConfusionMatrix:
    """A metric that counts pixels: row = label, column = prediction, int64, summed over ranks; 255 is not counted.

    Labels are checked where the files are read, so not here once more for every pixel.
    """
    return MulticlassConfusionMatrix(num_classes, ignore_index=IGNORED, validate_args=False)


class ImageMean(Metric):
    """The mean of a number over all images, each with a weight of its own.

    The numbers are kept image by image and summed at the end, without a rounding error: so the mean depends neither on
    the batches nor on how many processes shared the images.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, values: Tensor, weights: Tensor) -> None:
        """Adds images: (B,) and (B,)."""
        self.rows.append(torch.stack([values.detach().float(), weights.float()], dim=1))

    def compute(self) -> float:
        """The mean; NaN where all weights are 0."""
        rows = dim_zero_cat(self.rows).double().cpu().tolist()
        total = math.fsum(weight for _, weight in rows)
        return math.fsum(value * weight for value, weight in rows) / total if total else math.nan


@dataclass(frozen=True)
class SegmentationScores:
    """Figures in 0 to 1; a class that occurs neither in the masks nor in the predictions is NaN and not averaged.

    Attributes:
        mIoU: mean intersection over union.
        mAcc: mean recall over the classes that occur in the masks.
        aAcc: share of the pixels that are right.
        mDice: mean Dice coefficient (F1).
        fwIoU: IoU averaged with the classes' share of the labelled pixels as weights.
        iou: IoU of every class.
        accuracy: recall of every class.
        dice: Dice of every class.
    """

    mIoU: float
    mAcc: float
    aAcc: float
    mDice: float
    fwIoU: float
    iou: list[float]
    accuracy: list[float]
    dice: list[float]

    def means(self) -> dict[str, float]:
        """The five figures that stand for the whole set."""
        return {"mIoU": self.mIoU, "mAcc": self.mAcc, "aAcc": self.aAcc, "mDice": self.mDice, "fwIoU": self.fwIoU}

    def asdict(self) -> dict[str, Any]:
        """All figures as plain data."""
        return asdict(self)


def scores(confusion: Tensor) -> SegmentationScores:
    """The figures of a confusion matrix.

    Args:
        confusion: (C, C) counts, row = label, column = prediction.
    """
    matrix = confusion.detach().cpu().double()
    hit = matrix.diag()
    labelled = matrix.sum(dim=1)
    predicted = matrix.sum(dim=0)
    iou = hit / (labelled + predicted - hit)  # 0 / 0 = NaN: the class does not occur
    accuracy = hit / labelled
    dice = 2 * hit / (labelled + predicted)
    total = matrix.sum()
    return SegmentationScores(
        mIoU=float(iou.nanmean()),
        mAcc=float(accuracy.nanmean()),
        aAcc=float(hit.sum() / total),
        mDice=float(dice.nanmean()),
        fwIoU=float((labelled / total * torch.nan_to_num(iou)).sum()),
        iou=iou.tolist(),
        accuracy=accuracy.tolist(),
        dice=dice.tolist(),
    )

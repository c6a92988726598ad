"""Data sets: Dataset and DataModule of one data set in one file."""

from segvid.data.cityscapes import Cityscapes
from segvid.data.digits import DigitScenes
from segvid.data.folder import FolderSegmentation
from segvid.data.probe import ProbeScenes
from segvid.data.segmentation import Augmentation, SegmentationDataModule
from segvid.data.voc import VOC

__all__ = [
    "VOC",
    "Augmentation",
    "Cityscapes",
    "DigitScenes",
    "FolderSegmentation",
    "ProbeScenes",
    "SegmentationDataModule",
]

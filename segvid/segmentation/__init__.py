"""Semantic segmentation: task, losses, metrics and what a person looks at; heads are in `segvid.segmentation.heads`.

The names are imported when they are first asked for: heads alone need none of Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segvid.segmentation.distance import DistanceAccuracy
    from segvid.segmentation.inference import Inference
    from segvid.segmentation.losses import CrossEntropy, Dice, Lovasz, OhemCrossEntropy, SegmentationLoss, WeightedSum
    from segvid.segmentation.metrics import SegmentationScores
    from segvid.segmentation.pictures import PredictionPanels
    from segvid.segmentation.reporting import EvaluationReport
    from segvid.segmentation.schedule import PolyLR
    from segvid.segmentation.task import SegmentationTask
    from segvid.segmentation.trained import TrainedModel, load_trained

__all__ = [
    "CrossEntropy",
    "Dice",
    "DistanceAccuracy",
    "EvaluationReport",
    "Inference",
    "Lovasz",
    "OhemCrossEntropy",
    "PolyLR",
    "PredictionPanels",
    "SegmentationLoss",
    "SegmentationScores",
    "SegmentationTask",
    "TrainedModel",
    "WeightedSum",
    "load_trained",
]
MODULES = {
    "distance": ("DistanceAccuracy",),
    "inference": ("Inference",),
    "losses": ("CrossEntropy", "Dice", "Lovasz", "OhemCrossEntropy", "SegmentationLoss", "WeightedSum"),
    "metrics": ("SegmentationScores",),
    "pictures": ("PredictionPanels",),
    "reporting": ("EvaluationReport",),
    "schedule": ("PolyLR",),
    "task": ("SegmentationTask",),
    "trained": ("TrainedModel", "load_trained"),
}


def __getattr__(name: str) -> Any:
    for module, names in MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

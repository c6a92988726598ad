"""A trained model as its checkpoint describes it: weights, classes, and how images were prepared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import cv2
import numpy as np
import torch
from torch import Tensor

from segvid.data.reading import Array, voc_palette
from segvid.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from segvid.errors import UserError
from segvid.segmentation.inference import Inference, class_scores
from segvid.segmentation.task import SegmentationTask


@dataclass(frozen=True)
class TrainedModel:
    """A task in evaluation, with what its data module said of the images.

    Args:
        task: the model.
        class_names: of its classes.
        palette: their colours.
        image_size: height and width that images are brought to; their own when None.
        mean: of the normalisation.
        std: likewise.
    """

    task: SegmentationTask
    class_names: list[str]
    palette: list[tuple[int, int, int]]
    image_size: tuple[int, int] | None
    mean: Sequence[float]
    std: Sequence[float]

    def resized(self, picture: Array) -> Array:
        """The picture (H, W, 3) at the size that the model was trained for."""
        if self.image_size is None:
            return picture
        height, width = self.image_size
        return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)

    def normalised(self, picture: Array) -> Tensor:
        """The picture (H, W, 3) as the model takes it, (3, H, W)."""
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
        return ((pixels.float() / 255 - mean) / std).to(self.task.device)

    @torch.inference_mode()
    def classes(self, pictures: Sequence[Array], how: Inference) -> list[Array]:
        """The class index of every pixel, (H, W) uint8, at the pictures' own size; they must all have one."""
        images = torch.stack([self.normalised(self.resized(picture)) for picture in pictures])
        model = self.task
        scores = class_scores(lambda x: model.head(model.backbone(x)), images, pictures[0].shape[:2], how)
        return list(scores.argmax(dim=1).byte().cpu().numpy())


def load_trained(path: Path) -> TrainedModel:
    """The model of a checkpoint, in evaluation on the CPU.

    Raises:
        UserError: there is no such file, or it is no checkpoint of a training.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path} (--ckpt_path).")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True).get("data", {})
        task = SegmentationTask.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    except (UnpicklingError, AttributeError, KeyError, TypeError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} is no checkpoint of a segvid training ({type(error).__name__}).") from error
    size = data.get("image_size")
    return TrainedModel(
        task,
        list(data.get("class_names", [f"class {index}" for index in range(task.num_classes)])),
        [(int(r), int(g), int(b)) for r, g, b in data.get("palette", voc_palette(task.num_classes))],
        None if size is None else (int(size[0]), int(size[1])),
        tuple(data.get("mean", IMAGENET_MEAN)),
        tuple(data.get("std", IMAGENET_STD)),
    )

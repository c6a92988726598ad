"""A trained model as its checkpoint describes it: weights, classes, and how images were prepared."""

from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from segvid.allowed import explain_refusal, restrict_imports
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
        return resized(picture, self.image_size)

    def normalised(self, picture: Array) -> Tensor:
        """The picture (H, W, 3) as the model takes it, (3, H, W)."""
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return ((pixels.float() / 255 - mean) / std).to(self.task.device)

    @torch.inference_mode()
    def classes(self, pictures: Sequence[Array], how: Inference) -> list[Array]:
        """The class index of every pixel, (H, W) uint8, at the pictures' own size; they must all have one."""
        images = torch.stack([self.normalised(self.resized(picture)) for picture in pictures])
        scores = class_scores(self.task, images, pictures[0].shape[:2], how)
        return list(scores.argmax(dim=1).byte().cpu().numpy())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, its tensors left in the file; nothing in it is executed.

    Raises:
        UserError: there is no such file, or it is no checkpoint of a training.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path} (--ckpt_path).")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not {"state_dict", "hyper_parameters"} <= content.keys():
            raise KeyError("hyper_parameters")
    except UnpicklingError as error:
        foreign = "global" in str(error).lower()  # the name of what an object would be built with
        reason = "it holds more than data: nothing of it was run" if foreign else "it is damaged or another file"
        raise UserError(f"{path} is no checkpoint of a segvid training ({reason}).") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint: it is damaged, cut off, or another file.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = "it does not hold a model and what it was built from"
        raise UserError(f"{path} is no checkpoint of a segvid training: {reason}.") from error
    return content


def load_trained(path: Path) -> TrainedModel:
    """The model of a checkpoint, in evaluation on the CPU.

    Raises:
        UserError: there is no such file, it is no checkpoint of a training, or it describes a model that cannot be
            built here.
    """
    restrict_imports()
    data = read_checkpoint(path).get("data", {})
    try:
        task = SegmentationTask.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    except (ArgumentError, TypeError, KeyError, AttributeError) as error:
        reason = explain_refusal(" ".join(str(error).split()))[:400]
        raise UserError(f"{path}: its model cannot be built. {reason}") from error
    return describe(task, data)


def resized(picture: Array, image_size: tuple[int, int] | None) -> Array:
    """The picture (H, W, 3) at a height and width; as it is when None."""
    if image_size is None:
        return picture
    height, width = image_size
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def describe(task: SegmentationTask, data: dict[str, Any]) -> TrainedModel:
    """A task with what its data module said."""
    size = data.get("image_size")
    return TrainedModel(
        task,
        list(data.get("class_names", [f"class {index}" for index in range(task.num_classes)])),
        [(int(r), int(g), int(b)) for r, g, b in data.get("palette", voc_palette(task.num_classes))],
        None if size is None else (int(size[0]), int(size[1])),
        tuple(data.get("mean", IMAGENET_MEAN)),
        tuple(data.get("std", IMAGENET_STD)),
    )

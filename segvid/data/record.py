"""What a data module says of its classes and of how it prepares images: a checkpoint keeps it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import cv2
import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from segvid.data.augmentation import IMAGENET_MEAN, IMAGENET_STD
from segvid.data.reading import Array, voc_palette
from segvid.errors import UserError
from segvid.files import checked
from segvid.text import plain

NAMES = ("class_names", "palette", "image_size", "mean", "std")
Byte = Annotated[int, Ge(0), Le(255)]
Length = Annotated[int, Gt(0)]
Mean = Annotated[float, Ge(-1e3), Le(1e3)]  # neither infinite nor NaN
Deviation = Annotated[float, Gt(0), Le(1e3)]


@dataclass(frozen=True)
class DataRecord:
    """What is known of the data of a model.

    Args:
        class_names: of its classes.
        palette: their colours.
        image_size: height and width that images are brought to; their own when None.
        mean: of the normalisation, per channel in 0 to 1.
        std: likewise.
    """

    class_names: list[str]
    palette: list[tuple[Byte, Byte, Byte]]
    image_size: tuple[Length, Length] | None = None
    mean: tuple[Mean, Mean, Mean] = IMAGENET_MEAN
    std: tuple[Deviation, Deviation, Deviation] = IMAGENET_STD


class Normalisation(Protocol):
    """Whatever has the mean and the standard deviation of its images."""

    @property
    def mean(self) -> Sequence[float]: ...

    @property
    def std(self) -> Sequence[float]: ...


def data_record(data: object) -> dict[str, Any]:
    """What a data module says, as plain data; a module of one's own may leave out any of it."""
    said = {name: getattr(data, name) for name in NAMES if hasattr(data, name)}
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in said.items()}


def complete(said: object, num_classes: int, where: Path | str) -> DataRecord:
    """What was said of the data, checked; what was not said is numbered classes, VOC's colours, ImageNet's statistics.

    Args:
        said: by a data module or in a file.
        num_classes: of the model.
        where: it was said, for messages.

    Raises:
        UserError: it is no such record, or one of another number of classes.
    """
    assumed = {"class_names": [f"class {k}" for k in range(num_classes)], "palette": voc_palette(num_classes)}
    record = checked(assumed | checked(said, dict[str, Any], where), DataRecord, where)
    for name in ("class_names", "palette"):
        if len(getattr(record, name)) != num_classes:
            raise UserError(
                f"{where}: field {name}: {len(getattr(record, name))} entries, but the model has {num_classes} classes."
            )
    return record


def check_same(trained: Mapping[str, Any], given: Mapping[str, Any], checkpoint: str) -> None:
    """Whether data are prepared as those that a model was trained with, their classes the same in the same order.

    Args:
        trained: what the checkpoint says of its data.
        given: what the data at hand say.
        checkpoint: its name.

    Raises:
        UserError: they are not.
    """
    different = []
    for name in ("class_names", "image_size", "mean", "std"):
        if name in trained and name in given and _listed(trained[name]) != _listed(given[name]):
            different.append(f"{name} {plain(_listed(trained[name]))} there, {plain(_listed(given[name]))} here")
    if different:
        raise UserError(
            f"{checkpoint} was trained with other data than those at hand: {'; '.join(different)}. Its figures would "
            "not mean what they say: correct the data's options, or, if it is meant, add --accept_other_data true (in "
            "Python: task.accept_other_data = True)."
        )


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def resized(picture: Array, image_size: tuple[int, int] | None) -> Array:
    """The picture (H, W, 3) at a height and width; as it is when None."""
    if image_size is None:
        return picture
    height, width = image_size
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def normalise(picture: Array, data: Normalisation) -> Tensor:
    """The picture (H, W, 3) as a model takes it, (3, H, W)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    return (torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255 - mean) / std


def denormalise(image: Tensor, data: Normalisation) -> Array:
    """A normalised image (3, H, W) as a picture (H, W, 3)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    pixels = (image.detach().float().cpu() * std + mean).clamp(0, 1) * 255
    return np.asarray(pixels.round().byte().permute(1, 2, 0))

"""What a task is given in Python, checked: a mistake is a sentence, and not what torch makes of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segvid.backbones.base import Backbone
from segvid.data.reading import IGNORED
from segvid.errors import UserError
from segvid.segmentation.heads.base import SegmentationHead
from segvid.segmentation.losses import SegmentationLoss
from segvid.text import plain

BATCH = 'a batch is {"image": (B, 3, H, W) floating point, "mask": (B, H, W) int64}'


def check_maps(features: object, backbone: nn.Module) -> Any:
    """What a backbone gives.

    Raises:
        UserError: it is one tensor, whose samples a head would take for maps.
    """
    if isinstance(features, Tensor):
        raise UserError(
            f"{type(backbone).__name__} gives one tensor where a head takes a list of maps, finest first: return [x]."
        )
    return features


def check_backbone(backbone: object) -> Backbone:
    """The backbone.

    Raises:
        UserError: it is none, or does not know its channels.
    """
    if not isinstance(backbone, Backbone):
        raise UserError(
            f"backbone is {_named(backbone)}; give an object of a subclass of segvid.backbones.Backbone, such as "
            'ResNet("resnet50c").'
        )
    if not hasattr(backbone, "channels"):
        raise UserError(
            f"{type(backbone).__name__} does not know its channels: call self.measure() at the end of its __init__."
        )
    return backbone


def check_loss(loss: object) -> SegmentationLoss:
    """The loss.

    Raises:
        UserError: it is none.
    """
    if not isinstance(loss, SegmentationLoss):
        raise UserError(
            f"loss is {_named(loss)}; give an object of a subclass of segvid.segmentation.SegmentationLoss, such as "
            "CrossEntropy()."
        )
    return loss


def make_head(factory: Any, option: str, channels: Sequence[int], num_classes: int) -> SegmentationHead:
    """The head that a factory makes.

    Raises:
        UserError: what was given is no factory, or makes something else.
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        raise UserError(
            f"{option} is {_named(factory)}, not what makes one: give the class itself, such as DANetHead, or "
            "functools.partial(DANetHead, channels=32). The task fills in channels and number of classes."
        )
    made = factory(channels, num_classes)
    if not isinstance(made, SegmentationHead):
        raise UserError(
            f"{option} makes one {_named(made)}; it has to be of a subclass of "
            "segvid.segmentation.heads.base.SegmentationHead."
        )
    return made


def _named(value: object) -> str:
    return "None" if value is None else f"of the type {type(value).__name__}"


def check_batch(batch: Any) -> None:
    """A batch as the task takes it.

    Raises:
        UserError: it is another.
    """
    if not isinstance(batch, Mapping) or not all(isinstance(batch.get(name), Tensor) for name in ("image", "mask")):
        found = f"the keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise UserError(f"The loader gives {found}; {BATCH}.")
    image, mask = batch["image"], batch["mask"]
    if (image.ndim, mask.ndim, mask.dtype) != (4, 3, torch.int64) or not image.is_floating_point():
        found = ", ".join(f"{name} {tuple(batch[name].shape)} {batch[name].dtype}" for name in ("image", "mask"))
        raise UserError(f"The loader gives {found}; {BATCH}.")


def check_labels(batch: Mapping[str, Any], num_classes: int) -> None:
    """The labels of a batch.

    Raises:
        UserError: one is none of the classes, and not ignored.
    """
    mask: Tensor = batch["mask"]
    if not mask.numel():
        return
    least, greatest = (int(value) for value in mask.aminmax())
    if least >= 0 and greatest <= IGNORED:
        greatest = int((mask.to(torch.uint8) + 1).max()) - 1  # the ignored label wraps around to 0
    if least < 0 or greatest >= num_classes:
        files = plain(", ".join(map(str, batch.get("name", []))))
        raise UserError(
            f"A mask has the label {least if least < 0 else greatest}{f' (one of {files})' if files else ''}; labels "
            f"go from 0 to {num_classes - 1}, and {IGNORED} is ignored. Correct the masks, or num_classes."
        )


def unrecorded(record: Mapping[str, Any], weights: Mapping[str, Any]) -> list[str]:
    """The parts of a task that have weights, and of which a record does not say how they are made, or says so."""
    said = record.get("unrecorded")
    if isinstance(said, list):
        return [plain(name) for name in said]
    parts = dict.fromkeys(key.split(".")[0] for key in weights)
    return [name for name in ("backbone", "head", "auxiliary_head", "loss") if name in parts and name not in record]

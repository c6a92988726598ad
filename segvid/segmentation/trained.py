"""A trained model as its checkpoint describes it: weights, classes, and how images were prepared."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from segvid.allowed import check_model, explain_refusal, restrict_imports
from segvid.data.reading import Array
from segvid.data.record import complete, normalise, resized
from segvid.errors import UserError, user_message
from segvid.files import checked
from segvid.segmentation.checks import unrecorded
from segvid.segmentation.inference import Inference, class_scores
from segvid.segmentation.task import SegmentationTask
from segvid.text import plain


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
        return normalise(picture, self).to(self.task.device)

    @torch.inference_mode()
    def scores_of(self, pictures: Sequence[Array], how: Inference) -> Tensor:
        """Scores of the classes, (B, C, H, W), whose softmax are probabilities; pictures must all have one size.

        Raises:
            UserError: they are no numbers.
        """
        images = torch.stack([self.normalised(self.resized(picture)) for picture in pictures])
        return finite(class_scores(self.task, images, pictures[0].shape[:2], how))

    def classes(self, pictures: Sequence[Array], how: Inference) -> list[Array]:
        """The class index of every pixel, (H, W) uint8, at the pictures' own size; they must all have one."""
        return list(self.scores_of(pictures, how).argmax(dim=1).byte().cpu().numpy())


def finite(scores: Tensor) -> Tensor:
    """The scores of a model.

    Raises:
        UserError: not all of them are numbers.
    """
    if not scores.isfinite().all():
        raise UserError(
            "the scores of the model are no numbers (NaN or infinite): its weights are broken, or the mean and std of "
            "its normalisation. Nothing is predicted with it; take an earlier checkpoint."
        )
    return scores


@dataclass(frozen=True)
class Content:
    """What a checkpoint has to hold, and of which kind it is."""

    state_dict: dict[str, Any]
    hyper_parameters: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    global_step: int = 0


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
    checked(content, Content, path)
    return content


def load_trained(path: Path) -> TrainedModel:
    """The model of a checkpoint, in evaluation on the CPU.

    Raises:
        UserError: there is no such file, it is no checkpoint of a training, or it describes a model that cannot be
            built here.
    """
    content = read_checkpoint(path)
    data = content.get("data", {})
    model = describe(rebuild(content, path).eval(), data, f"{path}: data")
    if "mean" not in data:
        print(f"{plain(path)} does not say how images are normalised: ImageNet's mean and std taken.", file=sys.stderr)
    return model


# Arguments of a task that training needs, and a trained model does not.
OF_TRAINING = (
    "_instantiator",
    "optimizer",
    "lr_scheduler",
    "lr_interval",
    "head_lr_multiplier",
    "decay_norm_and_bias",
    "loss",
    "auxiliary_weight",
    "inference",
    "compile",
)


def rebuild(content: dict[str, Any], path: Path) -> SegmentationTask:
    """The task that a checkpoint describes, with its weights: backbone and heads, nothing else is built or fetched.

    Args:
        content: of the checkpoint.
        path: of the checkpoint, for messages.

    Raises:
        UserError: what it describes cannot be built here, or may not be, or the weights are of something else.
    """
    restrict_imports()
    missing = unrecorded(content["hyper_parameters"], content["state_dict"])
    if missing:
        raise UserError(
            f"{path} is of a task that was built in Python, and does not say how to build its {' and '.join(missing)}. "
            "A class can be recorded, or functools.partial of one, from a module that can be imported, with numbers, "
            "words and lists as arguments: with such ones load it in Python (SegmentationTask.load_from_checkpoint("
            "path, backbone=..., head=...)) and save it again."
        )
    try:
        record = {name: value for name, value in content["hyper_parameters"].items() if name not in OF_TRAINING}
        class_path = record.pop("_class_path", f"{SegmentationTask.__module__}.{SegmentationTask.__qualname__}")
        check_model(record, path)
        own_weights = record["backbone"].get("init_args", {})
        if "weights" in own_weights:  # they are in this file: no hub is asked for others
            record["backbone"] = record["backbone"] | {"init_args": own_weights | {"weights": None}}
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(SegmentationTask, "model", fail_untyped=False)
        options = parser.parse_object({"model": {"class_path": class_path, "init_args": record}})
        task = parser.instantiate(options).model
        weights = {
            k: v for k, v in content["state_dict"].items() if not k.startswith(("loss.", "losses.", "confusion."))
        }
    except UserError:
        raise
    except Exception as error:  # a record can be wrong in any way
        reason = user_message(error) or explain_refusal(" ".join(str(error).split()))[:400]
        raise UserError(f"{path}: its model cannot be built. {reason}") from error
    assert isinstance(task, SegmentationTask)
    task.load_state_dict(weights)
    return task


def describe(task: SegmentationTask, data: dict[str, Any], where: Path | str = "data") -> TrainedModel:
    """A task with what its data module said.

    Args:
        task: the model.
        data: see `segvid.data.record`.
        where: the record is from, for messages.

    Raises:
        UserError: it is none of this model.
    """
    return TrainedModel(task, **asdict(complete(data, task.num_classes, where)))

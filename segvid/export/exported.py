"""An exported file as a model that `segvid predict` can use."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segvid.data.reading import Array, DataError
from segvid.data.record import resized
from segvid.errors import UserError
from segvid.export.formats import read_record
from segvid.export.run_file import Run, load
from segvid.segmentation.inference import Inference, class_scores
from segvid.segmentation.trained import finite


@dataclass(frozen=True)
class ExportedModel:
    """A file that `segvid export` wrote, with what it says of itself.

    Args:
        file: the file.
        run: images to what it gives.
        class_names: of its classes.
        palette: their colours.
        image_size: height and width that images are brought to; their own when None.
        input_type: "uint8", "float32", or "uint8 or float32".
        output_type: "logits", "probabilities" or "classes".
        multiple: heights and widths that it takes.
        minimum: likewise.
    """

    file: Path
    run: Run
    class_names: list[str]
    palette: list[tuple[int, int, int]]
    image_size: tuple[int, int] | None
    input_type: str
    output_type: str
    multiple: int
    minimum: int

    def classes(self, pictures: Sequence[Array], how: Inference) -> list[Array]:
        """The class index of every pixel, (H, W) uint8, at the pictures' own size; they must all have one.

        Raises:
            UserError: the file cannot evaluate images in this way, or not of this size.
        """
        if self.output_type != "classes":
            return list(self.scores_of(pictures, how).argmax(dim=1).byte().numpy())
        if how != Inference():
            raise UserError(f"{self.file} gives classes, no scores to be averaged: export it with logits.")
        images, size = self.prepared(pictures, how)
        if images.shape[-2:] != size:
            raise DataError(
                f"{self.file} gives the classes of images of {images.shape[-2]} x {images.shape[-1]} (its training "
                "had image_size), and classes cannot be resized: export it with logits."
            )
        return list(self.checked(images))

    def scores_of(self, pictures: Sequence[Array], how: Inference) -> Tensor:
        """Scores of the classes, (B, C, H, W), whose softmax are probabilities; pictures must all have one size.

        Raises:
            UserError: the file gives none, cannot evaluate images in this way, or what it gives are no numbers.
        """
        if self.output_type == "classes":
            raise UserError(f"{self.file} gives classes, no scores: export it with logits.")
        images, size = self.prepared(pictures, how)
        return finite(class_scores(self.scores, images, size, how))

    def prepared(self, pictures: Sequence[Array], how: Inference) -> tuple[Tensor, tuple[int, ...]]:
        """The pictures as the file takes them, and the size that they had.

        Raises:
            UserError: the file cannot evaluate images in this way.
        """
        size = pictures[0].shape[:2]
        images = torch.from_numpy(np.stack([resized(picture, self.image_size) for picture in pictures]))
        images = images.permute(0, 3, 1, 2)
        scaled = tuple(how.scales) != (1.0,)
        if scaled and self.input_type == "uint8":
            raise UserError(f"{self.file} takes uint8: for --scales export it with --input_type float32.")
        if scaled or self.input_type == "float32":
            images = images.float() / 255
        return images, size

    def scores(self, images: Tensor) -> Tensor:
        """Logits, or log probabilities, which have the same softmax."""
        found = torch.from_numpy(self.checked(images))
        tiny = torch.finfo(torch.float32).tiny
        return found if self.output_type == "logits" else found.clamp(min=tiny).log()

    def checked(self, images: Tensor) -> Array:
        """What the file gives for images of a size that it takes."""
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple or min(height, width) < self.minimum:
            raise DataError(
                f"{self.file} takes heights and widths of at least {self.minimum} pixels"
                + (f" in multiples of {self.multiple}" if self.multiple > 1 else "")
                + f"; this image or window has {height} x {width}."
            )
        return self.run(np.ascontiguousarray(images.numpy()))


def load_exported(path: Path, device: str = "cpu") -> ExportedModel:
    """The model of an exported file.

    Raises:
        UserError: there is no such file, it was not written by `segvid export`, or cannot run here.
    """
    said = json.loads(read_record(path))
    try:
        run = load(said["format"], str(path), device)
    except Exception as error:
        raise UserError(f"{path} cannot be loaded on {device}: {str(error).strip().splitlines()[0]}") from error
    size = said["input"]["image_size"]
    return ExportedModel(
        path,
        run,
        list(said["class_names"]),
        [(int(r), int(g), int(b)) for r, g, b in said["palette"]],
        None if size is None else (int(size[0]), int(size[1])),
        said["input"]["type"],
        said["output"]["type"],
        int(said["input"]["multiple"]),
        int(said["input"]["minimum"]),
    )

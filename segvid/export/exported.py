"""An exported file as a model that `segvid predict` can use."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segvid.data.reading import Array, DataError
from segvid.data.record import resized
from segvid.errors import UserError, user_message
from segvid.export.formats import quiet
from segvid.export.reading import read
from segvid.export.run_file import Run, load
from segvid.segmentation.inference import Inference, class_scores
from segvid.segmentation.trained import finite
from segvid.text import plain


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
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a file says with aten::warn is for nobody
                found = self.run(np.ascontiguousarray(images.numpy()))
        except Exception as error:
            if user_message(error) is not None:
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise DataError(f"{self.file} fails on an image of {height} x {width}: {plain(reason)[:300]}") from error
        count = len(self.class_names)
        classes = self.output_type == "classes"
        shape = (len(images), height, width) if classes else (len(images), count, height, width)
        if (
            not isinstance(found, np.ndarray)
            or found.shape != shape
            or found.dtype != ("uint8" if classes else "float32")
        ):
            raise UserError(f"{self.file} gives something else than the {self.output_type} of {count} classes.")
        if classes and found.max() >= count:
            raise UserError(f"{self.file} gives class {found.max()}, and its record names {count} classes.")
        return found


def load_exported(path: Path, device: str = "cpu", *, allow_native_code: bool = False) -> ExportedModel:
    """The model of an exported file.

    Args:
        path: of the file.
        device: where it runs.
        allow_native_code: see `reading.read`.

    Raises:
        UserError: there is no such file, it was not written by `segvid export`, is not trusted, or cannot run here.
    """
    said, content = read(path, allow_native_code=allow_native_code)
    try:
        with quiet():  # torch writes a traceback to its log
            run = load(said.format, content, device)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be loaded on {device}: {plain(reason)}") from error
    return ExportedModel(
        path,
        run,
        said.class_names,
        said.palette,
        said.input.image_size,
        said.input.type,
        said.output.type,
        said.input.multiple,
        said.input.minimum,
    )

"""The command `segvid attention`: where a trained head looks from a pixel of an image."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import cv2
import numpy as np
import torch
from rich.console import Console

from segvid.data.reading import read_image
from segvid.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from segvid.errors import UserError
from segvid.segmentation.attention_maps import attention_maps, draw, query_points
from segvid.segmentation.task import SegmentationTask


class Parser(argparse.ArgumentParser):
    """argparse, with errors as `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print."""
        raise UserError(f"{message}. See segvid attention --help.")


def show_attention(words: Sequence[str]) -> int:
    """Writes the picture that the options describe; returns the exit code."""
    parser = Parser(prog="segvid attention", description="Where a trained head looks: the weights of one query pixel.")
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of a training, RUN/checkpoints/last.ckpt")
    parser.add_argument("--image", type=Path, required=True, help="image file")
    parser.add_argument("--point", help="query pixel x,y in the image as it is on disk; its middle when left out")
    parser.add_argument("--all", action="store_true", help="nine queries, and the soft regions of heads that have them")
    parser.add_argument("--output", type=Path, default=Path("attention.png"), help="picture to write (attention.png)")
    options = parser.parse_args(words)
    task, settings = load_task(options.ckpt)
    if not options.image.is_file():
        raise UserError(f"there is no image {options.image} (--image).")
    picture = read_image(options.image)
    height, width = picture.shape[:2]
    point = (width // 2, height // 2) if options.point is None else parse_point(options.point, width, height)
    if settings.get("image_size"):  # the size that the head was trained for
        new_height, new_width = settings["image_size"]
        point = (point[0] * new_width // width, point[1] * new_height // height)
        resized = cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_AREA)
        picture = np.asarray(resized, dtype=np.uint8)
        height, width = new_height, new_width
    mean = torch.tensor(settings.get("mean", IMAGENET_MEAN)).view(3, 1, 1)
    std = torch.tensor(settings.get("std", IMAGENET_STD)).view(3, 1, 1)
    image = (torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255 - mean) / std
    points = query_points(height, width) if options.all else [point]
    queries = [(p, attention_maps(task, image, p)) for p in points]
    content = draw(picture, queries, with_regions=8 if options.all else 0)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(content)
    names = ", ".join(found.mechanism for found in queries[0][1])
    Console(markup=False).print(f"{options.output}: {type(task.head).__name__} ({names})", highlight=False)
    return 0


def load_task(path: Path) -> tuple[SegmentationTask, dict[str, Any]]:
    """The trained model of a checkpoint, in evaluation on the CPU, and what its data module said of the images.

    Raises:
        UserError: there is no such file, or it is no checkpoint of a training.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path} (--ckpt).")
    try:
        settings = torch.load(path, map_location="cpu", weights_only=True).get("data", {})
        task = SegmentationTask.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, AttributeError, KeyError, TypeError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} is no checkpoint of a segvid training ({type(error).__name__}).") from error
    return task.eval(), settings


def parse_point(text: str, width: int, height: int) -> tuple[int, int]:
    """The pixel "x,y" of an image.

    Raises:
        UserError: it is none, or lies outside.
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise UserError(f"--point is {text!r}; give column and row of a pixel, for example 120,80.")
    x, y = int(parts[0]), int(parts[1])
    if x >= width or y >= height:
        raise UserError(f"--point {text} lies outside the image of {width} x {height} pixels.")
    return x, y

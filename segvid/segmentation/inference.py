"""From an image to scores of its classes: whole, in overlapping windows, at several scales, mirrored.

Pure functions, the same for validation, test and prediction. A model is a function from images (B, 3, H, W) to logits
(B, C, h, w) of any size. Windows and views are averaged as probabilities, never as logits: one confident view would
outvote all others.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from segvid.errors import UserError

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Inference:
    """How an image is evaluated.

    Args:
        window: height and width of a sliding window in pixels; the whole image at once when None.
        stride: steps of the window down and to the right; two thirds of the window when None.
        window_batch: windows that the model takes at once.
        scales: sizes of the image, as factors, whose results are averaged.
        flip: also average the result of the mirrored image.

    Raises:
        UserError: a size or a scale that is not positive, a stride longer than the window, or no scale.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    window_batch: int = 4
    scales: Sequence[float] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise UserError(f"model.init_args.inference.scales is {list(self.scales)}: give positive factors.")
        if self.window_batch < 1:
            raise UserError(f"model.init_args.inference.window_batch is {self.window_batch}: give at least 1.")
        if self.window is None:
            if self.stride is not None:
                raise UserError("model.init_args.inference.stride is of a window: give inference.window too.")
            return
        steps = self.steps(self.window)
        if min(self.window) < 1 or min(steps) < 1 or any(s > w for s, w in zip(steps, self.window, strict=True)):
            raise UserError(
                f"model.init_args.inference: a window of {list(self.window)} with the stride {list(steps)} leaves "
                "pixels out. Give positive sizes, and a stride not longer than the window."
            )

    def steps(self, window: tuple[int, int]) -> tuple[int, int]:
        """The stride."""
        return self.stride or (max(2 * window[0] // 3, 1), max(2 * window[1] // 3, 1))


def class_scores(model: Model, image: Tensor, size: Sequence[int], how: Inference) -> Tensor:
    """Scores of the classes at the given size: logits, or where several results are averaged log probabilities.

    Both have the same softmax and argmax as the result, and both can be given to a loss on logits.

    Shape:
        (B, 3, H, W) -> (B, C, *size).
    """
    if how.window is None and tuple(how.scales) == (1.0,) and not how.flip:
        return resize(model(image), size)
    total: Tensor | None = None
    views = list(itertools.product(how.scales, (False, True) if how.flip else (False,)))
    for scale, mirrored in views:
        view = image
        if scale != 1.0:
            view = resize(image, [max(round(length * scale), 1) for length in image.shape[2:]])
        if mirrored:
            view = view.flip(3)
        if how.window is None:
            logits = model(view)
            probabilities = torch.softmax(resize(logits.flip(3) if mirrored else logits, size).float(), dim=1)
        else:
            seen = sliding_window(model, view, how.window, how.steps(how.window), how.window_batch)
            probabilities = resize(seen.flip(3) if mirrored else seen, size)
        total = probabilities if total is None else total + probabilities
    assert total is not None
    return (total / len(views)).clamp(min=torch.finfo(total.dtype).tiny).log()


def sliding_window(
    model: Model, image: Tensor, window: tuple[int, int], stride: tuple[int, int], window_batch: int
) -> Tensor:
    """Probabilities of overlapping windows, averaged where they overlap.

    The last window of a row or column is moved back to end with the image. A side of the image that is shorter than
    the window is one window of that length.

    Shape:
        (B, 3, H, W) -> (B, C, H, W).
    """
    batch, _, height, width = image.shape
    lengths = (min(window[0], height), min(window[1], width))
    corners = [
        (sample, top, left)
        for sample in range(batch)
        for top in starts(height, lengths[0], stride[0])
        for left in starts(width, lengths[1], stride[1])
    ]
    total: Tensor | None = None
    counts = torch.zeros(1, 1, height, width, device=image.device)
    for first in range(0, len(corners), window_batch):
        part = corners[first : first + window_batch]
        crops = [image[b, :, y : y + lengths[0], x : x + lengths[1]] for b, y, x in part]
        probabilities = torch.softmax(resize(model(torch.stack(crops)), lengths).float(), dim=1)
        if total is None:
            total = probabilities.new_zeros(batch, probabilities.shape[1], height, width)
        for (sample, top, left), found in zip(part, probabilities, strict=True):
            total[sample, :, top : top + lengths[0], left : left + lengths[1]] += found
            if sample == 0:
                counts[:, :, top : top + lengths[0], left : left + lengths[1]] += 1
    assert total is not None
    return total / counts


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where the windows of one side begin: every stride, and the last so that it ends with the image."""
    last = length - window
    return [*range(0, last, stride), last]


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, align_corners=False: (B, C, h, w) -> (B, C, *size)."""
    return F.interpolate(maps, size=list(size), mode="bilinear", align_corners=False)

"""Sliding windows, scales and mirrors against brute force, pixel by pixel."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.errors import UserError
from segvid.segmentation.inference import Inference, class_scores, sliding_window, starts


class Positional(nn.Module):
    """A model of stride 2 whose logits depend on the place in what it sees: windows disagree where they overlap."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(5, classes, 3, stride=2, padding=1).double()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.sizes.append(tuple(image.shape))
        height, width = image.shape[2:]
        rows = torch.linspace(-1, 1, height, dtype=image.dtype).view(1, 1, -1, 1).expand(len(image), 1, -1, width)
        columns = torch.linspace(-1, 1, width, dtype=image.dtype).view(1, 1, 1, -1).expand(len(image), 1, height, -1)
        return 3 * self.conv(torch.cat([image, rows, columns], dim=1))


def picture(*size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, *size, dtype=torch.float64, generator=generator)


def up(maps: Tensor, size: Any) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def brute_force(model: nn.Module, image: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Every pixel asks every window that holds it."""
    height, width = image.shape[2:]
    tall, wide = min(window[0], height), min(window[1], width)
    tops = sorted({min(y, height - tall) for y in range(0, height, stride[0])})
    lefts = sorted({min(x, width - wide) for x in range(0, width, stride[1])})
    seen = {}
    for top in tops:
        for left in lefts:
            crop = image[:, :, top : top + tall, left : left + wide]
            seen[top, left] = torch.softmax(up(model(crop), (tall, wide)).float(), dim=1)
    out = torch.zeros(len(image), 3, height, width)
    for y in range(height):
        for x in range(width):
            near = [(t, s) for t, s in seen if t <= y < t + tall and s <= x < s + wide]
            found = [seen[t, s][:, :, y - t, x - s] for t, s in near]
            out[:, :, y, x] = torch.stack(found).mean(dim=0)
    return out


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((13, 17), (8, 8), (5, 5)),
        ((13, 17), (8, 6), (3, 6)),
        ((16, 16), (8, 8), (8, 8)),
        ((9, 20), (12, 8), (4, 4)),  # lower than the window
        ((5, 6), (12, 8), (4, 4)),  # smaller than the window
        ((12, 8), (12, 8), (4, 4)),  # exactly the window
        ((9, 9), (8, 8), (8, 8)),
    ],
    ids=str,
)
def test_windows_equal_brute_force(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], batch: int
) -> None:
    model, image = Positional().eval(), picture(*size)
    actual = sliding_window(model, image, window, stride, batch)
    assert max(s[0] for s in model.sizes) <= batch
    torch.testing.assert_close(actual, brute_force(model, image, window, stride))
    torch.testing.assert_close(actual.sum(dim=1), torch.ones(2, *size))


@pytest.mark.parametrize("length", range(1, 30))
def test_windows_cover_every_pixel_and_never_leave_the_image(length: int) -> None:
    for window in range(1, length + 1):
        for stride in range(1, window + 1):
            begin = starts(length, window, stride)
            covered = {p for s in begin for p in range(s, s + window)}
            assert covered == set(range(length))
            assert len(begin) == len(set(begin)) == -(-(length - window) // stride) + 1


def test_the_whole_image_gives_its_logits_at_the_size_of_the_label() -> None:
    model, image = Positional().eval(), picture(9, 12)
    assert torch.equal(class_scores(model, image, (18, 25), Inference()), up(model(image), (18, 25)))


@pytest.mark.parametrize("window", [None, (6, 7)], ids=str)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.75)], ids=str)
def test_scales_and_mirrors_equal_brute_force(
    scales: tuple[float, ...], flip: bool, window: tuple[int, int] | None
) -> None:
    model, image, size = Positional().eval(), picture(9, 12), (18, 25)
    results = []
    for scale in scales:
        view = up(image, (round(9 * scale), round(12 * scale))) if scale != 1 else image
        for mirrored in [False, True] if flip else [False]:
            seen = torch.flip(view, dims=(3,)) if mirrored else view
            if window is None:
                found = torch.softmax(up(torch.flip(model(seen), (3,)) if mirrored else model(seen), size).float(), 1)
            else:
                found = brute_force(model, seen, window, (4, 4))
                found = up(torch.flip(found, (3,)) if mirrored else found, size)
            results.append(found)
    expected = torch.stack(results).mean(dim=0)
    how = Inference(window=window, stride=None if window is None else (4, 4), scales=scales, flip=flip)
    actual = class_scores(model, image, size, how)
    torch.testing.assert_close(torch.softmax(actual, dim=1), torch.softmax(expected.log(), dim=1), check_dtype=False)
    if len(results) > 1 or window is not None:  # log probabilities
        torch.testing.assert_close(actual.exp().sum(dim=1), torch.ones(2, *size), check_dtype=False)


def test_probabilities_are_averaged_and_not_logits() -> None:
    """One view is sure of class 0, two lean to class 1: with logits the sure one would win."""
    answers = iter([torch.tensor([9.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([0.0, 2.0])])

    def model(image: Tensor) -> Tensor:
        return next(answers).view(1, 2, 1, 1)

    image = torch.zeros(1, 3, 4, 4)
    found = class_scores(model, image, (4, 4), Inference(scales=(1.0, 1.5, 2.0)))
    assert (found.argmax(dim=1) == 1).all()


def test_half_precision_is_averaged_in_float32() -> None:
    model = Positional().to(torch.bfloat16)
    found = class_scores(model, picture(8, 9).bfloat16(), (8, 9), Inference(window=(4, 4)))
    assert found.dtype == torch.float32


def test_the_stride_is_two_thirds_of_the_window() -> None:
    assert Inference(window=(9, 12)).steps((9, 12)) == (6, 8)
    assert Inference(window=(1, 1)).steps((1, 1)) == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": (4, 0)}, "leaves pixels out"),
        ({"window": (4, 4), "stride": (5, 4)}, "leaves pixels out"),
        ({"window": (4, 4), "stride": (4, 0)}, "leaves pixels out"),
        ({"stride": (4, 4)}, "give inference.window too"),
        ({"scales": ()}, "positive factors"),
        ({"scales": (1.0, 0.0)}, "positive factors"),
        ({"window_batch": 0}, "at least 1"),
    ],
    ids=str,
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Inference(**options)

"""Where a head looks: the maps that mechanisms offer, found in a model and drawn."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image

from segvid.attention.context import NonLocal
from segvid.backbones import ConvNet
from segvid.cli import main
from segvid.compare.run import query_point
from segvid.errors import UserError
from segvid.segmentation import attention_maps as attention_maps_module
from segvid.segmentation import heads
from segvid.segmentation.attention_maps import (
    AttentionMap,
    Picture,
    attention_maps,
    draw,
    mechanisms,
    overlay,
    query_points,
)
from segvid.segmentation.task import SegmentationTask
from tests.reference import randomise


def task(head: str, **options: object) -> SegmentationTask:
    torch.manual_seed(0)
    model = SegmentationTask(ConvNet((4, 6, 8)), lambda c, n: getattr(heads, head)(c, n, **options), 3)
    randomise(model)
    return model.float().eval()


def test_the_map_is_the_row_of_the_affinity() -> None:
    """Of the features that the mechanism saw in this pass, at the position that the pixel lies in."""
    model = task("NonLocalHead")
    image = torch.randn(3, 20, 28)
    (found,) = attention_maps(model, image, (27, 9))
    seen: list[torch.Tensor] = []
    block = model.head.context
    assert isinstance(block, NonLocal)
    block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(image[None])
        height, width = seen[0].shape[2:]
        row, column = 9 * height // 20, 27 * width // 28
        query, key, _ = block.project(seen[0])
        weights = torch.softmax(query[0, row * width + column] @ key[0].T * block.scale, dim=0)
    assert found.position == (row, column)
    assert found.mechanism == "head.context: NonLocal"
    np.testing.assert_allclose(found.weights, weights.reshape(height, width).numpy(), rtol=1e-4, atol=1e-6)
    assert not block._forward_pre_hooks or len(block._forward_pre_hooks) == 1  # only that of this test is left


def test_the_outermost_mechanism_speaks_for_those_inside() -> None:
    assert list(mechanisms(task("APCNetHead"))) == ["head.context"]
    assert list(mechanisms(task("OCNetHead", form="asp"))) == ["head.context.context"]
    assert list(mechanisms(task("DANetHead"))) == ["head.position"]
    assert mechanisms(task("FCNHead")) == {}


def test_heads_without_a_map_say_so() -> None:
    with pytest.raises(UserError, match="no mechanism with an attention map"):
        attention_maps(task("PSPNetHead"), torch.zeros(3, 20, 20), (3, 3))


@pytest.mark.parametrize("point", [(20, 3), (3, 24), (-1, 0)])
def test_a_point_outside_is_refused(point: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="outside the image of 20 x 24"):
        attention_maps(task("NonLocalHead"), torch.zeros(3, 24, 20), point)


@pytest.mark.parametrize(
    "head", ["EMANetHead", "GloReHead", "LatentGNNHead", "BeyondGridsHead", "A2NetHead", "SGRHead"]
)
def test_heads_with_nodes_give_their_regions(head: str) -> None:
    (found,) = attention_maps(task(head), torch.randn(3, 20, 28), (5, 5))
    assert found.regions is not None
    assert found.regions.ndim == 3
    assert np.isfinite(found.regions).all()


def test_overlay_is_brightest_where_the_weight_is() -> None:
    picture = np.full((40, 60, 3), 100, dtype=np.uint8)
    weights = np.zeros((4, 6))
    weights[3, 5] = -2.0  # weights of either sign count by their size
    drawn = overlay(picture, weights, (10, 20))
    assert drawn.shape == picture.shape
    assert drawn[35, 55].sum() > 2 * drawn[5, 5].sum()
    assert tuple(drawn[20, 10]) == (0, 255, 120)


def test_a_sheet_has_a_cell_for_every_query_and_region() -> None:
    model = task("GloReHead")
    image = torch.randn(3, 24, 24)
    picture = np.zeros((24, 24, 3), dtype=np.uint8)
    queries = [(point, attention_maps(model, image, point)) for point in query_points(24, 24, 2)]
    assert [point for point, _ in queries] == [(6, 6), (18, 6), (6, 18), (18, 18)]
    small, large = (Image.open(io.BytesIO(draw(picture, queries, with_regions=n))) for n in (0, 8))
    assert small.width < large.width
    assert small.height < large.height


def test_query_point_is_on_the_rarest_class() -> None:
    mask = torch.zeros(10, 12, dtype=torch.long)
    mask[2:5, 3:6] = 1
    mask[7, 9] = 255
    assert query_point(mask) == (4, 3)
    assert query_point(torch.full((10, 12), 255)) == (6, 5)


def test_titles_name_points_of_the_picture_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where what is drawn is smaller; the cross is where the point is."""
    titles: list[str] = []
    crosses: list[tuple[int, int]] = []
    usual = attention_maps_module.overlay

    def overlay(picture: Picture, weights: NDArray[np.float64], point: tuple[int, int] | None) -> Picture:
        assert picture.shape == (512, 1024, 3)
        assert point is not None
        crosses.append(point)
        return usual(picture, weights, point)

    monkeypatch.setattr(attention_maps_module, "overlay", overlay)
    monkeypatch.setattr(Axes, "set_title", lambda _, text, **__: titles.append(text))
    found = [AttentionMap("head: A", np.ones((2, 4)), (0, 0), None)]
    draw(np.zeros((1024, 2048, 3), dtype=np.uint8), [((2047, 1000), found)])
    assert titles == ["head: A", "query 2047,1000"]
    assert crosses == [(1023, 500)]


def test_a_head_that_has_regions_only_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --all, too."""
    titles: list[str] = []
    monkeypatch.setattr(Axes, "set_title", lambda _, text, **__: titles.append(text))
    found = attention_maps(task("BeyondGridsHead"), torch.randn(3, 20, 28), (5, 5))
    assert found[0].weights is None
    draw(np.zeros((20, 28, 3), dtype=np.uint8), [((5, 5), found)])
    assert len([title for title in titles if title.startswith("region ")]) == 8


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = task("NonLocalHead")
    for parameter in model.head.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    with pytest.raises(UserError, match="no numbers"):
        attention_maps(model, torch.randn(3, 20, 28), (5, 5))


@pytest.mark.parametrize("turned", [False, True])
def test_the_command_takes_the_point_in_the_picture_as_it_is_shown(
    turned: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upright, and at its own size: the model sees it at the size of its training."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    content["data"]["image_size"] = (48, 24)
    torch.save(content, tmp_path / "a.ckpt")
    shown = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 72, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1  # lies on its side, and is to be turned clockwise
    stored = shown.transpose(Image.Transpose.ROTATE_90) if turned else shown
    stored.save(tmp_path / "a.png", exif=exif)
    drawn: list[Any] = []
    places: list[tuple[int, int]] = []
    usual = attention_maps_module.attention_maps

    def maps(model: torch.nn.Module, image: torch.Tensor, point: tuple[int, int]) -> list[AttentionMap]:
        places.append(point)
        return usual(model, image, point)

    def draw_nothing(*arguments: Any, **_: Any) -> bytes:
        drawn.append(arguments)
        return b""

    monkeypatch.setattr(attention_maps_module, "attention_maps", maps)
    monkeypatch.setattr(attention_maps_module, "draw", draw_nothing)
    words = ["--ckpt_path", str(tmp_path / "a.ckpt"), "--image", str(tmp_path / "a.png"), "--point", "60,90"]
    assert main(["attention", *words, "--output", str(tmp_path / "o.png")]) == 0
    picture, queries = drawn[0]
    np.testing.assert_array_equal(picture, np.asarray(shown))
    assert [point for point, _ in queries] == [(60, 90)]
    assert places == [(20, 45)]

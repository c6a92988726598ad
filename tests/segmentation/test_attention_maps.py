"""Where a head looks: the maps that mechanisms offer, found in a model and drawn."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from segvid.attention.context import NonLocal
from segvid.backbones import ConvNet
from segvid.compare.run import query_point
from segvid.errors import UserError
from segvid.segmentation import heads
from segvid.segmentation.attention_maps import attention_maps, draw, mechanisms, overlay, query_points
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

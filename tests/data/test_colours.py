"""Colours for classes without a palette: told apart by everybody, and the first covers nothing."""

import numpy as np
import pytest

from segvid.data.colours import as_seen, distinct_colours
from segvid.data.reading import VOID_COLOUR, voc_palette


def least_distance(colours: list[tuple[int, int, int]]) -> float:
    """Of any two of them, in the vision in which they are the nearest."""
    seen = as_seen(np.array(colours))
    distances = np.linalg.norm(seen[:, :, None] - seen[:, None], axis=-1)
    return float(distances[:, ~np.eye(len(colours), dtype=bool)].min())


def test_the_first_class_is_light_and_none_is_black() -> None:
    assert min(distinct_colours(1)[0]) >= 150
    assert all(max(colour) > 70 for colour in distinct_colours(254))


def test_more_classes_leave_the_colours_of_the_first() -> None:
    assert distinct_colours(21) == distinct_colours(254)[:21]
    assert len({*distinct_colours(254), VOID_COLOUR}) == 255


@pytest.mark.parametrize(("count", "least"), [(5, 0.18), (11, 0.13), (21, 0.07)])
def test_colours_are_told_apart_also_by_the_colour_blind(count: int, least: float) -> None:
    """0.02 is a difference that is just noticed."""
    assert least_distance(distinct_colours(count)) > max(least, 3 * least_distance(voc_palette(count)))


def test_what_the_colour_blind_see() -> None:
    """Red and green of one lightness look alike without red cones, blue and yellow do not."""
    normal, protan, _ = as_seen(np.array([(160, 0, 0), (60, 60, 0), (0, 0, 255), (255, 255, 0)]))
    assert np.linalg.norm(normal[0] - normal[1]) > 2 * np.linalg.norm(protan[0] - protan[1])
    assert np.linalg.norm(protan[2] - protan[3]) > 0.5
    np.testing.assert_allclose(as_seen(np.array([(255, 255, 255)]))[:, 0], [[1, 0, 0]] * 3, atol=1e-3)

"""Names beside the points of a chart that lie neither over each other nor over the points."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

RINGS = (6, 12, 20, 30, 42, 56, 72, 90, 110, 135, 165, 200)  # from the point to the name, in pixels
DIRECTIONS = [(math.cos(turn), math.sin(turn)) for turn in (math.pi * step / 8 for step in (2, 0, -2, *range(16)))]
NEAR = 14  # further away a line leads to the point
MARGIN = 2
MARK = 5  # half the size of a point

Place = tuple[float, float]  # in pixels


@dataclass(frozen=True)
class Point:
    """A point of a chart, in data coordinates, with the length of its error bar, up and down."""

    x: float
    y: float
    spread: float
    text: str
    colour: str


def place(figure: Figure, axes: Axes, points: Sequence[Point], size: float = 8) -> None:
    """Writes the name of every point; the same points give the same places.

    This settles the layout of the figure: nothing may be drawn later that changes it.
    """
    figure.canvas.draw()
    figure.set_layout_engine("none")
    inside = axes.get_window_extent().padded(-MARGIN)
    marks = [mark(axes, point) for point in points]
    names: list[Bbox] = []
    lines: list[tuple[Place, Place]] = []
    for point in sorted(points, key=lambda p: (-p.y, p.x, p.text)):
        across, up = axes.transData.transform((point.x, point.y)).tolist()
        name = axes.annotate(
            point.text, (point.x, point.y), (0, 0), textcoords="offset points", va="bottom", fontsize=size
        )
        extent = name.get_window_extent()
        best, least = Bbox.from_bounds(across + MARK, up + MARK, extent.width, extent.height), math.inf
        for box in candidates((across, up), extent.width, extent.height, inside):
            if any(box.padded(MARGIN).overlaps(other) for other in (*names, *marks)):
                continue
            line = ((across, up), nearest(box, (across, up)))
            crossings = sum(crosses(*line, other) for other in names) + sum(crosses(*other, box) for other in lines)
            if crossings < least:
                best, least = box, crossings
            if not crossings:
                break
        names.append(best)
        scale = 72 / figure.dpi
        name.set_position(((best.x0 - across) * scale, (best.y0 - up) * scale))
        end = nearest(best, (across, up))
        if math.dist((across, up), end) > NEAR:
            lines.append(((across, up), end))
            axes.annotate(
                "",
                (point.x, point.y),
                ((end[0] - across) * scale, (end[1] - up) * scale),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": point.colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
            )


def candidates(at: Place, width: float, height: float, inside: Bbox) -> Iterator[Bbox]:
    """Boxes of a size within the axes: in rings around a point, then anywhere, the nearest first."""
    for ring in RINGS:
        for x, y in DIRECTIONS:
            left, low = at[0] + x * (ring + width / 2) - width / 2, at[1] + y * (ring + height / 2) - height / 2
            if left >= inside.x0 and left + width <= inside.x1 and low >= inside.y0 and low + height <= inside.y1:
                yield Bbox.from_bounds(left, low, width, height)
    grid = [
        Bbox.from_bounds(inside.x0 + column * width / 3, inside.y0 + row * (height + MARGIN), width, height)
        for column in range(int(3 * (inside.width - width) / max(width, 1)) + 1)
        for row in range(int((inside.height - height) / (height + MARGIN)) + 1)
    ]
    yield from sorted(grid, key=lambda box: (math.dist(at, nearest(box, at)), box.x0, box.y0))


def mark(axes: Axes, point: Point) -> Bbox:
    """Where a point and its error bar are drawn."""
    left, low = axes.transData.transform((point.x, point.y - point.spread))
    right, high = axes.transData.transform((point.x, point.y + point.spread))
    return Bbox.from_extents(left - MARK, low - MARK, right + MARK, high + MARK)


def nearest(box: Bbox, at: Place) -> Place:
    """The place of a box that is nearest to another."""
    return (min(max(at[0], box.x0), box.x1), min(max(at[1], box.y0), box.y1))


def crosses(start: Place, end: Place, box: Bbox) -> bool:
    """Whether a line passes through a box (its slabs are cut one after the other)."""
    first, last = 0.0, 1.0
    for begin, to, low, high in ((start[0], end[0], box.x0, box.x1), (start[1], end[1], box.y0, box.y1)):
        if begin == to:
            if not low < begin < high:
                return False
            continue
        near, far = sorted(((low - begin) / (to - begin), (high - begin) / (to - begin)))
        first, last = max(first, near), min(last, far)
    return first < last

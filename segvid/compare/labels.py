"""Names beside the points of a chart that lie neither over each other nor over the points."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

RINGS = (6, 12, 20, 30, 42, 56, 72, 90, 110, 135, 165, 200)  # from the point to the name, in pixels
TURNS = np.pi / 8 * np.array([2, 0, -2, *range(16)])
NEAR = 14  # further away a line leads to the point
MARGIN = 2
MARK = 5  # half the size of a point

Floats = NDArray[np.float64]  # places (..., 2) as x, y; boxes (..., 4) as left, low, right, high; both in pixels


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
    inside = np.array(axes.get_window_extent().padded(-MARGIN).extents)
    marks = np.array([mark(axes, point) for point in points])
    names, starts, ends = np.zeros((0, 4)), np.zeros((0, 2)), np.zeros((0, 2))
    for point in sorted(points, key=lambda p: (-p.y, p.x, p.text)):
        at = np.array(axes.transData.transform((point.x, point.y)))
        name = axes.annotate(
            point.text, (point.x, point.y), (0, 0), textcoords="offset points", va="bottom", fontsize=size
        )
        extent = name.get_window_extent()
        boxes = candidates(at, extent.width, extent.height, inside)
        near = nearest(boxes, at)
        over = overlap(boxes, np.concatenate([names, marks])).sum(axis=1)
        crossings = crosses(at, near[:, None], names).sum(axis=1) + crosses(starts, ends, boxes[:, None]).sum(axis=1)
        best = int(np.lexsort((np.arange(len(boxes)), crossings, over))[0])  # the first of those with fewest
        names = np.concatenate([names, boxes[best : best + 1]])
        away = (near[best] - at) * 72 / figure.dpi
        name.set_position(tuple((boxes[best, :2] - at) * 72 / figure.dpi))
        if np.hypot(*(near[best] - at)) > NEAR:
            starts, ends = np.vstack([starts, at]), np.vstack([ends, near[best]])
            line = {"arrowstyle": "-", "color": point.colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (point.x, point.y), tuple(away), textcoords="offset points", arrowprops=line)


def candidates(at: Floats, width: float, height: float, inside: Floats) -> Floats:
    """Boxes of a size within the axes: in rings around a point, then anywhere, the nearest first."""
    half = np.array([width, height]) / 2
    directions = np.stack([np.cos(TURNS), np.sin(TURNS)], axis=-1)
    centres = at + directions * (np.array(RINGS)[:, None, None] + half)
    rings = np.concatenate([centres - half, centres + half], axis=-1).reshape(-1, 4)
    rings = rings[(rings[:, :2] >= inside[:2]).all(axis=1) & (rings[:, 2:] <= inside[2:]).all(axis=1)]
    left = np.arange(inside[0], max(inside[2] - width, inside[0]) + 1, max(width / 3, 1))
    low = np.arange(inside[1], max(inside[3] - height, inside[1]) + 1, height + MARGIN)
    corners = np.stack(np.meshgrid(left, low), axis=-1).reshape(-1, 2)
    grid = np.concatenate([corners, corners + 2 * half], axis=-1)
    distance = np.hypot(*(nearest(grid, at) - at).T)
    return np.concatenate([rings, grid[np.argsort(distance, kind="stable")]])


def mark(axes: Axes, point: Point) -> Floats:
    """Where a point and its error bar are drawn."""
    ends = axes.transData.transform([(point.x, point.y - point.spread), (point.x, point.y + point.spread)])
    return np.concatenate([ends[0] - MARK, ends[1] + MARK])


def nearest(boxes: Floats, at: Floats) -> Floats:
    """The place of every box that is nearest to another."""
    return np.clip(at, boxes[..., :2], boxes[..., 2:])


def overlap(boxes: Floats, others: Floats) -> NDArray[np.bool_]:
    """Whether a box (first axis) and another (second axis) lie over each other, or nearly."""
    low = boxes[:, None, :2] - MARGIN < others[:, 2:]
    high = boxes[:, None, 2:] + MARGIN > others[:, :2]
    return np.asarray((low & high).all(axis=-1))


def crosses(start: Floats, end: Floats, box: Floats) -> NDArray[np.bool_]:
    """Whether a line passes through a box, of every pair: what lies within left and right, and low and high."""
    way = np.where(end == start, 1e-9, end - start)
    one, other = (box[..., :2] - start) / way, (box[..., 2:] - start) / way
    first = np.maximum(np.minimum(one, other).max(axis=-1), 0)
    last = np.minimum(np.maximum(one, other).min(axis=-1), 1)
    return np.asarray(first < last)

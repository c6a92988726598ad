"""Colours of classes that are easy to tell apart, also for the colour-blind.

The first is a light grey: in most data sets it is the background, which shall not cover what lies below it. Three of
Okabe and Ito follow ("Color Universal Design", 2008, https://jfly.uni-koeln.de/color/), then one by one that which is
the farthest from all before it, as people with and without red or green cones see them (Machado, Oliveira and
Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", IEEE TVCG 2009), in the space
OKLab (Ottosson, 2020, https://bottosson.github.io/posts/oklab/).
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from segvid.data.reading import VOID_COLOUR

FIRST = [(200, 200, 200), (213, 94, 0), (0, 114, 178), (240, 228, 66)]
VISIONS = np.array(
    [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
)
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
DARKEST = 0.35  # lightness from 0 to 1


def distinct_colours(count: int) -> list[tuple[int, int, int]]:
    """RGB of so many classes, at most 256; those of fewer classes are the first of those of more."""
    return list(_colours()[:count])


@lru_cache(maxsize=1)
def _colours() -> list[tuple[int, int, int]]:
    levels = np.array([0, 36, 73, 109, 146, 182, 219, 255])
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = as_seen(candidates)
    nearest = np.where(seen[0, :, 0] < DARKEST, -np.inf, np.inf)
    colours = list(FIRST)
    for colour in (VOID_COLOUR, *FIRST):
        nearest = np.minimum(nearest, _distances(seen, as_seen(np.array([colour]))))
    while len(colours) < 256:
        best = int(nearest.argmax())
        red, green, blue = (int(value) for value in candidates[best])
        colours.append((red, green, blue))
        nearest = np.minimum(nearest, _distances(seen, seen[:, best : best + 1]))
    return colours


def as_seen(colours: NDArray[np.int64]) -> NDArray[np.float64]:
    """OKLab of colours (N, 3) in all visions: (visions, N, 3)."""
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    visible = np.clip(np.einsum("vij,nj->vni", VISIONS, linear), 0, 1)
    lab: NDArray[np.float64] = np.cbrt(visible @ TO_CONES.T) @ TO_LAB.T
    return lab


def _distances(seen: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far colours are from another, in the vision in which they are the nearest."""
    distances: NDArray[np.float64] = np.linalg.norm(seen - other, axis=-1).min(axis=0)
    return distances

"""Where a trained head looks: the affinity of one query position and the soft regions, as pictures.

The mechanisms offer both (`attention_map(x, position)` and `regions(x)`, see `segvid.attention.context`); here they are
found in a model, given what they saw in a forward pass, and drawn over the image.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from segvid.errors import UserError
from segvid.text import label

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Picture = NDArray[np.uint8]
LARGEST = 1024  # pixels of the longer side of what is drawn


@dataclass(frozen=True)
class AttentionMap:
    """What one mechanism gives for one query.

    Args:
        mechanism: its place in the model and its class.
        weights: (h, w), of all positions of its map for the query.
        position: row and column of the query on that map.
        regions: (K, h, w), soft regions of a mechanism with nodes or bases; None for others.
    """

    mechanism: str
    weights: NDArray[np.float64] | None
    position: tuple[int, int]
    regions: NDArray[np.float64] | None


def mechanisms(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules of the model that offer an attention map or regions, by their place in it."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") or outer == "" for outer in found)
        if not inside and (hasattr(module, "attention_map") or hasattr(module, "regions")):
            found[name] = module
    return found


@torch.no_grad()
def attention_maps(model: nn.Module, image: Tensor, point: tuple[int, int]) -> list[AttentionMap]:
    """What every mechanism of the model gives for a pixel of an image.

    Args:
        model: image to logits, in evaluation.
        image: (3, H, W), normalised.
        point: column x and row y of the query in the image.

    Raises:
        UserError: the point lies outside, or the model has no mechanism with a map.
    """
    height, width = image.shape[1:]
    if not (0 <= point[0] < width and 0 <= point[1] < height):
        raise UserError(f"the point {point[0]},{point[1]} lies outside the image of {width} x {height} pixels.")
    found = mechanisms(model)
    if not found:
        raise UserError(f"{type(model).__name__} has no mechanism with an attention map (its head pools or convolves).")
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.__setitem__(name, inputs[0]))
        for name, module in found.items()
    ]
    try:
        model(image.unsqueeze(0))
    finally:
        for hook in hooks:
            hook.remove()
    maps = []
    for name, module in found.items():
        if name not in seen:
            continue
        x = seen[name]
        position = (point[1] * x.shape[2] // height, point[0] * x.shape[3] // width)
        offered: Any = module
        weights = offered.attention_map(x, position)[0] if hasattr(module, "attention_map") else None
        regions = offered.regions(x)[0] if hasattr(module, "regions") else None
        if not all(found is None or found.isfinite().all() for found in (weights, regions)):
            raise UserError(f"the weights of {name} are no numbers (NaN or infinite): the model is broken.")
        maps.append(
            AttentionMap(
                f"{name}: {type(module).__name__}",
                None if weights is None else weights.double().cpu().numpy(),
                position,
                None if regions is None else regions.double().cpu().numpy(),
            )
        )
    return maps


def overlay(picture: Picture, weights: NDArray[np.float64], point: tuple[int, int] | None) -> Picture:
    """The weights over the image (H, W, 3): bright where they are large, the query (if any) as a cross.

    Weights are shown relative to the largest one of their absolute values.
    """
    height, width = picture.shape[:2]
    strength = np.abs(weights) / max(float(np.abs(weights).max()), 1e-12)
    rows = (np.arange(height) * strength.shape[0] // height)[:, None]
    columns = (np.arange(width) * strength.shape[1] // width)[None, :]
    full = strength[rows, columns]
    heat = plt.get_cmap("inferno")(full)[..., :3] * 255
    grey = picture.mean(axis=2, keepdims=True)
    share = 0.25 + 0.6 * full[..., None]
    mixed: Picture = ((1 - share) * grey + share * heat).astype(np.uint8)
    if point is None:
        return mixed
    x, y = point
    reach = max(2, min(height, width) // 30)
    cross = np.array([0, 255, 120], dtype=np.uint8)
    mixed[max(y - reach, 0) : y + reach + 1, x] = cross
    mixed[y, max(x - reach, 0) : x + reach + 1] = cross
    return mixed


def query_points(height: int, width: int, count: int = 3) -> list[tuple[int, int]]:
    """A regular grid of `count` x `count` points (x, y) inside an image."""
    steps = [(i + 0.5) / count for i in range(count)]
    return [(int(x * width), int(y * height)) for y in steps for x in steps]


def draw(
    picture: Picture, queries: Sequence[tuple[tuple[int, int], Sequence[AttentionMap]]], with_regions: int = 0
) -> bytes:
    """A sheet as PNG: a row for each mechanism, its map for every query, then its soft regions.

    Args:
        picture: the image (H, W, 3).
        queries: each point, in pixels of `picture`, with the maps of all mechanisms for it.
        with_regions: how many soft regions to show, those that cover most; at least 8 of a mechanism that has no maps.
    """
    height, width = picture.shape[:2]
    smaller = max(height, width, LARGEST) / LARGEST  # than the picture is what is drawn, a few hundred pixels wide
    sizes = max(round(width / smaller), 1), max(round(height / smaller), 1)
    shown = np.asarray(Image.fromarray(picture).resize(sizes), dtype=np.uint8)
    rows: list[tuple[str, list[tuple[str, Picture]]]] = []
    for index, first in enumerate(queries[0][1]):
        cells: list[tuple[str, Picture]] = []
        for point, maps in queries:
            weights = maps[index].weights
            if weights is not None:
                place = (point[0] * shown.shape[1] // width, point[1] * shown.shape[0] // height)
                cells.append((f"query {point[0]},{point[1]}", overlay(shown, weights, place)))
        regions = with_regions if first.weights is not None else max(with_regions, 8)
        if first.regions is not None and regions:
            order = np.argsort(-np.abs(first.regions).sum(axis=(1, 2)))[:regions]
            for k in order:
                cells.append((f"region {k}", overlay(shown, first.regions[k], None)))
        rows.append((first.mechanism, [("image", shown), *cells]))
    columns = min(max(len(cells) for _, cells in rows), 6)
    lines = [(title, cells[i : i + columns]) for title, cells in rows for i in range(0, len(cells), columns)]
    figure, grid = plt.subplots(
        len(lines),
        columns,
        figsize=(2.4 * columns, (2.4 * height / width + 0.35) * len(lines)),
        squeeze=False,
        layout="compressed",
    )
    for axes_row, (title, cells) in zip(grid, lines, strict=True):
        for axes in axes_row:
            axes.axis("off")
        for axes, (name, cell) in zip(axes_row, cells, strict=False):
            axes.imshow(cell, interpolation="nearest")
            axes.set_title(label(title) if name == "image" else name, fontsize=7)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    plt.close(figure)
    return content.getvalue()

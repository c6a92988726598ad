"""The pictures of a comparison: mIoU against cost, and the same images as every head predicts them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """The rows of one variant with all that is drawn of them.

    Args:
        rows: one for each head.
        charts: PNGs by what they show.
        pictures: rows of titles and PNGs.
    """

    rows: list[dict[str, Any]]
    charts: dict[str, bytes]
    pictures: list[list[tuple[str, bytes]]]


def draw_section(rows: list[dict[str, Any]], output: Path) -> Section:
    """Draws the rows of one variant; the pictures of the runs lie below `output`."""
    charts = {}
    for key, label in (("latency_ms", "latency of one image, ms"), ("memory_mb", "memory of one image, MB")):
        known = [r for r in rows if r.get("mIoU") is not None and r.get(key) is not None]
        if known:
            charts[f"mIoU against {key}"] = draw_cost(known, key, label)
    known = [r for r in rows if r.get("distance")]
    if known:
        charts["accuracy against distance"] = draw_distance(known)
    return Section(rows, charts, picture_rows(rows, output))


def draw_cost(rows: list[dict[str, Any]], key: str, label: str) -> bytes:
    """mIoU against a cost, as a PNG."""
    figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for index, row in enumerate(rows):
        spread = 100 * row["mIoU_std"] if row["mIoU_std"] is not None else None
        axes.errorbar(row[key], 100 * row["mIoU"], yerr=spread, fmt="o", color=f"C{index % 10}", capsize=3)
        axes.annotate(row["name"], (row[key], 100 * row["mIoU"]), xytext=(5, 5), textcoords="offset points")
    axes.set_xlabel(label)
    axes.set_ylabel("mIoU %")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    return png(figure, 130)


def draw_distance(rows: list[dict[str, Any]]) -> bytes:
    """Accuracy against the distance to what decides the label, a curve for every head, as a PNG."""
    figure, axes = plt.subplots(figsize=(6, max(4.2, 0.16 * len(rows) + 0.6)), layout="constrained")
    for index, row in enumerate(rows):
        starts = [part["start"] for part in row["distance"]]
        style = ("-", "--", ":")[index // 10 % 3]
        accuracy = [100 * part["accuracy"] for part in row["distance"]]
        axes.plot(starts, accuracy, style, marker="o", markersize=3, color=f"C{index % 10}", label=row["name"])
    axes.set_xlabel("distance to what decides the label, pixels")
    axes.set_ylabel("accuracy %")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    return png(figure, 130)


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG; closes it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    plt.close(figure)
    return content.getvalue()


def picture_rows(rows: list[dict[str, Any]], output: Path) -> list[list[tuple[str, bytes]]]:
    """For every validation image the image, its mask, what each head (its first seed) predicts, and where it looks."""
    done = [(row["name"], row["seeds"][0]) for row in rows if row["seeds"][0]["status"] == "done"]
    if not done:
        return []
    palette = done[0][1]["palette"]
    first = output / done[0][1]["folder"] / "pictures"
    pictures = []
    for index in range(len(list(first.glob("*_image.png")))):
        row = [
            ("image", (first / f"{index}_image.png").read_bytes()),
            ("label", coloured(first / f"{index}_mask.png", palette)),
        ]
        for name, seed in done:
            row.append((name, coloured(output / seed["folder"] / "pictures" / f"{index}_prediction.png", palette)))
        pictures.append(row)
        looks = []
        for name, seed in done:
            file = output / seed["folder"] / "pictures" / f"{index}_attention.png"
            if file.is_file():
                looks.append((f"{name}, attention", file.read_bytes()))
        if looks:
            pictures.append(looks)
    return pictures


def draw_sheet(pictures: list[list[tuple[str, bytes]]]) -> bytes:
    """All pictures as one PNG: a row for every image, a column for every head."""
    width = max(len(row) for row in pictures)
    image = Image.open(io.BytesIO(pictures[0][0][1]))
    shape = (1.6 * width, (1.6 * image.height / image.width + 0.05) * len(pictures) + 0.3)
    figure, grid = plt.subplots(len(pictures), width, figsize=shape, squeeze=False, layout="compressed")
    for index, row_of_pictures in enumerate(pictures):
        for axes in grid[index]:
            axes.axis("off")
        for axes, (name, content) in zip(grid[index], row_of_pictures, strict=False):
            axes.imshow(Image.open(io.BytesIO(content)).convert("RGB"), interpolation="nearest")
            if index < 2:  # predictions, and where the heads look
                axes.set_title(name, fontsize=8 if index else 10)
    return png(figure, 100)


def coloured(file: Path, palette: Sequence[Sequence[int]]) -> bytes:
    """A mask of class indices as a PNG in the palette's colours; ignored pixels are white."""
    image = Image.fromarray(np.asarray(Image.open(file)), mode="P")
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(palette)] = np.array(palette, dtype=np.uint8)
    image.putpalette(table.tobytes())
    content = io.BytesIO()
    image.save(content, format="png")
    return content.getvalue()

"""The pictures of a comparison: mIoU against cost, and the same images as every head predicts them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def draw_charts(results: dict[str, Any]) -> dict[str, bytes]:
    """mIoU against latency and against memory, as PNGs."""
    charts = {}
    for key, label in (("latency_ms", "latency of one image, ms"), ("memory_mb", "memory of one image, MB")):
        rows = [r for r in results["rows"] if r.get("mIoU") is not None and r.get(key) is not None]
        if not rows:
            continue
        figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
        for index, row in enumerate(rows):
            spread = 100 * row["mIoU_std"] if row["mIoU_std"] is not None else None
            axes.errorbar(row[key], 100 * row["mIoU"], yerr=spread, fmt="o", color=f"C{index % 10}", capsize=3)
            axes.annotate(row["name"], (row[key], 100 * row["mIoU"]), xytext=(5, 5), textcoords="offset points")
        axes.set_xlabel(label)
        axes.set_ylabel("mIoU %")
        axes.margins(0.15)
        axes.grid(alpha=0.3)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=130)
        plt.close(figure)
        charts[key] = content.getvalue()
    return charts


def picture_rows(results: dict[str, Any], output: Path) -> list[list[tuple[str, bytes]]]:
    """For every validation image the image, its mask, what each head (its first seed) predicts, and where it looks."""
    done = [(row["name"], row["seeds"][0]) for row in results["rows"] if row["seeds"][0]["status"] == "done"]
    if not done:
        return []
    palette = done[0][1]["palette"]
    first = output / done[0][1]["folder"] / "pictures"
    rows = []
    for index in range(len(list(first.glob("*_image.png")))):
        row = [
            ("image", (first / f"{index}_image.png").read_bytes()),
            ("label", coloured(first / f"{index}_mask.png", palette)),
        ]
        for name, seed in done:
            row.append((name, coloured(output / seed["folder"] / "pictures" / f"{index}_prediction.png", palette)))
        rows.append(row)
        looks = []
        for name, seed in done:
            file = output / seed["folder"] / "pictures" / f"{index}_attention.png"
            if file.is_file():
                looks.append((f"{name}, attention", file.read_bytes()))
        if looks:
            rows.append(looks)
    return rows


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
    sheet = io.BytesIO()
    figure.savefig(sheet, format="png", dpi=100)
    plt.close(figure)
    return sheet.getvalue()


def coloured(file: Path, palette: Sequence[Sequence[int]]) -> bytes:
    """A mask of class indices as a PNG in the palette's colours; ignored pixels are white."""
    image = Image.fromarray(np.asarray(Image.open(file)), mode="P")
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(palette)] = np.array(palette, dtype=np.uint8)
    image.putpalette(table.tobytes())
    content = io.BytesIO()
    image.save(content, format="png")
    return content.getvalue()

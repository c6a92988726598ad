"""The pictures of a comparison: mIoU against cost, and the same images as every head predicts them."""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from segvid.compare.labels import Point, place
from segvid.data.reading import palette_image
from segvid.text import label, plain

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

INK = "#010203"  # stands for the colour of the page's text
STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
LONGEST = 40  # letters of a name
COLUMNS = 8  # pictures side by side in the sheet
TILE, GAP, TITLE = 160, 6, 18  # pixels of the sheet


@dataclass(frozen=True)
class Chart:
    """The same chart for a page in its reader's colours, without anything outside, and black on white."""

    svg: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """The rows of one variant with all that is drawn of them.

    Args:
        rows: one for each head.
        charts: by what they show.
        pictures: rows of titles and PNGs.
    """

    rows: list[dict[str, Any]]
    charts: dict[str, Chart]
    pictures: list[list[tuple[str, bytes]]]


def draw_section(rows: list[dict[str, Any]], output: Path, images: int) -> Section:
    """Draws the rows of one variant; the pictures of the runs lie below `output`."""
    charts = {}
    with warnings.catch_warnings(), plt.rc_context(STYLE):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # shown as a box, and right in the page
        for key, what in (("latency_ms", "latency of one image, ms"), ("memory_mb", "memory of one image, MB")):
            known = [r for r in rows if r.get("mIoU") is not None and r.get(key) is not None]
            if known:
                charts[f"mIoU against {key}"] = chart(draw_cost(known, key, what))
        known = [r for r in rows if r.get("distance")]
        if known:
            charts["accuracy against distance"] = chart(draw_distance(known))
    return Section(rows, charts, picture_rows(rows, output, images))


def draw_cost(rows: list[dict[str, Any]], key: str, what: str) -> Figure:
    """mIoU against a cost; every point has its name beside it."""
    figure, axes = plt.subplots(figsize=(6.4, max(4.4, 0.17 * len(rows))), layout="constrained")
    points = []
    for index, row in enumerate(rows):
        spread = 100 * row["mIoU_std"] if row["mIoU_std"] is not None else None
        point = Point(row[key], 100 * row["mIoU"], spread or 0.0, name_of(row), f"C{index % 10}")
        axes.errorbar(point.x, point.y, yerr=spread, fmt="o", color=point.colour, capsize=3, markersize=5)
        points.append(point)
    axes.set_xlabel(what)
    axes.set_ylabel("mIoU %")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    place(figure, axes, points)
    return figure


def draw_distance(rows: list[dict[str, Any]]) -> Figure:
    """Accuracy against the distance to what decides the label, a curve for every head."""
    figure, axes = plt.subplots(figsize=(6.4, max(4.4, 0.16 * len(rows) + 0.6)), layout="constrained")
    for index, row in enumerate(rows):
        starts = [part["start"] for part in row["distance"]]
        style = ("-", "--", ":")[index // 10 % 3]
        accuracy = [100 * part["accuracy"] for part in row["distance"]]
        axes.plot(starts, accuracy, style, marker="o", markersize=3, color=f"C{index % 10}", label=name_of(row))
    axes.set_xlabel("distance to what decides the label, pixels")
    axes.set_ylabel("accuracy %")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    return figure


def name_of(row: dict[str, Any]) -> str:
    """The name of a row for a chart."""
    return label(shortened(row["name"]))


def shortened(name: str) -> str:
    """A name that does not fill a chart."""
    shown = plain(name)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def chart(figure: Figure) -> Chart:
    """The figure in both forms; closes it."""
    picture, drawing = io.BytesIO(), io.StringIO()
    figure.savefig(picture, format="png", dpi=130, facecolor="white")
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with plt.rc_context({"svg.hashsalt": "segvid"}):  # what has the same id is the same
        figure.savefig(drawing, format="svg", transparent=True, metadata=nothing)
    plt.close(figure)
    return Chart(inline(drawing.getvalue()), picture.getvalue())


def inline(svg: str) -> str:
    """An SVG as a part of a page: without what only a file of its own needs, in the colour of the page's text."""
    root, _, content = svg[svg.index("<svg") :].partition(">")
    root = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", root)
    content = re.sub(r' id="[A-Za-z][\w.]*_\d+"', "", content)  # several charts have the same
    return f"{root}>{content}".replace(INK, "currentColor").strip()


def picture_rows(rows: list[dict[str, Any]], output: Path, images: int) -> list[list[tuple[str, bytes]]]:
    """For every validation image the image, its mask, what each head (its first seed) predicts, and where it looks."""
    seeds = [(row["name"], [seed for seed in row["seeds"] if seed["status"] == "done"]) for row in rows]
    done = [(name, finished[0]) for name, finished in seeds if finished]
    if not done:
        return []
    places = [(name, output / seed["folder"] / "pictures", seed["palette"]) for name, seed in done]
    _, first, palette = places[0]
    pictures = []
    for index in range(images):
        seen = [
            ("image", as_it_is(first / f"{index}_image.png")),
            ("label", coloured(first / f"{index}_mask.png", palette)),
            *((name, coloured(place / f"{index}_prediction.png", colours)) for name, place, colours in places),
        ]
        looks = [(f"{name}, attention", as_it_is(place / f"{index}_attention.png")) for name, place, _ in places]
        for row in (seen, looks):
            there = [(name, content) for name, content in row if content is not None]
            if there:
                pictures.append(there)
    return pictures


def draw_sheet(pictures: list[list[tuple[str, bytes]]]) -> bytes:
    """All pictures as one PNG: several lines of equal length for every image."""
    longest = max(len(row) for row in pictures)
    columns = -(-longest // -(-longest // COLUMNS))
    width, top = GAP + columns * (TILE + GAP), 0
    tiles = []
    for row in pictures:
        lines = -(-len(row) // columns)
        opened = [(shortened(name), Image.open(io.BytesIO(content)).convert("RGB")) for name, content in row]
        height = max(round(TILE * image.height / image.width) for _, image in opened)
        for index, (name, image) in enumerate(opened):
            left, line = GAP + index % columns * (TILE + GAP), index // columns
            tiles.append((name, image, left, top + line * (height + TITLE + GAP) + TITLE))
        top += lines * (height + TITLE + GAP) + GAP
    figure = plt.figure(figsize=(width / 100, top / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for name, image, left, upper in tiles:
            shown = np.asarray(image)
            axes.imshow(
                shown,
                extent=(left, left + TILE, upper + TILE * image.height / image.width, upper),
                interpolation="nearest" if image.width <= TILE else "antialiased",
            )
            size = min(8, 8 * 26 / max(len(name), 1))
            axes.text(left + TILE / 2, upper - 4, label(name), ha="center", va="bottom", fontsize=size)
        axes.axis("off")
        axes.set_aspect("auto")
        axes.set_xlim(0, width)
        axes.set_ylim(top, 0)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=100, facecolor="white")
    plt.close(figure)
    return content.getvalue()


def as_it_is(file: Path) -> bytes | None:
    """A picture of a run; None if it is not there, or no picture."""
    try:
        content = file.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return None
    return content


def coloured(file: Path, palette: Sequence[Sequence[int]]) -> bytes | None:
    """A mask of class indices as a PNG in the palette's colours; ignored pixels are white. None as above."""
    source = as_it_is(file)
    if source is None:
        return None
    mask = np.asarray(Image.open(io.BytesIO(source)).convert("L"))
    content = io.BytesIO()
    palette_image(mask, palette).save(content, format="png")
    return content.getvalue()

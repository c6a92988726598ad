"""The charts and pictures of a report: names apart, equal rows, the reader's colours."""

import io
import random
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from segvid.compare.charts import COLUMNS, chart, draw_cost, draw_section, draw_sheet, picture_rows
from segvid.compare.labels import crosses
from segvid.compare.report import summarise
from tests.compare.small import HEADS, seed_result

NAMES = sorted(file.stem for file in HEADS.glob("*.yaml"))


def rows(kind: str) -> list[dict[str, Any]]:
    """26 rows whose points lie close together."""
    draw = random.Random(kind)
    spread = {"cloud": 1.0, "one place": 0.0, "a line": 0.0}[kind]
    result = []
    for index, name in enumerate(NAMES):
        score = 0.45 + 0.01 * spread * draw.gauss(0, 1)
        seeds = [seed_result(score + 0.004 * spread * draw.gauss(0, 1), [0.5, 0.5], seed) for seed in (0, 1)]
        cost = {"latency_ms": 20 + (index if kind == "a line" else spread * draw.gauss(0, 1))}
        result.append({"variant": ""} | summarise(name, seeds, cost))
    return result


@pytest.mark.parametrize("kind", ["cloud", "one place", "a line"])
def test_names_in_a_chart_lie_apart(kind: str) -> None:
    assert len(NAMES) == 26
    drawn = rows(kind)
    figure = draw_cost(drawn, "latency_ms", "latency")
    (axes,) = figure.axes
    names = [text for text in axes.texts if text.get_text()]
    assert sorted(text.get_text() for text in names) == NAMES
    boxes = [text.get_window_extent() for text in names]
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    inside = axes.get_window_extent()
    assert all(inside.x0 <= b.x0 <= b.x1 <= inside.x1 and inside.y0 <= b.y0 <= b.y1 <= inside.y1 for b in boxes)
    points = [axes.transData.transform((row["latency_ms"], 100 * row["mIoU"])) for row in drawn]
    assert not any(box.contains(*point) for box in boxes for point in points)
    places = [text.get_position() for text in names]
    plt.close(figure)
    again = draw_cost(drawn, "latency_ms", "latency")
    assert [text.get_position() for text in again.axes[0].texts if text.get_text()] == places
    plt.close(again)


def test_a_line_crosses_a_box() -> None:
    box = np.array([2.0, 2, 4, 4])
    through = [((0, 3), (9, 3)), ((3, 0), (3, 9)), ((0, 0), (9, 9)), ((3, 3), (9, 3)), ((0, 3), (3, 3))]
    beside = [((0, 3), (1, 3)), ((5, 0), (5, 9)), ((0, 3), (3, 9)), ((0, 0), (1, 1)), ((0, 1), (9, 1))]
    starts, ends = np.array([*through, *beside], dtype=float).swapaxes(0, 1)
    assert crosses(starts, ends, box).tolist() == [True] * 5 + [False] * 5


def test_a_chart_in_a_page_has_the_page_s_colours_and_nothing_from_outside(tmp_path: Path) -> None:
    section = draw_section(rows("cloud"), tmp_path, 0)
    (drawn,) = section.charts.values()
    assert drawn.svg.startswith("<svg viewBox=")
    assert "http" not in drawn.svg
    assert "<style" in drawn.svg  # matplotlib's own, for line joins
    assert not re.search(r"(fill|stroke): #(0[0-9a-f]){3}\b", drawn.svg), "black would not be seen on black"
    assert "#ffffff" not in drawn.svg
    texts = re.findall(r"<text[^>]*>([^<]*)", drawn.svg)
    assert set(NAMES) < set(texts)
    assert all("fill: currentColor" in tag for tag in re.findall(r"<text[^>]*>", drawn.svg))
    image = Image.open(io.BytesIO(drawn.png)).convert("RGB")
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert (
        chart(draw_cost(rows("cloud"), "latency_ms", "x")).svg == chart(draw_cost(rows("cloud"), "latency_ms", "x")).svg
    )


def test_pictures_wrap_into_equal_lines() -> None:
    def tile(colour: int) -> bytes:
        content = io.BytesIO()
        Image.new("RGB", (160, 80), (colour, 0, 0)).save(content, format="png")
        return content.getvalue()

    row = [(f"name {index}", tile(20 + 5 * index)) for index in range(2 * COLUMNS + 2)]
    sheet = np.asarray(Image.open(io.BytesIO(draw_sheet([row, row[:3], row]))).convert("RGB")).astype(int)
    red = (sheet[..., 0] > 15) & (sheet[..., 1] == 0)
    lines = np.flatnonzero(np.diff(np.concatenate([[0], (red.sum(axis=1) > 100).astype(int)])) == 1)
    assert len(lines) == 3 + 1 + 3
    columns = [np.flatnonzero(np.diff(np.concatenate([[0], red[line + 40].astype(int)])) == 1) for line in lines]
    assert [len(found) for found in columns] == [6, 6, 6, 3, 6, 6, 6]
    assert all((found == columns[0][: len(found)]).all() for found in columns)
    assert draw_sheet([row[:1]])


def test_pictures_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    drawn = [
        {"variant": ""} | summarise(name, [seed_result(0.5, [0.5, 0.5], folder=name)], {}) for name in ("a", "b", "c")
    ]
    drawn.append({"variant": ""} | summarise("d", [{"name": "d", "seed": 0, "status": "not run yet"}], {}))
    assert picture_rows(drawn, tmp_path, 2) == []
    for name in ("a", "b"):
        (tmp_path / name / "pictures").mkdir(parents=True)
        for index in range(3):
            for kind in ("mask", "prediction"):
                Image.new("L", (4, 4), 1).save(tmp_path / name / "pictures" / f"{index}_{kind}.png")
            Image.new("RGB", (4, 4)).save(tmp_path / name / "pictures" / f"{index}_image.png")
    (tmp_path / "b/pictures/1_prediction.png").write_bytes(b"\x89PNG")
    Image.new("RGB", (4, 4)).save(tmp_path / "b/pictures/1_attention.png")
    found = [[name for name, _ in row] for row in picture_rows(drawn, tmp_path, 2)]
    assert found == [["image", "label", "a", "b"], ["image", "label", "a"], ["b, attention"]]

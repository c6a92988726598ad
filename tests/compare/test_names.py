"""Names are text in every part of a report."""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

from segvid.compare.report import console_table, summarise, write_report
from segvid.text import cell, console, markdown, plain
from tests.compare.small import seed_result
from tests.test_text import NASTY

OBEYED = {"\x1b", "\x07", "\r", "\x00", "\u202e", "\u2028", "\udcff"}


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in ("td", "th", "figcaption", "h2"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def nasty_results(output: Path) -> dict[str, Any]:
    """A report in which every name is nasty: of rows, classes, title, variants, recipe and reasons."""
    palette = [[index, 0, 0] for index in range(len(NASTY))]
    more = {"class_names": NASTY, "palette": palette, "distance": [{"start": 0.0, "pixels": 1, "accuracy": 0.5}]}
    rows = []
    for index, name in enumerate(NASTY):
        seed = seed_result(0.5, [0.5] * len(NASTY), folder=f"runs/{index}", **more)
        cost = {"latency_ms": 1.0 + index, "memory_mb": 1.0, "input": [4, 5]}
        rows.append({"variant": NASTY[0]} | summarise(name, [seed], cost))
        failed = {"name": name, "seed": 0, "status": "failed", "reason": name}
        rows.append({"variant": NASTY[1]} | summarise(name, [failed], {}))
        for kind in ("image", "mask", "prediction"):
            (output / f"runs/{index}/pictures").mkdir(parents=True, exist_ok=True)
            Image.new("L", (16, 8), index).save(output / f"runs/{index}/pictures/0_{kind}.png")
    every = " ".join(NASTY)
    facts = {"title": every, "created": "now", "command": every, "segvid": "1", "commit": None, "torch": "2"}
    facts |= {"cost_device": "CPU", "recipe": every, "conventions": "C", "budget": {}, "overrides": {}}
    return facts | {"images": 1, "rows": rows}


def test_every_writer_shows_every_name_as_text(tmp_path: Path) -> None:
    results = nasty_results(tmp_path)
    write_report(results, tmp_path)

    page = Page((tmp_path / "report.html").read_text("utf-8"))
    shown = {text.strip() for text in page.cells}
    assert {plain(name).strip() for name in NASTY} <= shown
    drawing = {"svg", "g", "path", "defs", "use", "text", "clippath", "rect", "style"}
    own = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "br", "table", "tr", "th", "td"}
    assert page.tags <= drawing | own | {"small", "div", "figure", "figcaption", "img", "span"}

    text = (tmp_path / "report.md").read_text("utf-8")
    for name in NASTY:
        assert f"| {markdown(name)} | " in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    columns = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    assert set(columns) == {1 + 1 + 2 + 2, 1 + 1 + 1, 1 + 1 + len(NASTY)}, "a name is one cell"
    for picture in re.findall(r"\]\((pictures/[^)]*)\)", text):
        assert (tmp_path / picture).is_file()

    rows = list(csv.reader(io.StringIO((tmp_path / "results.csv").read_text("utf-8"))))
    assert len(rows) == 1 + 2 * len(NASTY)
    assert [row[0] for row in rows[1:]] == [cell(row["name"]) for row in results["rows"]]
    assert all(not value.lstrip().startswith(("=", "+", "-", "@")) for row in rows for value in row)

    stream = io.StringIO()
    terminal = console(file=stream, width=4000, force_terminal=True, color_system=None)
    terminal.print(console_table(results))
    said = stream.getvalue()
    for name in NASTY:
        assert plain(name).strip() in said

    for written in (
        said,
        text,
        (tmp_path / "report.html").read_text("utf-8"),
        (tmp_path / "results.csv").read_text("utf-8"),
    ):
        assert not set(written) & OBEYED

"""Names are text wherever they are shown."""

import csv
import io

import matplotlib
import pytest
from rich.table import Table

from segvid.text import cell, console, html, label, markdown, plain, slug

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NASTY = [
    "sign [/]",
    "road [paved]",
    "[bold red]x[/bold red]",
    "[/]",
    r"$\x$",
    r"\$ and $",
    "$a",
    "_hidden",
    "__",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "a\rb",
    "a\nb",
    "tab\there",
    "\u202eabc",
    "\u2028",
    "\udcff",
    "\x00",
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "  =1+1",
    ":smile:",
    "<script>alert(1)</script>",
    "&amp;",
    '"><img src=x>',
    "a | b",
    "`code`",
    "*x*",
    "# x",
    "[link](http://x)",
    "~~x~~",
    "C:\\x",
    "../../x",
    "/etc/passwd",
    "%s {0} {name}",
    "",
    " ",
    "x" * 300,
    "道路",
    "été",
]


@pytest.mark.parametrize("name", NASTY)
def test_a_terminal_shows_the_name_and_obeys_nothing(name: str) -> None:
    stream = io.StringIO()
    terminal = console(file=stream, width=400, force_terminal=True, color_system=None)
    terminal.print(plain(name), soft_wrap=True)
    table = Table(title=plain(name))
    table.add_column(plain(name))
    table.add_row(plain(name))
    terminal.print(table)
    said = stream.getvalue()
    assert not set(said) & {"\x1b", "\x07", "\r", "\x00", "\u202e", "\u2028", "\udcff"}
    said.encode()
    assert said.split("\n")[0] == plain(name)
    if name.isprintable():
        assert plain(name) == name


@pytest.mark.parametrize("name", NASTY)
def test_a_chart_draws_the_name(name: str) -> None:
    figure, axes = plt.subplots()
    (line,) = axes.plot([0, 1], label=label(name))
    axes.set_title(label(name))
    figure.canvas.draw()
    assert axes.get_legend_handles_labels()[0] == ([line] if name else [])
    drawn, mathematics = axes.title._preprocess_math(axes.title.get_text())
    assert not mathematics
    assert drawn.strip() == plain(name).strip()
    plt.close(figure)


@pytest.mark.parametrize("name", NASTY)
def test_a_spreadsheet_runs_nothing(name: str) -> None:
    stream = io.StringIO()
    csv.writer(stream).writerow([cell(name), 1])
    (row,) = csv.reader(io.StringIO(stream.getvalue()))
    assert row == [cell(name), "1"]
    assert row[0].lstrip()[:1] not in ("=", "+", "-", "@")
    assert row[0].removeprefix("'") == plain(name)


@pytest.mark.parametrize("name", NASTY)
def test_a_report_shows_the_name(name: str) -> None:
    assert "<" not in html(name)
    assert '"' not in html(name)
    shown = markdown(name)
    assert "\n" not in shown
    for mark in "`*[]<>|~$#":
        assert all(shown[place - 1] == "\\" for place, letter in enumerate(shown) if letter == mark), shown


def test_every_name_has_a_part_of_a_file_name_of_its_own() -> None:
    names = [*NASTY, "a b", "a_b", "A b", "A_b", "a-b", "a/b", "a.b", ".a", "..", "."]
    parts = [slug(name) for name in names]
    assert len({part.lower() for part in parts}) == len(names)
    for part in parts:
        assert part.encode("ascii")
        assert part not in (".", "..")
        assert not part.startswith(".")
        assert "/" not in part
        assert len(part) < 100
    assert slug("ccnet") == "ccnet"
    assert slug("R=1") != slug("r=1")

"""The report of a comparison for a repository: a Markdown file with its pictures beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segvid.compare.charts import Section, draw_sheet
from segvid.compare.table import class_table, distance_table, facts, main_table
from segvid.files import write_whole
from segvid.text import markdown, slug


def markdown_report(results: dict[str, Any], sections: Sequence[Section], output: Path) -> str:
    """The text of the report; writes its pictures below `output`."""
    headings, table = main_table(results)
    lines = [f"# {markdown(results['title'])}", "", *(f"- {markdown(fact)}" for fact in facts(results)), ""]
    cells = [[line.name, *line.scores, *line.figures] for line in table]
    lines += [*markdown_table(["head", *headings], cells), "", results["conventions"], ""]
    for section in sections:
        variant = section.rows[0]["variant"]
        level = "##"
        if variant:
            lines += [f"## {markdown(variant)}", ""]
            level = "###"
        starts, distances = distance_table(section.rows)
        if distances:
            lines += [f"{level} Accuracy by distance to what decides the label, %", ""]
            lines += [*markdown_table(["head", *starts], [[name, *values] for name, values in distances]), ""]
        names, classes = class_table(section.rows)
        lines += [f"{level} IoU of every class, %", ""]
        if names:
            figures = [[name, *("-" if v is None else f"{100 * v:.1f}" for v in values)] for name, values in classes]
            lines += [*markdown_table(["class", *names], figures), ""]
        for title, chart in section.charts.items():
            lines += [f"![{title}]({keep(chart.png, variant, title, output)})", ""]
        if section.pictures:
            sheet = keep(draw_sheet(section.pictures), variant, "predictions", output)
            lines += [f"{level} The same validation images, predicted by every head", "", f"![]({sheet})", ""]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; rows may be shorter than its headings."""
    lines = [headings, *([*row, *[""] * (len(headings) - len(row))] for row in rows)]
    first, *others = ["| " + " | ".join(markdown(text) for text in line) + " |" for line in lines]
    return [first, "|---" + "|---:" * (len(headings) - 1) + "|", *others]


def keep(content: bytes, variant: str, title: str, output: Path) -> str:
    """Writes a picture of a variant; gives its path from the report."""
    name = title.replace(" ", "_") + ".png"
    file = output / "pictures" / (f"{slug(variant)}_{name}" if variant else name)
    write_whole(file, lambda partial: partial.write_bytes(content))
    return f"pictures/{file.name}"

"""The report of a comparison as one HTML file."""

import base64
import html
from collections.abc import Sequence
from typing import Any

from segvid.compare.charts import Section
from segvid.compare.table import distance_table, facts, main_table

STYLE = """
:root { color-scheme: light dark; --line: #8884; --best: #2a9d5c33; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.best { background: var(--best); font-weight: 600; }
.failed { color: #c0392b; text-align: left; white-space: normal; }
figure { display: inline-block; margin: .3rem; text-align: center; vertical-align: top; }
figcaption { font-size: 13px; }
img { max-width: 100%; }
.chart { width: 47%; min-width: 320px; }
.pictures img { width: 220px; image-rendering: pixelated; }
small { opacity: .75; }
.swatch { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 .8em; border: 1px solid var(--line); }
"""


def html_page(results: dict[str, Any], sections: Sequence[Section]) -> str:
    """The report as one file: no script, no link, every picture inside."""
    headings, lines = main_table(results)
    body = [f"<h1>{html.escape(results['title'])}</h1>", "<p>"]
    body += [f"{html.escape(fact)}<br>" for fact in facts(results)]
    body += ["</p><table><tr><th>head</th>", *(f"<th>{html.escape(h)}</th>" for h in headings), "</tr>"]
    for line in lines:
        body.append(f"<tr><td>{html.escape(line.name)}</td>")
        span = "" if line.figures else f' colspan="{len(headings) + 1 - len(line.scores)}"'  # of the last score
        for index, score in enumerate(line.scores):
            mark = "" if line.done[index] else ' class="failed"'
            mark = ' class="best"' if line.best[index] else mark
            body.append(f"<td{mark}{span if index == len(line.scores) - 1 else ''}>{html.escape(score)}</td>")
        body += [*(f"<td>{figure}</td>" for figure in line.figures), "</tr>"]
    body.append(f"</table><p><small>{html.escape(results['conventions'])}</small></p>")
    for section in sections:
        if section.rows[0]["variant"]:
            body.append(f"<h2>{html.escape(section.rows[0]['variant'])}</h2>")
        body += section_lines(section)
    head = f'<meta charset="utf-8"><title>{html.escape(results["title"])}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def section_lines(section: Section) -> list[str]:
    """Charts, tables and pictures of one variant."""
    body = []
    for title, content in section.charts.items():
        body.append(f'<figure class="chart">{picture(content, title)}</figure>')
    starts, lines = distance_table(section.rows)
    if lines:
        body.append("<h3>Accuracy by distance to what decides the label, %</h3><table><tr><th>head</th>")
        body += [*(f"<th>{start}</th>" for start in starts), "</tr>"]
        for name, cells in lines:
            body += [f"<tr><td>{html.escape(name)}</td>", *(f"<td>{text}</td>" for text in cells), "</tr>"]
        body.append("</table>")
    rows = [row for row in section.rows if row["iou"]]
    if rows:
        body.append("<h3>IoU of every class, %</h3><table><tr><th>class</th>")
        body += [*(f"<th>{html.escape(row['name'])}</th>" for row in rows), "</tr>"]
        for index, name in enumerate(rows[0]["class_names"]):
            values = [row["iou"][index] for row in rows]
            top = max((v for v in values if v), default=None)  # 0 is no best
            body.append(f"<tr><td>{html.escape(name)}</td>")
            for value in values:
                mark = ' class="best"' if value is not None and value == top else ""
                body.append(f"<td{mark}>{'-' if value is None else f'{100 * value:.1f}'}</td>")
            body.append("</tr>")
        body.append("</table>")
    if section.pictures:
        body.append("<h3>The same validation images, predicted by every head</h3>" + legend(rows))
        for row_of_pictures in section.pictures:
            body.append('<div class="pictures">')
            for name, content in row_of_pictures:
                body.append(f"<figure>{picture(content, name)}<figcaption>{html.escape(name)}</figcaption></figure>")
            body.append("</div>")
    return body


def legend(rows: Sequence[dict[str, Any]]) -> str:
    """The colours of the classes."""
    seed = next(s for row in rows for s in row["seeds"] if s["status"] == "done")
    parts = [
        f'<span class="swatch" style="background: rgb{tuple(colour)}"></span>{html.escape(name)}'
        for name, colour in zip(seed["class_names"], seed["palette"], strict=True)
    ]
    return f"<p>{''.join(parts)}</p>"


def picture(content: bytes, text: str) -> str:
    """An image element that holds its PNG."""
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'

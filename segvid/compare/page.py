"""The report of a comparison as one HTML file."""

import base64
from collections.abc import Sequence
from typing import Any

from segvid.compare.charts import Section
from segvid.compare.table import class_table, distance_table, facts, main_table
from segvid.text import html

STYLE = """
:root { color-scheme: light dark; --line: #8884; --best: #2a9d5c33; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1, p { overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.best { background: var(--best); font-weight: 600; }
.failed { color: #c0392b; text-align: left; white-space: normal; }
@media (prefers-color-scheme: dark) { .failed { color: #ff7b6b; } }
figure { margin: 0; text-align: center; min-width: 0; }
figcaption { font-size: 13px; overflow-wrap: anywhere; }
img, svg { width: 100%; height: auto; display: block; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1rem; }
.charts figure { max-width: 720px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: .5rem; }
.pictures { margin-bottom: 1.5rem; }
.pictures img { image-rendering: pixelated; }
small { opacity: .75; }
.swatch { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 .8em; border: 1px solid var(--line); }
"""


def html_page(results: dict[str, Any], sections: Sequence[Section]) -> str:
    """The report as one file: no script, no link, every picture inside."""
    headings, lines = main_table(results)
    body = [f"<h1>{html(results['title'])}</h1>", "<p>"]
    body += [f"{html(fact)}<br>" for fact in facts(results)]
    body += ["</p><table><tr><th>head</th>", *(f"<th>{html(h)}</th>" for h in headings), "</tr>"]
    for line in lines:
        body.append(f"<tr><td>{html(line.name)}</td>")
        span = "" if line.figures else f' colspan="{len(headings) + 1 - len(line.scores)}"'  # of the last score
        for index, score in enumerate(line.scores):
            mark = "" if line.known[index] else ' class="failed"'
            mark = ' class="best"' if line.best[index] else mark
            body.append(f"<td{mark}{span if index == len(line.scores) - 1 else ''}>{html(score)}</td>")
        body += [*(f"<td>{figure}</td>" for figure in line.figures), "</tr>"]
    body.append(f"</table><p><small>{html(results['conventions'])}</small></p>")
    for section in sections:
        if section.rows[0]["variant"]:
            body.append(f"<h2>{html(section.rows[0]['variant'])}</h2>")
        body += section_lines(section)
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html(results['title'])}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def section_lines(section: Section) -> list[str]:
    """Charts, tables and pictures of one variant."""
    body = ['<div class="charts">']
    for title, chart in section.charts.items():
        body.append(f'<figure role="img" aria-label="{html(title)}">{chart.svg}</figure>')
    body.append("</div>")
    starts, lines = distance_table(section.rows)
    if lines:
        body.append("<h3>Accuracy by distance to what decides the label, %</h3><table><tr><th>head</th>")
        body += [*(f"<th>{start}</th>" for start in starts), "</tr>"]
        for name, cells in lines:
            body += [f"<tr><td>{html(name)}</td>", *(f"<td>{text}</td>" for text in cells), "</tr>"]
        body.append("</table>")
    names, classes = class_table(section.rows)
    if names:
        body.append("<h3>IoU of every class, %</h3><table><tr><th>class</th>")
        body += [*(f"<th>{html(name)}</th>" for name in names), "</tr>"]
        for name, values in classes:
            top = max((v for v in values if v), default=None)  # 0 is no best
            body.append(f"<tr><td>{html(name)}</td>")
            for value in values:
                mark = ' class="best"' if value is not None and value == top else ""
                body.append(f"<td{mark}>{'-' if value is None else f'{100 * value:.1f}'}</td>")
            body.append("</tr>")
        body.append("</table>")
    if section.pictures:
        body.append("<h3>The same validation images, predicted by every head</h3>" + legend(section.rows))
        for row_of_pictures in section.pictures:
            body.append('<div class="pictures">')
            for name, content in row_of_pictures:
                body.append(f"<figure>{picture(content, name)}<figcaption>{html(name)}</figcaption></figure>")
            body.append("</div>")
    return body


def legend(rows: Sequence[dict[str, Any]]) -> str:
    """The colours of the classes."""
    seed = next(s for row in rows for s in row["seeds"] if s["status"] == "done")
    parts = [
        f'<span class="swatch" style="background: rgb{tuple(colour)}"></span>{html(name)}'
        for name, colour in zip(seed["class_names"], seed["palette"], strict=True)
    ]
    return f"<p>{''.join(parts)}</p>"


def picture(content: bytes, text: str) -> str:
    """An image element that holds its PNG."""
    return f'<img alt="{html(text)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'

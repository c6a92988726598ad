"""The report of a comparison: results.json, results.csv, report.md and a self-contained report.html."""

import base64
import csv
import html
import io
import json
import math
import os
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from rich.table import Table

import segvid
from segvid.compare.config import Comparison, Run

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# key, heading, digits, factor
COLUMNS = (
    ("mIoU", "mIoU %", 2, 100.0),
    ("parameters_m", "parameters M", 2, 1.0),
    ("gflops", "GFLOPs", 2, 1.0),
    ("latency_ms", "latency ms", 1, 1.0),
    ("memory_mb", "memory MB", 1, 1.0),
    ("train_seconds", "training s", 0, 1.0),
    ("images_per_second", "training images/s", 1, 1.0),
    ("train_memory_mb", "training memory MB", 0, 1.0),
)
CONVENTIONS = (
    "mIoU: mean and, over several seeds, standard deviation (n - 1), from one confusion matrix over the whole "
    "validation split with the weights at the end of training. GFLOPs: of one image, one multiply-add = 2, "
    "convolutions and matrix products only. Latency: median of 9 forwards of one image, all models in turns in one "
    "process. Memory: most that one forward holds beyond parameters and image. Training memory: peak of the GPU where "
    "there is one, else of the whole process. Parameters, operations, latency and memory are of backbone and head "
    "without the auxiliary head."
)
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


def gather(comparison: Comparison, runs: Sequence[Run], command: str) -> dict[str, Any]:
    """All that is known of a comparison so far: facts, and one row for every head with its seeds."""
    output = Path(comparison.output)
    cost_file = output / "cost.json"
    cost = json.loads(cost_file.read_text()) if cost_file.is_file() else {"rows": {}, "device": None, "torch": None}
    rows = []
    for name in dict.fromkeys(run.name for run in runs):
        seeds = []
        for run in runs:
            if run.name != name:
                continue
            file = run.folder / "result.json"
            result = json.loads(file.read_text()) if file.is_file() else None
            if result is None or result["fingerprint"] != run.fingerprint:
                result = {"name": name, "seed": run.seed, "status": "not run yet"}
            seeds.append(result | {"folder": os.path.relpath(run.folder, output)})
        rows.append(summarise(name, seeds, cost["rows"].get(name, {})))
    return {
        "title": comparison.title,
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "segvid": segvid.__version__,
        "commit": commit(),
        "torch": cost["torch"],
        "cost_device": cost["device"],
        "recipe": comparison.recipe,
        "budget": comparison.budget,
        "overrides": comparison.overrides,
        "conventions": CONVENTIONS,
        "rows": rows,
    }


def summarise(name: str, seeds: list[dict[str, Any]], cost: dict[str, Any]) -> dict[str, Any]:
    """One row: means over the seeds that are done, the spread of mIoU, and the cost."""
    done = [seed for seed in seeds if seed["status"] == "done"]
    row: dict[str, Any] = {"name": name, "seeds": seeds, "status": "done"}
    if len(done) < len(seeds):
        missing = next(seed for seed in seeds if seed["status"] != "done")
        row["status"], row["reason"] = missing["status"], missing.get("reason")
    for key in ("parameters_m", "gflops", "input", "latency_ms", "memory_mb"):
        row[key] = cost.get(key)
    if cost.get("reason") and row["status"] == "done":
        row["reason"] = f"cost not measured: {cost['reason']}"
    for key in ("mIoU", "mAcc", "aAcc", "mDice", "fwIoU", "train_seconds", "images_per_second", "train_memory_mb"):
        values = [seed[key] for seed in done if seed.get(key) is not None]
        row[key] = statistics.mean(values) if values else None
    row["mIoU_std"] = statistics.stdev([seed["mIoU"] for seed in done]) if len(done) > 1 else None
    row["class_names"] = done[0]["class_names"] if done else None
    row["head"] = done[0]["head"] if done else None
    columns = zip(*(seed["iou"] for seed in done), strict=True)
    row["iou"] = [mean_of_known(values) for values in columns] if done else None
    return row


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Mean of what is there; None if nothing is."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def commit() -> str | None:
    """The commit of the working tree that segvid runs from, where it is one."""
    folder = Path(segvid.__file__).parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def write_report(results: dict[str, Any], output: Path) -> None:
    """Writes the four files; each whole or not at all."""
    pictures = picture_rows(results, output)
    write(output / "results.json", json.dumps(results, indent=1) + "\n")
    write(output / "results.csv", csv_text(results))
    charts = draw_charts(results)
    write(output / "report.md", markdown(results, charts, pictures, output))
    write(output / "report.html", html_page(results, charts, pictures))


def write(file: Path, text: str) -> None:
    """Replaces the file in one step."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text)
    partial.replace(file)


def cell(row: dict[str, Any], key: str, digits: int, factor: float) -> str:
    """One figure of the table; a dash where it is not known."""
    value = row.get(key)
    if value is None:
        return "-"
    text = f"{factor * value:.{digits}f}"
    spread = row.get("mIoU_std") if key == "mIoU" else None
    return text if spread is None else f"{text} ± {factor * spread:.{digits}f}"


def columns(results: dict[str, Any]) -> list[tuple[str, str, int, float]]:
    """The columns in which anything is known."""
    return [c for c in COLUMNS if any(row.get(c[0]) is not None for row in results["rows"])]


def console_table(results: dict[str, Any]) -> Table:
    """The table for the terminal."""
    table = Table(title=results["title"])
    table.add_column("head")
    shown = [c for c in columns(results) if c[0] not in ("images_per_second", "train_memory_mb")]
    for _, heading, _, _ in shown:
        table.add_column(heading, justify="right")
    for row in results["rows"]:
        if row["status"] != "done":
            table.add_row(row["name"], f"[red]{row['status']}[/red]", *[""] * (len(shown) - 1))
        else:
            table.add_row(row["name"], *(cell(row, key, digits, factor) for key, _, digits, factor in shown))
    return table


def csv_text(results: dict[str, Any]) -> str:
    """One line for every head and seed, with every class."""
    names: list[str] = next((row["class_names"] for row in results["rows"] if row["class_names"]), [])
    plain = ["mIoU", "mAcc", "aAcc", "mDice", "fwIoU", "steps", "train_seconds", "images_per_second", "train_memory_mb"]
    cost = ["parameters_m", "gflops", "latency_ms", "memory_mb"]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ["name", "seed", "status", *plain, *cost, *(f"IoU {name}" for name in names), "checkpoint", "reason"]
    )
    for row in results["rows"]:
        for seed in row["seeds"]:
            figures = [seed.get(key) for key in plain] + [row.get(key) for key in cost]
            classes = seed.get("iou") or [None] * len(names)
            writer.writerow(
                [
                    row["name"],
                    seed["seed"],
                    seed["status"],
                    *figures,
                    *classes,
                    seed.get("checkpoint"),
                    seed.get("reason"),
                ]
            )
    return text.getvalue()


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
    """For every validation image: the image, its mask, and what each head (its first seed) predicts, as PNGs."""
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
    return rows


def draw_sheet(pictures: list[list[tuple[str, bytes]]]) -> bytes:
    """All pictures as one PNG: a row for every image, a column for every head."""
    width = len(pictures[0])
    image = Image.open(io.BytesIO(pictures[0][0][1]))
    shape = (1.6 * width, (1.6 * image.height / image.width + 0.05) * len(pictures) + 0.3)
    figure, grid = plt.subplots(len(pictures), width, figsize=shape, squeeze=False, layout="compressed")
    for row, row_of_pictures in zip(grid, pictures, strict=True):
        for axes, (name, content) in zip(row, row_of_pictures, strict=True):
            axes.imshow(Image.open(io.BytesIO(content)).convert("RGB"), interpolation="nearest")
            axes.axis("off")
            if row is grid[0]:
                axes.set_title(name, fontsize=10)
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


def facts(results: dict[str, Any]) -> list[str]:
    """What a reader must know to repeat the comparison."""
    budget = ", ".join(f"{key} {value}" for key, value in results["budget"].items()) or "the recipe's"
    size = next((row["input"] for row in results["rows"] if row.get("input")), None)
    cost = (
        f"Cost of one image of {size[0]} x {size[1]}: {results['cost_device']}, torch {results['torch']}"
        if size
        else ""
    )
    return [
        f"{results['created']}, segvid {results['segvid']}"
        + (f", commit {results['commit']}" if results["commit"] else ""),
        f"Command: {results['command']}",
        f"Recipe: {results['recipe']}; budget: {budget}; seeds: {len(results['rows'][0]['seeds'])}",
        *([cost] if cost else []),
    ]


def markdown(
    results: dict[str, Any], charts: dict[str, bytes], pictures: list[list[tuple[str, bytes]]], output: Path
) -> str:
    """The report for a repository; its pictures are files beside it."""
    folder = output / "pictures"
    folder.mkdir(exist_ok=True)
    shown = columns(results)
    lines = [f"# {results['title']}", "", *(f"- {fact}" for fact in facts(results)), ""]
    lines += ["| head | " + " | ".join(heading for _, heading, _, _ in shown) + " |"]
    lines += ["|---" + "|---:" * len(shown) + "|"]
    for row in results["rows"]:
        if row["status"] == "done":
            cells = [cell(row, key, digits, factor) for key, _, digits, factor in shown]
        else:
            cells = [f"{row['status']}: {row.get('reason') or ''}", *[""] * (len(shown) - 1)]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    lines += ["", results["conventions"], "", "## IoU of every class, %", "", *class_lines(results), ""]
    for key, content in charts.items():
        (folder / f"{key}.png").write_bytes(content)
        lines += [f"![mIoU against {key}](pictures/{key}.png)", ""]
    if pictures:
        (folder / "predictions.png").write_bytes(draw_sheet(pictures))
        lines += ["## The same validation images, predicted by every head", "", "![](pictures/predictions.png)"]
    return "\n".join(lines) + "\n"


def class_lines(results: dict[str, Any]) -> list[str]:
    """A Markdown table of the IoU of every class (rows) under every head (columns)."""
    rows = [row for row in results["rows"] if row["iou"]]
    if not rows:
        return []
    lines = ["| class | " + " | ".join(row["name"] for row in rows) + " |", "|---" + "|---:" * len(rows) + "|"]
    for index, name in enumerate(rows[0]["class_names"]):
        cells = ["-" if row["iou"][index] is None else f"{100 * row['iou'][index]:.1f}" for row in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def html_page(results: dict[str, Any], charts: dict[str, bytes], pictures: list[list[tuple[str, bytes]]]) -> str:
    """The report as one file: no script, no link, every picture inside."""
    shown = columns(results)
    known = [row["mIoU"] for row in results["rows"] if row["mIoU"] is not None]
    best = max(known) if known else math.inf
    body = [f"<h1>{html.escape(results['title'])}</h1>", "<p>"]
    body += [f"{html.escape(fact)}<br>" for fact in facts(results)]
    body += ["</p><table><tr><th>head</th>", *(f"<th>{html.escape(c[1])}</th>" for c in shown), "</tr>"]
    for row in results["rows"]:
        body.append(f"<tr><td>{html.escape(row['name'])}</td>")
        if row["status"] != "done":
            reason = html.escape(f"{row['status']}: {row.get('reason') or ''}")
            body.append(f'<td class="failed" colspan="{len(shown)}">{reason}</td>')
        else:
            for key, _, digits, factor in shown:
                mark = ' class="best"' if key == "mIoU" and row["mIoU"] == best else ""
                body.append(f"<td{mark}>{cell(row, key, digits, factor)}</td>")
        body.append("</tr>")
    body.append(f"</table><p><small>{html.escape(results['conventions'])}</small></p>")
    for key, content in charts.items():
        body.append(f'<figure class="chart">{picture(content, f"mIoU against {key}")}</figure>')
    rows = [row for row in results["rows"] if row["iou"]]
    if rows:
        body.append("<h2>IoU of every class, %</h2><table><tr><th>class</th>")
        body += [*(f"<th>{html.escape(row['name'])}</th>" for row in rows), "</tr>"]
        for index, name in enumerate(rows[0]["class_names"]):
            values = [row["iou"][index] for row in rows]
            top = max((v for v in values if v is not None), default=None)
            body.append(f"<tr><td>{html.escape(name)}</td>")
            for value in values:
                mark = ' class="best"' if value is not None and value == top else ""
                body.append(f"<td{mark}>{'-' if value is None else f'{100 * value:.1f}'}</td>")
            body.append("</tr>")
        body.append("</table>")
    if pictures:
        body.append("<h2>The same validation images, predicted by every head</h2>" + legend(results))
        for row_of_pictures in pictures:
            body.append('<div class="pictures">')
            for name, content in row_of_pictures:
                body.append(f"<figure>{picture(content, name)}<figcaption>{html.escape(name)}</figcaption></figure>")
            body.append("</div>")
    head = f'<meta charset="utf-8"><title>{html.escape(results["title"])}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def legend(results: dict[str, Any]) -> str:
    """The colours of the classes."""
    seed = next(s for row in results["rows"] for s in row["seeds"] if s["status"] == "done")
    parts = [
        f'<span class="swatch" style="background: rgb{tuple(colour)}"></span>{html.escape(name)}'
        for name, colour in zip(seed["class_names"], seed["palette"], strict=True)
    ]
    return f"<p>{''.join(parts)}</p>"


def picture(content: bytes, text: str) -> str:
    """An image element that holds its PNG."""
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'

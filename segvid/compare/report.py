"""The report of a comparison: results.json, results.csv, report.md and a self-contained report.html."""

import csv
import io
import json
import os
import re
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

import segvid
from segvid.compare.charts import Section, draw_section, draw_sheet
from segvid.compare.config import Comparison, Run
from segvid.compare.page import html_page
from segvid.compare.table import by_variant, distance_table, facts, main_table
from segvid.files import write_whole
from segvid.provenance import commit

CONVENTIONS = (
    "mIoU: mean and, over several seeds, standard deviation (n - 1), from one confusion matrix over the whole "
    "validation split with the weights at the end of training. GFLOPs: of one image, one multiply-add = 2, "
    "convolutions and matrix products only. Latency: median of 9 forwards of one image, all models in turns in one "
    "process. Memory: most that one forward holds beyond parameters and image. Training memory: peak of the GPU where "
    "there is one, else of the whole process. Parameters, operations, latency and memory are of backbone and head "
    "without the auxiliary head."
)


def gather(comparison: Comparison, runs: Sequence[Run], command: str) -> dict[str, Any]:
    """All that is known of a comparison so far: facts, and one row for every head with its seeds."""
    output = Path(comparison.output)
    cost_file = output / "cost.json"
    cost = json.loads(cost_file.read_text()) if cost_file.is_file() else {"rows": {}, "device": None, "torch": None}
    rows = []
    for variant, name in dict.fromkeys((run.variant, run.name) for run in runs):
        seeds = []
        for run in runs:
            if (run.variant, run.name) != (variant, name):
                continue
            file = run.folder / "result.json"
            result = json.loads(file.read_text()) if file.is_file() else None
            if result is None or result["fingerprint"] != run.fingerprint:
                result = {"name": name, "seed": run.seed, "status": "not run yet"}
            seeds.append(result | {"folder": os.path.relpath(run.folder, output)})
        rows.append({"variant": variant} | summarise(name, seeds, cost["rows"].get(name, {})))
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
        "variants": comparison.variants,
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
    row["distance"] = mean_by_distance([seed.get("distance") or [] for seed in done])
    return row


def mean_by_distance(seeds: Sequence[Sequence[dict[str, float]]]) -> list[dict[str, float]]:
    """Accuracy in every bin of distances, averaged over the seeds that have pixels there."""
    found: dict[float, list[float]] = {}
    for part in (part for seed in seeds for part in seed):
        found.setdefault(part["start"], []).append(part["accuracy"])
    return [{"start": start, "accuracy": statistics.mean(found[start])} for start in sorted(found)]


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Mean of what is there; None if nothing is."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def write_report(results: dict[str, Any], output: Path) -> None:
    """Writes the four files; each whole or not at all."""
    sections = [draw_section(rows, output) for rows in by_variant(results["rows"])]
    write(output / "results.json", json.dumps(results, indent=1) + "\n")
    write(output / "results.csv", csv_text(results))
    write(output / "report.md", markdown(results, sections, output))
    write(output / "report.html", html_page(results, sections))


def write(file: Path, text: str) -> None:
    """Replaces the file in one step."""
    write_whole(file, lambda partial: partial.write_text(text))


def console_table(results: dict[str, Any]) -> Table:
    """The table for the terminal: what every head reached under every variant, and what it costs."""
    table = Table(title=results["title"])
    table.add_column("head", no_wrap=True)
    headings, lines = main_table(results, hidden=("images_per_second", "train_memory_mb"))
    for heading in headings:
        table.add_column(heading, justify="right")
    for line in lines:
        scores = [
            text if done else Text(text.split(":")[0], style="red")
            for text, done in zip(line.scores, line.done, strict=True)
        ]
        table.add_row(line.name, *scores, *line.figures)
    return table


def csv_text(results: dict[str, Any]) -> str:
    """One line for every head and seed, with every class."""
    names: list[str] = next((row["class_names"] for row in results["rows"] if row["class_names"]), [])
    plain = ["mIoU", "mAcc", "aAcc", "mDice", "fwIoU", "steps", "train_seconds", "images_per_second", "train_memory_mb"]
    cost = ["parameters_m", "gflops", "latency_ms", "memory_mb"]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ["name", "variant", "seed", "status", *plain, *cost, *(f"IoU {name}" for name in names), "checkpoint", "reason"]
    )
    for row in results["rows"]:
        for seed in row["seeds"]:
            figures = [seed.get(key) for key in plain] + [row.get(key) for key in cost]
            classes = seed.get("iou") or [None] * len(names)
            writer.writerow(
                [
                    row["name"],
                    row["variant"],
                    seed["seed"],
                    seed["status"],
                    *figures,
                    *classes,
                    seed.get("checkpoint"),
                    seed.get("reason"),
                ]
            )
    return text.getvalue()


def markdown(results: dict[str, Any], sections: Sequence[Section], output: Path) -> str:
    """The report for a repository; its pictures are files beside it."""
    folder = output / "pictures"
    folder.mkdir(exist_ok=True)
    headings, table = main_table(results)
    lines = [f"# {results['title']}", "", *(f"- {fact}" for fact in facts(results)), ""]
    lines += ["| head | " + " | ".join(headings) + " |", "|---" + "|---:" * len(headings) + "|"]
    for line in table:
        cells = [markdown_cell(text) for text in (line.name, *line.scores, *line.figures)]
        cells += [""] * (len(headings) + 1 - len(cells))
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", results["conventions"], ""]
    for section in sections:
        variant = section.rows[0]["variant"]
        level = "##"
        if variant:
            lines += [f"## {variant}", ""]
            level = "###"
        if any(row["distance"] for row in section.rows):
            lines += [
                f"{level} Accuracy by distance to what decides the label, %",
                "",
                *distance_lines(section.rows),
                "",
            ]
        lines += [f"{level} IoU of every class, %", "", *class_lines(section.rows), ""]
        for title, content in section.charts.items():
            file = folder / (re.sub(r"[^A-Za-z0-9._=-]+", "_", f"{variant} {title}".strip()) + ".png")
            file.write_bytes(content)
            lines += [f"![{title}](pictures/{file.name})", ""]
        if section.pictures:
            file = folder / (re.sub(r"[^A-Za-z0-9._=-]+", "_", f"{variant} predictions".strip()) + ".png")
            file.write_bytes(draw_sheet(section.pictures))
            lines += [
                f"{level} The same validation images, predicted by every head",
                "",
                f"![](pictures/{file.name})",
                "",
            ]
    return "\n".join(lines).rstrip() + "\n"


def distance_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table of the accuracy of every head (rows) at every distance (columns)."""
    starts, lines = distance_table(rows)
    table = ["| head | " + " | ".join(starts) + " |", "|---" + "|---:" * len(starts) + "|"]
    return table + [f"| {markdown_cell(name)} | " + " | ".join(cells) + " |" for name, cells in lines]


def class_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A Markdown table of the IoU of every class (rows) under every head (columns)."""
    rows = [row for row in rows if row["iou"]]
    if not rows:
        return []
    names = " | ".join(markdown_cell(row["name"]) for row in rows)
    lines = [f"| class | {names} |", "|---" + "|---:" * len(rows) + "|"]
    for index, name in enumerate(rows[0]["class_names"]):
        cells = ["-" if row["iou"][index] is None else f"{100 * row['iou'][index]:.1f}" for row in rows]
        lines.append(f"| {markdown_cell(name)} | " + " | ".join(cells) + " |")
    return lines


def markdown_cell(text: str) -> str:
    """The text as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")

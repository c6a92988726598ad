"""The report of a comparison: results.json, results.csv, report.md and a self-contained report.html."""

import csv
import io
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

import segvid
from segvid.compare.charts import draw_section
from segvid.compare.config import Comparison, Run
from segvid.compare.markdown import markdown_report
from segvid.compare.page import html_page
from segvid.compare.records import read_cost, read_result
from segvid.compare.table import NOT_RUN, by_variant, main_table, numbered
from segvid.files import write_json, write_text
from segvid.provenance import commit
from segvid.text import cell, plain

CONVENTIONS = (
    "mIoU: mean and, over several seeds, standard deviation (n - 1), from one confusion matrix over the whole "
    "validation split with the weights at the end of training. GFLOPs: of one image, one multiply-add = 2, "
    "convolutions, matrix products and sums over windows only. Latency: median of 9 forwards of one image, all models "
    "in turns in one process. Memory: most that one forward holds beyond parameters and image. Training memory: peak "
    "of the GPU where "
    "there is one, else of the whole process. Parameters, operations, latency and memory are of backbone and head "
    "without the auxiliary head."
)


def gather(comparison: Comparison, runs: Sequence[Run], command: str) -> dict[str, Any]:
    """All that is known of a comparison so far: facts, and one row for every head with its seeds."""
    output = Path(comparison.output)
    cost = read_cost(output)
    rows = []
    for variant, name in dict.fromkeys((run.variant, run.name) for run in runs):
        seeds = []
        for run in runs:
            if (run.variant, run.name) != (variant, name):
                continue
            result = read_result(run.folder)
            if run.problem is not None:
                result = {"name": name, "seed": run.seed, "status": "failed", "reason": run.problem}
            elif result is None or result["fingerprint"] != run.fingerprint:
                result = {"name": name, "seed": run.seed, "status": NOT_RUN}
            elif run.checkpoint is not None:  # it may have been moved since
                result["checkpoint"] = run.checkpoint
            seeds.append(result | {"folder": os.path.relpath(run.folder, output)})
        costs = asdict(cost.rows[name]) if name in cost.rows else {}
        rows.append({"variant": variant} | summarise(name, seeds, costs))
    return {
        "title": comparison.title,
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "segvid": segvid.__version__,
        "commit": commit(),
        "torch": cost.torch,
        "cost_device": cost.device,
        "recipe": comparison.recipe,
        "budget": comparison.budget,
        "overrides": comparison.overrides,
        "variants": comparison.variants,
        "images": comparison.images,
        "conventions": CONVENTIONS,
        "rows": rows,
    }


def summarise(name: str, seeds: list[dict[str, Any]], cost: dict[str, Any]) -> dict[str, Any]:
    """One row: means over the seeds that are done, the spread of mIoU, and the cost."""
    done = [seed for seed in seeds if seed["status"] == "done"]
    row: dict[str, Any] = {"name": name, "seeds": seeds, "status": "done"}
    if len(done) < len(seeds):
        missing = min((seed for seed in seeds if seed["status"] != "done"), key=lambda seed: seed["status"] == NOT_RUN)
        row["status"], row["reason"] = missing["status"], missing.get("reason")
    for key in ("parameters_m", "gflops", "input", "latency_ms", "memory_mb"):
        row[key] = cost.get(key)
    if cost.get("reason") and row["status"] == "done":
        row["reason"] = f"cost not measured: {cost['reason']}"
    for key in ("mIoU", "mAcc", "aAcc", "mDice", "fwIoU", "train_seconds", "images_per_second", "train_memory_mb"):
        values = [seed[key] for seed in done if seed.get(key) is not None]
        row[key] = statistics.mean(values) if values else None
    scores = [seed["mIoU"] for seed in done if seed["mIoU"] is not None]
    row["mIoU_std"] = statistics.stdev(scores) if len(scores) > 1 else None
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
    sections = [draw_section(rows, output, results["images"]) for rows in by_variant(results["rows"])]
    write_json(output / "results.json", results)
    write_text(output / "results.csv", csv_text(results))
    write_text(output / "report.md", markdown_report(results, sections, output))
    write_text(output / "report.html", html_page(results, sections))


def console_table(results: dict[str, Any]) -> Table:
    """The table for the terminal: what every head reached under every variant, and what it costs."""
    table = Table(title=Text(plain(results["title"])))
    table.add_column("head", no_wrap=True)
    headings, lines = main_table(results, hidden=("images_per_second", "train_memory_mb"))
    for heading in headings:
        table.add_column(Text(plain(heading)), justify="right")
    for line in lines:
        scores = [
            Text(plain(text)) if known else Text(plain(text.split(":")[0]), style="red")
            for text, known in zip(line.scores, line.known, strict=True)
        ]
        table.add_row(Text(plain(line.name)), *scores, *line.figures)
    return table


def csv_text(results: dict[str, Any]) -> str:
    """One line for every head and seed, with every class."""
    classes = dict.fromkeys(name for row in results["rows"] for name in numbered(row["class_names"] or []))
    plain_figures = ["mIoU", "mAcc", "aAcc", "mDice", "fwIoU", "steps"]
    plain_figures += ["train_seconds", "images_per_second", "train_memory_mb"]
    cost = ["parameters_m", "gflops", "latency_ms", "memory_mb"]
    text = io.StringIO()
    writer = csv.writer(text)
    names = [f"IoU {name}" for name, _ in classes]
    header = ["name", "variant", "seed", "status", *plain_figures, *cost, *names, "checkpoint", "reason"]
    writer.writerow([cell(name) for name in header])
    for row in results["rows"]:
        for seed in row["seeds"]:
            known = dict(zip(numbered(seed.get("class_names", [])), seed.get("iou", []), strict=True))
            values = [row["name"], row["variant"], seed["seed"], seed["status"]]
            values += [seed.get(key) for key in plain_figures] + [row.get(key) for key in cost]
            values += [known.get(name) for name in classes] + [seed.get("checkpoint"), seed.get("reason")]
            writer.writerow([cell(value) if isinstance(value, str) else value for value in values])
    return text.getvalue()

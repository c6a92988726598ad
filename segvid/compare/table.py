"""The figures of a comparison as cells of a table, the same for terminal, Markdown and HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NOT_RUN = "not run yet"  # status
# key, heading, digits, factor
MIOU = ("mIoU", "mIoU %", 2, 100.0)
# the same of what a head costs; under several variants that of the first
COLUMNS = (
    ("parameters_m", "params M", 2, 1.0),
    ("gflops", "GFLOPs", 2, 1.0),
    ("latency_ms", "latency ms", 1, 1.0),
    ("memory_mb", "memory MB", 1, 1.0),
    ("train_seconds", "training s", 0, 1.0),
    ("images_per_second", "training images/s", 1, 1.0),
    ("train_memory_mb", "training memory MB", 0, 1.0),
)


def cell(row: dict[str, Any], key: str, heading: str, digits: int, factor: float) -> str:
    """One figure of the table; a dash where it is not known."""
    value = row.get(key)
    if value is None:
        return "-"
    text = f"{factor * value:.{digits}f}"
    spread = row.get("mIoU_std") if key == "mIoU" else None
    return text if spread is None else f"{text} ± {factor * spread:.{digits}f}"


@dataclass(frozen=True)
class Line:
    """One head of the main table.

    Args:
        name: of the head.
        scores: mIoU under every variant, of how many seeds if not of all, or why there is none.
        known: whether there is one.
        best: whether it is the best of all heads whose seeds are all done.
        figures: the other cells; none where nothing is done.
    """

    name: str
    scores: list[str]
    known: list[bool]
    best: list[bool]
    figures: list[str]


def main_table(results: dict[str, Any], hidden: tuple[str, ...] = ()) -> tuple[list[str], list[Line]]:
    """Headings and lines of the table of all heads: mIoU, under every variant if there are some, and what they cost."""
    sections = by_variant(results["rows"])
    names = [f"{rows[0]['variant']} mIoU %" if rows[0]["variant"] else "mIoU %" for rows in sections]
    shown = [c for c in columns(results) if c[0] not in hidden]
    lines = []
    for name in dict.fromkeys(row["name"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["name"] == name]
        known = [any(seed["status"] == "done" for seed in row["seeds"]) for row in rows]
        scores, best = [], []
        for row, section in zip(rows, sections, strict=True):
            top = max((r["mIoU"] or 0 for r in section if r["status"] == "done"), default=0)
            best.append(row["status"] == "done" and top > 0 and row["mIoU"] == top)
            scores.append(score(row))
        first = next((row for row, there in zip(rows, known, strict=True) if there), None)
        figures = [] if first is None else [cell(first, *c) for c in shown]
        lines.append(Line(name, scores, known, best, figures))
    return [*names, *(heading for _, heading, _, _ in shown)], lines


def score(row: dict[str, Any]) -> str:
    """mIoU of a row, and what is missing of it."""
    done = sum(seed["status"] == "done" for seed in row["seeds"])
    reason = f"{row['status']}: {row['reason']}" if row.get("reason") else row["status"]
    if not done:
        return reason
    text = cell(row, *MIOU)
    if row["status"] == "done":
        return text
    of = f"{done} of {len(row['seeds'])} seeds"
    return f"{text} ({of})" if row["status"] == NOT_RUN else f"{text} ({of}, {reason})"


def class_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """Names of the heads that have figures, and for every class its IoU under each."""
    rows = [row for row in rows if row["iou"]]
    classes = dict.fromkeys(name for row in rows for name in numbered(row["class_names"]))
    known = [dict(zip(numbered(row["class_names"]), row["iou"], strict=True)) for row in rows]
    return [row["name"] for row in rows], [(name, [of.get((name, n)) for of in known]) for name, n in classes]


def numbered(names: Sequence[str]) -> list[tuple[str, int]]:
    """Names, each with how often it was there before: two classes may have one name."""
    return [(name, names[:index].count(name)) for index, name in enumerate(names)]


def distance_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Distances in pixels from which on, and for every head its accuracy there in per cent."""
    rows = [row for row in rows if row["distance"]]
    starts = sorted({part["start"] for row in rows for part in row["distance"]})
    lines = []
    for row in rows:
        known = {part["start"]: f"{100 * part['accuracy']:.0f}" for part in row["distance"]}
        lines.append((row["name"], [known.get(start, "-") for start in starts]))
    return [f"{start:.0f}+ px" for start in starts], lines


def by_variant(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of every variant; all in one list where there are none."""
    return [[row for row in rows if row["variant"] == v] for v in dict.fromkeys(row["variant"] for row in rows)]


def columns(results: dict[str, Any]) -> list[tuple[str, str, int, float]]:
    """The columns beside mIoU in which anything is known."""
    return [c for c in COLUMNS if any(row.get(c[0]) is not None for row in results["rows"])]


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

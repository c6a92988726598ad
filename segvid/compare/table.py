"""The figures of a comparison as cells of a table, the same for terminal, Markdown and HTML."""

from typing import Any

# key, heading, digits, factor
COLUMNS = (
    ("mIoU", "mIoU %", 2, 100.0),
    ("parameters_m", "params M", 2, 1.0),
    ("gflops", "GFLOPs", 2, 1.0),
    ("latency_ms", "latency ms", 1, 1.0),
    ("memory_mb", "memory MB", 1, 1.0),
    ("train_seconds", "training s", 0, 1.0),
    ("images_per_second", "training images/s", 1, 1.0),
    ("train_memory_mb", "training memory MB", 0, 1.0),
)


def cell(row: dict[str, Any], key: str, digits: int, factor: float) -> str:
    """One figure of the table; a dash where it is not known."""
    value = row.get(key)
    if value is None:
        return "-"
    text = f"{factor * value:.{digits}f}"
    spread = row.get("mIoU_std") if key == "mIoU" else None
    return text if spread is None else f"{text} ± {factor * spread:.{digits}f}"


def columns(results: dict[str, Any]) -> list[tuple[str, str, int, float]]:
    """mIoU, and the columns in which anything is known."""
    return [c for c in COLUMNS if c[0] == "mIoU" or any(row.get(c[0]) is not None for row in results["rows"])]


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

"""Time and memory of every segmentation head, beside mmsegmentation's and beside the bound that its FLOPs set.

    OMP_NUM_THREADS=1 python tools/benchmark_heads.py --heads NonLocalHead DANetHead --sizes 64 97

Every head is built at its defaults for a ResNet-50 at output stride 8 and 19 classes, with 512 channels. The peer is
measured in the same process, in turns, when mmsegmentation can be imported (in an environment of its own that sees the
same torch: `pip install --no-deps mmengine==0.10.7 mmcv-lite==2.1.0 mmsegmentation==1.2.2 ftfy regex prettytable
wcwidth addict yapf platformdirs`). Its PSANet needs an operator that mmcv-lite has not: a loop over the positions
stands in for it, and the table says so.

On a CPU: one thread, CPU time, medians. Memory is the peak of the resident set (VmHWM, Linux) beyond what the process
held before the call, so that the buffers of oneDNN and MKL count too, which torch's allocator does not see; each case
in a fork of its own of a process that has computed nothing, where freed memory returns to the system at once: exact to
about a megabyte. On a
GPU: time between events, and `max_memory_allocated`. All in float32, TF32 off.

FLOPs (a multiply-add is 2) are those of the formula, the same on every device. The bound is FLOPs / peak, with the
fewer of those of the formula and those counted in the call: neither what is computed again in a backward pass nor
padding that is skipped raises it. The peak is that of the faster of a matrix product and a 3x3 convolution, both
measured in every round.

`head_cases.py` knows the heads and their peers, `head_costs.py` measures a call; here they become a table.
"""

import argparse
import contextlib
import csv
import datetime
import importlib
import io
import itertools
import math
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from head_cases import MODES, PEERS, Case, Side, import_peer, smallest_batch
from head_costs import MemoryServer, count_flops, formula_flops, milliseconds, peak_gflops, peak_mb
from rich.console import Console
from rich.live import Live
from rich.table import Table

from segvid.segmentation import heads


@dataclass(frozen=True)
class Row:
    """One line of the result. A number that was not measured is NaN."""

    head: str
    size: int
    mode: str
    batch: int
    ours_ms: float
    peer_ms: float
    time_ratio: float  # median over the rounds, as are all ratios of times
    ours_mb: float
    peer_mb: float
    memory_ratio: float
    ours_gflop: float
    peer_gflop: float
    time_per_flop_ratio: float
    bound_ms: float
    ours_to_bound: float
    peer_to_bound: float
    ours_executed_gflop: float  # what was counted in the call, with what is computed again, without what is skipped
    product_gflops: float  # GFLOP/s of the matrix product and of the convolution in the same rounds
    convolution_gflops: float


def measure(head: str, size: int, mode: str, repeats: int, server: MemoryServer | None) -> Row:
    """Time, memory and FLOPs of one head, in turns with the peer's where there is one."""
    sides: list[Side] = ["ours"]
    if head in PEERS and import_peer()[0] is not None:
        sides.append("peer")
    batch = 1 if mode == "forward" else smallest_batch([Case(side, head, size, mode) for side in sides])
    cases = {side: Case(side, head, size, mode, batch) for side in sides}
    memory = {side: peak_mb(case, server) for side, case in cases.items()}
    calls = {side: case.prepare() for side, case in cases.items()}
    executed = {side: count_flops(call) for side, call in calls.items()}  # the first call, which is not timed
    formula = {side: formula_flops(case) for side, case in cases.items()}
    gflop = {side: formula[side] if math.isfinite(formula[side]) else executed[side] for side in sides}
    times: dict[str, list[float]] = {side: [] for side in sides}
    peaks: list[tuple[float, float]] = []
    for index in range(repeats):
        for side in sides[:: 1 if index % 2 else -1]:
            times[side].append(milliseconds(calls[side]))
        peaks.append(peak_gflops())
    fewest = {side: min(executed[side], gflop[side]) for side in sides}
    bounds = {side: [1e3 * fewest[side] / max(peak) for peak in peaks] for side in sides}  # ms

    def to_bound(side: Side) -> float:
        return statistics.median(t / b for t, b in zip(times[side], bounds[side], strict=True))

    both = "peer" in sides
    time_ratio = (
        statistics.median(a / b for a, b in zip(times["ours"], times["peer"], strict=True)) if both else math.nan
    )
    return Row(
        head=head,
        size=size,
        mode=mode,
        batch=batch,
        ours_ms=statistics.median(times["ours"]),
        peer_ms=statistics.median(times["peer"]) if both else math.nan,
        time_ratio=time_ratio,
        ours_mb=memory["ours"],
        peer_mb=memory["peer"] if both else math.nan,
        memory_ratio=memory["ours"] / memory["peer"] if both else math.nan,
        ours_gflop=gflop["ours"],
        peer_gflop=gflop["peer"] if both else math.nan,
        time_per_flop_ratio=time_ratio * gflop["peer"] / gflop["ours"] if both else math.nan,
        bound_ms=statistics.median(bounds["ours"]),
        ours_to_bound=to_bound("ours"),
        peer_to_bound=to_bound("peer") if both else math.nan,
        ours_executed_gflop=executed["ours"],
        product_gflops=statistics.median(product for product, _ in peaks),
        convolution_gflops=statistics.median(convolution for _, convolution in peaks),
    )


COLUMNS: dict[str, Callable[[Row], str]] = {
    "head": lambda row: row.head,
    "size": lambda row: str(row.size),
    "mode": lambda row: row.mode + (f", batch {row.batch}" if row.batch > 1 else ""),
    "ours ms": lambda row: number(row.ours_ms, 0),
    "peer ms": lambda row: number(row.peer_ms, 0),
    "ratio": lambda row: number(row.time_ratio, 2),
    "ours MB": lambda row: number(row.ours_mb, 0),
    "peer MB": lambda row: number(row.peer_mb, 0),
    "ratio MB": lambda row: number(row.memory_ratio, 2),
    "GFLOP ours / peer": lambda row: f"{number(row.ours_gflop, 0)} / {number(row.peer_gflop, 0)}",
    "ratio per FLOP": lambda row: number(row.time_per_flop_ratio, 2),
    "LB ms": lambda row: number(row.bound_ms, 0),
    "ours / LB": lambda row: number(row.ours_to_bound, 2),
    "peer / LB": lambda row: number(row.peer_to_bound, 2),
}


def number(value: float, digits: int) -> str:
    """The number with so many digits behind the point (two for small ones), or a dash."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.{digits if value >= 10 else 2}f}"


def console_table(rows: Sequence[Row]) -> Table:
    """The table on the screen."""
    table = Table(padding=(0, 1, 0, 0), box=None)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("head", "mode") else "right")
    for row in rows:
        table.add_row(*(text(row) for text in COLUMNS.values()))
    return table


def csv_text(rows: Sequence[Row]) -> str:
    """All that was measured, unrounded."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(Row.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return stream.getvalue()


def markdown(rows: Sequence[Row], circumstances: Sequence[str]) -> str:
    """The table with what has to be known to read it."""
    lines = ["# Segmentation heads: time and memory", "", *(f"- {line}" for line in circumstances), ""]
    lines += ["| " + " | ".join(COLUMNS) + " |"]
    lines += ["|" + "|".join("---" if column in ("head", "mode") else "---:" for column in COLUMNS) + "|"]
    lines += ["| " + " | ".join(text(row) for text in COLUMNS.values()) + " |" for row in rows]
    notes = [f"- {head}: {PEERS[head].differs}." for head in dict.fromkeys(row.head for row in rows) if differs(head)]
    return "\n".join([*lines, *(["", "Where the architectures differ:", "", *notes] if notes else [])]) + "\n"


def differs(head: str) -> bool:
    """Whether there is a peer to compare with that is not built alike."""
    return head in PEERS and bool(PEERS[head].differs) and import_peer()[0] is not None


def describe(repeats: int, arguments: Sequence[str]) -> list[str]:
    """Where, when and how it was measured."""
    root = Path(__file__).resolve().parent.parent
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    module, compiled = import_peer()
    if module is None:
        peer = "mmsegmentation is not installed: no peer"
    else:
        peer = f"peer: mmsegmentation {importlib.import_module('mmseg').__version__}"
        peer += "" if compiled else "; PSANet's compiled mask is missing there: a Python loop over positions stands in"
    if torch.cuda.is_available():
        device = f"{torch.cuda.get_device_name()}, time between events, peak of allocated memory"
    else:
        cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        device = f"{cpu[0].split(':')[1].strip() if cpu else 'CPU'}, one thread, CPU time, peak of the resident set"
    return [
        f"{device}; torch {torch.__version__}, float32",
        f"{datetime.date.today()}, commit {commit}, median of {repeats}; {peer}",
        f"command: `OMP_NUM_THREADS=1 python tools/benchmark_heads.py {shlex.join(arguments)}`",
        "maps of a ResNet-50 at output stride 8: the last is 1 x 2048 x size x size; 19 classes",
        "LB: fewest FLOPs / peak of the faster of a matrix product and a 3x3 convolution, measured in the same rounds",
    ]


def main(args: Sequence[str] | None = None) -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description="Time and memory of the segmentation heads.")
    parser.add_argument("--heads", nargs="+", default=heads.__all__, choices=heads.__all__, metavar="HEAD")
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 97], help="of the last map (default: 64 97)")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--repeats", type=int, default=5, help="turns of every case (default: 5)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/benchmark_heads"),
        help="files to write, without suffix: .csv and .md (default: runs/benchmark_heads)",
    )
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        torch.set_default_device("cuda")
        torch.backends.cudnn.allow_tf32 = False

    console = Console() if sys.stdout.isatty() else Console(width=160)
    circumstances = describe(options.repeats, sys.argv[1:] if args is None else args)
    console.print(*circumstances, sep="\n")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    resident = Path("/proc/self/clear_refs").exists() and not torch.cuda.is_available()
    with (
        MemoryServer() if resident else contextlib.nullcontext() as server,
        Live(console_table(rows), console=console, auto_refresh=False, vertical_overflow="visible") as live,
    ):
        for head, size, mode in itertools.product(options.heads, options.sizes, options.modes):
            rows.append(measure(head, size, mode, options.repeats, server))
            live.update(console_table(rows), refresh=True)
            options.output.with_suffix(".csv").write_text(csv_text(rows))
            options.output.with_suffix(".md").write_text(markdown(rows, circumstances))
    console.print()
    for head in filter(differs, options.heads):
        console.print(f"{head}: {PEERS[head].differs}")


if __name__ == "__main__":
    main()

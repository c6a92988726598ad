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

FLOPs (a multiply-add is 2) are the fewer of those counted in the call and those of the plain formula that is exported:
what is computed again in a backward pass does not raise the bound. The bound is FLOPs / peak; the peak is that of the
faster of a matrix product and a 3x3 convolution, both measured in every round.
"""

import argparse
import contextlib
import csv
import ctypes
import datetime
import functools
import gc
import importlib
import importlib.util
import io
import itertools
import json
import logging
import math
import os
import shlex
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal
from unittest import mock

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from segvid.segmentation import heads
from segvid.segmentation.heads.base import SegmentationHead

Side = Literal["ours", "peer"]

CHANNELS = (256, 512, 1024, 2048)
CLASSES = 19
MODES = ("forward", "train")


# Which head of mmsegmentation belongs to which of ours


@dataclass(frozen=True)
class Peer:
    """Name and options of mmsegmentation's head, our options where the defaults differ, and what still differs."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)
    differs: str = ""


PEERS = {
    "ANNHead": Peer("ANNHead", {"in_channels": [1024, 2048], "in_index": [2, 3], "project_channels": 256}),
    "APCNetHead": Peer("APCHead", {"pool_scales": (1, 2, 3, 6)}),
    "CCNetHead": Peer("CCHead"),
    "DANetHead": Peer("DAHead", {"pam_channels": 64}, {}, "the peer classifies all three maps in evaluation too"),
    "DNLNetHead": Peer("DNLHead"),
    "DeepLabV3Head": Peer(
        "ASPPHead",
        {"dilations": (1, 12, 24, 36)},
        {"channels": 512},
        "ours with the peer's 512 channels (default 256); the peer fuses with 3x3, ours with the paper's 1x1",
    ),
    "DeepLabV3PlusHead": Peer(
        "DepthwiseSeparableASPPHead",
        {"dilations": (1, 12, 24, 36), "c1_in_channels": 256, "c1_channels": 48},
        {},
        "the peer: 512 channels, depthwise separable 3x3, and a 3x3 fusion; ours: 256 channels, full 3x3, a 1x1 fusion",
    ),
    "EMANetHead": Peer(
        "EMAHead",
        {"channels": 256, "ema_channels": 512, "num_bases": 64, "num_stages": 3, "concat_input": False},
        {},
        "the peer without its concatenation (concat_input=False): the paper has none",
    ),
    "FCNHead": Peer("FCNHead"),
    "GCNetHead": Peer("GCHead", {"ratio": 0.25, "pooling_type": "att", "fusion_types": ("channel_add",)}),
    "ISANetHead": Peer("ISAHead", {"isa_channels": 256, "down_factor": (8, 8)}),
    "NonLocalHead": Peer("NLHead"),
    "PSANetHead": Peer("PSAHead"),
    "PSPNetHead": Peer("PSPHead"),
}


class _MissingExtension(ModuleType):
    """Stands for mmcv's compiled module, so that mmsegmentation can be imported; its functions raise."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError(f"mmcv._ext.{name} is a compiled operator, and mmcv-lite has none.")

        return missing


def psa_windows(mask: Tensor, affinity: Tensor, collect: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """For each position the offsets that it predicts, and where they belong: views of the same shape.

    Shape:
        mask (B, Mh, Mw, H, W), affinity (B, H, W, H, W) -> pairs of (B, rows, columns).
    """
    mask_height, mask_width, height, width = mask.shape[1:]
    half_height, half_width = (mask_height - 1) // 2, (mask_width - 1) // 2
    for h in range(height):
        top, bottom = max(0, half_height - h), min(mask_height, height + half_height - h)
        rows = slice(top + h - half_height, bottom + h - half_height)
        for w in range(width):
            left, right = max(0, half_width - w), min(mask_width, width + half_width - w)
            columns = slice(left + w - half_width, right + w - half_width)
            target = affinity[:, rows, columns, h, w] if collect else affinity[:, h, w, rows, columns]
            yield mask[:, top:bottom, left:right, h, w], target


class PSAMaskLoop(torch.autograd.Function):
    """The formula of mmcv's compiled psamask, forward and backward, as a loop over the positions."""

    @staticmethod
    def forward(ctx: Any, mask: Tensor, psa_type: int, mask_size: tuple[int, int]) -> Tensor:
        batch, _, height, width = mask.shape
        ctx.collect, ctx.shape = psa_type == 0, (batch, *mask_size, height, width)
        affinity = mask.new_zeros(batch, height, width, height, width)
        for predicted, target in psa_windows(mask.reshape(ctx.shape), affinity, ctx.collect):
            target.copy_(predicted)
        return affinity.reshape(batch, height * width, height, width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        batch, _, _, height, width = ctx.shape
        grad_mask = grad.new_zeros(ctx.shape)
        grad_affinity = grad.reshape(batch, height, width, height, width)
        for predicted, target in psa_windows(grad_mask, grad_affinity, ctx.collect):
            predicted.copy_(target)
        return grad_mask.reshape(batch, -1, height, width), None, None


@functools.cache
def import_peer() -> tuple[Any, bool]:
    """mmsegmentation's decode heads, None if it is not installed; and whether mmcv's compiled operators are there."""
    if importlib.util.find_spec("mmseg") is None:
        return None, False
    warnings.filterwarnings("ignore", module=r"mm(cv|engine|seg).*")
    logging.getLogger("mmengine").setLevel(logging.ERROR)
    compiled = importlib.util.find_spec("mmcv._ext") is not None
    if not compiled:
        sys.modules["mmcv._ext"] = _MissingExtension("mmcv._ext")
        importlib.import_module("mmcv.ops.psa_mask").psa_mask = PSAMaskLoop.apply  # type: ignore[attr-defined]
    return importlib.import_module("mmseg.models.decode_heads"), compiled


# A case: a head of one side, its input, one call


@dataclass(frozen=True)
class Case:
    """One head of one side at one size, for one forward, or for one forward and backward in training mode."""

    side: Side
    head: str
    size: int
    mode: str
    batch: int = 1

    def build(self) -> nn.Module:
        """The head, on the default device."""
        peer = PEERS.get(self.head, Peer(""))
        offsets = 2 * ((self.size - 1) // 2 + 1) - 1  # of a map shrunk by 2: all of PSANet's offsets, at this size only
        module: nn.Module
        if self.side == "ours":
            options = {**peer.ours, **({"mask_size": (offsets, offsets)} if self.head == "PSANetHead" else {})}
            module = getattr(heads, self.head)(CHANNELS, CLASSES, **options)
        else:
            common = {"in_channels": 2048, "in_index": 3, "channels": 512, "num_classes": CLASSES}
            options = {**common, "norm_cfg": {"type": "BN"}, **peer.options}
            options |= {"mask_size": (offsets, offsets)} if self.head == "PSANetHead" else {}
            module = getattr(import_peer()[0], peer.name)(**options)
        return module.train(self.mode == "train")

    def features(self) -> list[Tensor]:
        """What a backbone of output stride 8 gives: not negative, the first map at twice the size of the others."""
        sizes = (2 * self.size, self.size, self.size, self.size)
        maps = [torch.randn(self.batch, c, s, s).relu_() for c, s in zip(CHANNELS, sizes, strict=True)]
        return [m.requires_grad_(self.mode == "train") for m in maps]

    def prepare(self) -> Callable[[], None]:
        """The call to be measured, ready to be made any number of times."""
        module, maps = self.build(), self.features()

        def call() -> None:
            if self.mode == "forward":
                with torch.no_grad():
                    module(maps)
                return
            supervised = module.supervised(maps) if isinstance(module, SegmentationHead) else module(maps)
            outputs = supervised if isinstance(supervised, list | tuple) else [supervised]
            torch.stack([output.sum() for output in outputs]).sum().backward()
            for tensor in (*maps, *module.parameters()):
                tensor.grad = None

        return call


def smallest_batch(cases: Sequence[Case]) -> int:
    """1, or 2 where one of the heads cannot train on one sample: a batch norm on a pooled 1x1 map has one value."""
    try:
        for case in cases:
            with FakeTensorMode():
                case.prepare()()
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return 2
    except DataDependentOutputException:
        return 1  # it needs values to know what to do, as k-means on the first batch; one sample is enough for it
    return 1


# What is measured of a call


def _product(out: Sequence[int], a: Sequence[int], b: Sequence[int], **kwargs: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def _convolution_backward(
    grad: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    **kwargs: Any,
) -> int:
    forward = 2 * math.prod(x if transposed else grad) * math.prod(weight[1:])
    return forward * (output_mask[0] + output_mask[1])


# torch 2.14 leaves in-place products out, and counts the weight gradient of a grouped convolution once for each group.
CORRECTED = {
    torch.ops.aten.baddbmm_: _product,
    torch.ops.aten.addmm_: _product,
    torch.ops.aten.convolution_backward: _convolution_backward,
}


def count_flops(call: Callable[[], None]) -> float:
    """GFLOPs of the products and convolutions of a call."""
    counter = FlopCounterMode(display=False, custom_mapping=CORRECTED)
    with counter:
        call()
    return counter.get_total_flops() / 1e9


def formula_flops(case: Case) -> float:
    """The same of the plain formula, as it is exported; infinite where a head needs values to know what to do."""
    try:
        with FakeTensorMode(), mock.patch.object(torch.compiler, "is_compiling", return_value=True):
            return count_flops(case.prepare())
    except DataDependentOutputException:
        return math.inf


def milliseconds(call: Callable[[], None]) -> float:
    """Time on the GPU where there is one, else CPU time."""
    if torch.cuda.is_available():
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(stop))
    before = time.process_time()
    call()
    return 1e3 * (time.process_time() - before)


def peak_gflops() -> tuple[float, float]:
    """GFLOP/s of a matrix product and of a 3x3 convolution, in large pieces of the kind that heads consist of."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    x, weight = torch.randn(1, 512, 32, 32), torch.randn(512, 512, 3, 3)

    def product() -> None:
        for _ in range(4):
            torch.mm(a, b)

    def convolution() -> None:
        with torch.no_grad():
            for _ in range(2):
                nn.functional.conv2d(x, weight, padding=1)

    for warm_up in (product, convolution):
        warm_up()
    return 4 * 2 * 1024**3 / milliseconds(product) / 1e6, 2 * 2 * 9 * 512**2 * 32**2 / milliseconds(convolution) / 1e6


def resident_kilobytes(name: Literal["VmHWM", "VmRSS"]) -> int:
    """Peak or present resident set of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def resident_peak_mb(case: Case) -> float:
    """Largest resident set of one call beyond what the process held before it."""
    small = Case(case.side, case.head, 16, case.mode, batch=2)
    small.prepare()()  # loads the code of the libraries
    call = case.prepare()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory goes back to the system, else the call would find it for nothing
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident_kilobytes("VmRSS")
    call()
    return (resident_kilobytes("VmHWM") - before) / 1024


class MemoryServer:
    """A process that has computed nothing and measures each case in a fork of itself, in which nothing lies about."""

    def __enter__(self) -> "MemoryServer":
        command = [sys.executable, str(Path(__file__).resolve()), "--serve-memory"]
        # A fixed threshold: glibc would raise it to 32 MB and keep freed tensors of that size resident.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.communicate()

    def peak_mb(self, case: Case) -> float:
        """Extra peak memory of one call, in MB."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(case)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The process that measures memory ended at {case}.")
        return float(answer)

    @staticmethod
    def serve() -> None:
        """The other end: a case a line on standard input, megabytes a line on standard output."""
        import_peer()
        for line in sys.stdin:
            if os.fork() == 0:
                try:
                    answer = resident_peak_mb(Case(**json.loads(line)))
                except Exception:
                    traceback.print_exc()
                    answer = math.nan
                print(answer, flush=True)
                os._exit(0)
            os.wait()


def peak_mb(case: Case, server: MemoryServer | None) -> float:
    """Extra peak memory of one call: of the resident set, or on a GPU of what torch has allocated."""
    if server is not None:
        return server.peak_mb(case)
    if not torch.cuda.is_available():
        return math.nan
    call = case.prepare()
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


# The table


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
    ours_executed_gflop: float  # what was counted in the call, with what is computed again
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
    gflop = {side: min(executed[side], formula_flops(case)) for side, case in cases.items()}
    times: dict[str, list[float]] = {side: [] for side in sides}
    peaks: list[tuple[float, float]] = []
    for index in range(repeats):
        for side in sides[:: 1 if index % 2 else -1]:
            times[side].append(milliseconds(calls[side]))
        peaks.append(peak_gflops())
    bounds = {side: [1e3 * gflop[side] / max(peak) for peak in peaks] for side in sides}  # ms

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
        "LB: FLOPs / peak of the faster of a matrix product and a 3x3 convolution, measured in the same rounds",
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
    parser.add_argument("--serve-memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    if options.serve_memory:
        MemoryServer.serve()
        return
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

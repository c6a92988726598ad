"""What `benchmark_heads.py` measures of one call of a head: FLOPs, time, memory, and what the machine can do at all.

Run as a program it is the process that measures memory, see `MemoryServer`.
"""

import ctypes
import gc
import json
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from head_cases import Case, import_peer
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from segvid.attention.functional import counting


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
    """The same of the formula, whatever is faster; infinite where a head needs values to know what to do."""
    try:
        with FakeTensorMode(), counting():
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
        command = [sys.executable, str(Path(__file__).resolve())]
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    MemoryServer.serve()

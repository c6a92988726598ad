"""What the models of a comparison cost: parameters, floating-point operations, latency and memory of one image.

`python -m segvid.compare.cost SPEC.json PARENT`: all models in one process, timed in turns, so that a busy machine
slows all of them alike. On a CPU the time is the process's CPU time on one thread; on a GPU it is the time between two
events.
"""

import copy
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from segvid.attention.functional import counting
from segvid.compare.processes import end_with_parent, leave_signals_to_parent
from segvid.compare.records import CostSpec
from segvid.errors import user_message
from segvid.files import read_json, write_json
from segvid.training import SegvidCLI, prepare

ROUNDS = 9


def main(spec_file: str) -> int:
    """Measures every model of the specification that can be built; writes its `output`."""
    spec = read_json(Path(spec_file), CostSpec)
    prepare()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models: dict[str, nn.Module] = {}
    images: dict[str, Tensor] = {}
    results: dict[str, dict[str, Any]] = {}
    for name, words in spec.rows.items():
        try:
            cli = SegvidCLI(run=False, save_config_callback=None, args=[*words, "--trainer.logger=false"])
            sample = cli.datamodule.dataset("val", augmented=False)[0]["image"]
            models[name] = cli.model.eval().requires_grad_(False).to(device)
            images[name] = sample.unsqueeze(0).to(device)
            results[name] = count(models[name], images[name])
        except Exception as error:
            reason = user_message(error) or f"{type(error).__name__}: {error}".splitlines()[0][:300]
            results[name] = {"reason": reason}
            models.pop(name, None)
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):  # the first round warms up
            for name, model in models.items():
                times[name].append(milliseconds(model, images[name]))
        for name, model in models.items():
            results[name]["latency_ms"] = statistics.median(times[name][1:])
            results[name]["memory_mb"] = forward_memory_mb(model, images[name])
    kind = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, one thread, CPU time"
    write_json(Path(spec.output), {"device": kind, "torch": torch.__version__, "rows": results})
    return 0


def count(model: nn.Module, image: Tensor) -> dict[str, Any]:
    """Parameters in millions and GFLOPs (one multiply-add = 2) of one image, by the formula: on every device alike."""

    def gflops(model: nn.Module, image: Tensor) -> float:
        counter = FlopCounterMode(display=False)
        # torch's fused attention is not counted on a CPU, its plain form is
        with counting(), sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
            model(image)
        return counter.get_total_flops() / 1e9

    try:  # fake tensors cost no time and no memory; on a copy, because a model may keep what it has seen
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        weights = {id(tensor): fake.from_tensor(tensor) for tensor in (*model.parameters(), *model.buffers())}
        replica = copy.deepcopy(model, weights)
        with fake:
            operations = gflops(replica, fake.from_tensor(image))
    except Exception:  # a model that needs values to know what to do
        operations = gflops(model, image)
    evaluated = [model.get_submodule(name) for name in ("backbone", "head")]  # not the auxiliary head
    return {
        "parameters_m": sum(p.numel() for module in evaluated for p in module.parameters()) / 1e6,
        "gflops": operations,
        "input": list(image.shape[2:]),
    }


def milliseconds(model: nn.Module, image: Tensor) -> float:
    """Time of one forward."""
    if image.device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        model(image)
        stop.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(stop))
    before = time.process_time()
    model(image)
    return 1e3 * (time.process_time() - before)


def forward_memory_mb(model: nn.Module, image: Tensor) -> float:
    """Largest memory that one forward holds at a time beyond parameters and image."""
    if image.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(image)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        model(image)
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


if __name__ == "__main__":
    end_with_parent(int(sys.argv[2]))
    leave_signals_to_parent()
    sys.exit(main(sys.argv[1]))

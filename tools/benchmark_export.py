"""Latency of one model in every form: eager, torch.compile, TorchScript, torch.export, AOTInductor, ONNX.

    OMP_NUM_THREADS=1 python tools/benchmark_export.py --ckpt_path RUN/checkpoints/best.ckpt --size 360 480

All forms run in one process on one thread, taking turns, and the CPU time of a forward of one image is taken: the
median over the repeats, with the ratio to eager. The files are made anew in a temporary folder, without the gate of
`segvid export`. `--compiled` adds the two forms that need a C++ compiler and minutes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from segvid.export import formats
from segvid.export.graph import InferenceGraph
from segvid.export.record import SUFFIXES
from segvid.export.run_file import Run, load
from segvid.segmentation.trained import load_trained
from segvid.text import console


def forms(graph: InferenceGraph, folder: Path, compiled: bool) -> dict[str, Run]:
    """Every form of the graph, as a function of an image."""

    def runner(module: Callable[[torch.Tensor], torch.Tensor]) -> Run:
        def run(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            with torch.no_grad():
                return module(torch.from_numpy(image)).numpy()

        return run

    found = {"eager": runner(graph)}
    image = formats.example(formats.SizeRule(), "uint8")
    if compiled:
        found["torch.compile"] = runner(torch.compile(graph, dynamic=True))
    writers: dict[str, tuple[str, Callable[[Path], str]]] = {
        "TorchScript": ("torchscript", lambda f: formats.write_torchscript(graph, image, f, optimize=False)),
        "TorchScript --optimize": ("torchscript", lambda f: formats.write_torchscript(graph, image, f, optimize=True)),
        "pt2": ("pt2", lambda f: formats.write_pt2(graph, image, f, compiled=False)),
        "ONNX": ("onnx", lambda f: formats.write_onnx(graph, image, f)),
    }
    if compiled:
        writers["pt2 --compile"] = ("aoti", lambda f: formats.write_pt2(graph, image, f, compiled=True))
    for index, (name, (kind, write)) in enumerate(writers.items()):
        file = folder / f"{index}{'.pt2' if kind == 'aoti' else SUFFIXES[kind]}"
        write(file)
        found[name] = load(kind, str(file))
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(360, 480), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    model = load_trained(options.ckpt_path)
    graph = InferenceGraph(model.task.backbone, model.task.head, model.mean, model.std, "logits").eval()
    for parameter in graph.parameters():
        parameter.requires_grad_(False)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, *options.size), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        runs = forms(graph, Path(folder), options.compiled)
        for _ in range(3):  # TorchScript specialises in its first runs
            outputs = {name: run(image) for name, run in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.repeats):
            for name, run in runs.items():
                before = time.process_time()
                run(image)
                times[name].append(1e3 * (time.process_time() - before))
    medians = {name: statistics.median(found) for name, found in times.items()}
    scale = np.abs(outputs["eager"]).max()
    table = Table(
        title=f"{type(graph.head).__name__} on {type(graph.backbone).__name__}, one image, one thread, CPU time"
    )
    for column in ("form", "ms", "ratio to eager", "largest error / largest score"):
        table.add_column(column, justify="left" if column == "form" else "right")
    for name, median in medians.items():
        error = np.abs(outputs[name] - outputs["eager"]).max() / scale
        table.add_row(name, f"{median:.0f}", f"{median / medians['eager']:.2f}", f"{error:.1e}")
    console().print(table)


if __name__ == "__main__":
    main()

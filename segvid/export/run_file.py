"""Loads and runs an exported file with nothing but torch or onnxruntime.

As a program (`python run_file.py FORMAT FILE INPUTS OUTPUTS`) it is the fresh process of the gate: it runs the file on
the arrays of INPUTS (.npz) and writes OUTPUTS (.npz). It imports no other module of segvid.
"""

import io
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Run = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def load(kind: str, file: str | bytes, device: str = "cpu") -> Run:
    """A function from images (B, 3, H, W) to what the file gives for them.

    Args:
        kind: "torchscript", "pt2", "aoti" (a compiled .pt2) or "onnx".
        file: the exported file, or its content ("aoti": the file only).
        device: where it runs; an ONNX file on a GPU needs onnxruntime-gpu.
    """
    if kind == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        options.add_session_config_entry("session.load_model_format", "ONNX")  # never taken for onnxruntime's own
        if device != "cpu" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise ValueError(f"this onnxruntime cannot use {device}; use cpu, or install onnxruntime-gpu")
        providers = ["CUDAExecutionProvider"] if device.startswith("cuda") else ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(file, options, providers=providers)
        name = session.get_inputs()[0].name
        return lambda image: np.asarray(session.run(None, {name: image})[0])
    if kind == "aoti" and device != "cpu":
        raise ValueError("it is compiled for the CPU")
    source: Any = io.BytesIO(file) if isinstance(file, bytes) else file
    torch.zeros(1, device=device).cpu()  # fails where nothing can be computed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, and works
        if kind == "torchscript":
            module: Callable[[torch.Tensor], torch.Tensor] = torch.jit.load(source, map_location=device)
        elif kind == "aoti":
            module = torch._inductor.aoti_load_package(source)
        else:
            module = torch.export.load(source).module().to(device)

    def run(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return module(torch.from_numpy(image).to(device)).cpu().numpy()

    return run


def main(kind: str, file: str, inputs: str, outputs: str) -> None:
    """Runs every array."""
    torch.set_num_threads(1)
    run = load(kind, file)
    with np.load(inputs) as images:
        found = {name: run(images[name]) for name in images.files}
    if "segvid" in sys.modules:
        raise RuntimeError("the exported file needs segvid")
    np.savez(outputs, allow_pickle=False, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

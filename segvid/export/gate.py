"""Is an exported file the model? It is loaded by a fresh process without segvid and compared with eager PyTorch."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segvid.errors import UserError
from segvid.text import plain

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from segvid.export.formats import SizeRule
    from segvid.export.graph import InferenceGraph

    Array = NDArray[Any]

# Largest error over the largest score. TorchScript runs the same kernels; fusion and other kernels round differently.
ERROR_BOUNDS = {"torchscript": 1e-5, "pt2": 1e-5, "aoti": 1e-4, "onnx": 1e-4}
AGREEMENT_BOUND = 0.9999
SIZES = ((1, 64, 96), (2, 65, 97), (1, 128, 81), (3, 96, 96), (1, 97, 163))  # batch, height, width
INPUTS = f"noise of {len(SIZES)} sizes, the least size and a photograph"  # what `cases` makes, for texts


@dataclass(frozen=True)
class Case:
    """What was compared.

    Args:
        name: of the images.
        shape: batch, height, width.
        error: largest difference of a score over the largest score; None where the file gives classes.
        agreement: share of the pixels with the same class.
    """

    name: str
    shape: tuple[int, int, int]
    error: float | None
    agreement: float


def cases(rule: "SizeRule", picture: "Array", input_type: str) -> "dict[str, Array]":
    """Noise of `SIZES`, odd and not square, in batches of one to three, the least size, and a picture (H, W, 3)."""
    import numpy as np

    generator = np.random.default_rng(1)
    found: dict[str, Array] = {}
    for batch, height, width in SIZES:
        shape = (batch, 3, rule.fit(height), rule.fit(width))
        found[f"noise {len(found) + 1}"] = generator.integers(0, 256, shape, dtype=np.uint8)
    least = (1, 3, rule.fit(1), rule.fit(1))
    found["the least"] = generator.integers(0, 256, least, dtype=np.uint8)
    missing = [(0, rule.fit(length) - length) for length in picture.shape[:2]]
    whole = np.pad(picture, (*missing, (0, 0)), mode="wrap")
    found["picture"] = np.ascontiguousarray(whole.transpose(2, 0, 1)[None])
    return found if input_type == "uint8" else {k: v.astype(np.float32) / np.float32(255) for k, v in found.items()}


def compare(graph: "InferenceGraph", kind: str, file: Path, images: "dict[str, Array]") -> list[Case]:
    """Runs the file in a fresh process, and the graph here.

    Raises:
        UserError: the file cannot be loaded or run without segvid.
    """
    import numpy as np
    import torch

    program = Path(__file__).with_name("run_file.py")
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        np.savez(inputs, allow_pickle=False, **images)
        # -I: neither this folder nor that of the script is searched for modules.
        command = [sys.executable, "-I", str(program), kind, str(file), str(inputs), str(outputs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise UserError(f"the {kind} file does not run: {plain(lines[-1][:300])}")
        with np.load(outputs) as content:
            found = {name: content[name] for name in content.files}
    result = []
    with torch.no_grad():
        for name, image in images.items():
            if not scores(graph, image).isfinite().all():
                raise UserError("the scores of the model are no numbers: its weights are broken.")
            expected = graph(torch.from_numpy(image)).numpy()
            shape = (image.shape[0], image.shape[2], image.shape[3])
            result.append(Case(name, shape, *difference(expected, found[name], graph.output_type)))
    return result


def scores(graph: "InferenceGraph", image: "Array") -> "torch.Tensor":
    """The logits, whatever the graph gives."""
    import torch

    output_type, graph.output_type = graph.output_type, "logits"
    logits: torch.Tensor = graph(torch.from_numpy(image))
    graph.output_type = output_type
    return logits


def difference(expected: "Array", found: "Array", output_type: str) -> tuple[float | None, float]:
    """Largest relative error, and share of equal classes.

    Raises:
        UserError: shape or type differ.
    """
    import numpy as np

    if expected.shape != found.shape or expected.dtype != found.dtype:
        raise UserError(
            f"the file gives {found.dtype} {list(found.shape)} where the model gives {expected.dtype} "
            f"{list(expected.shape)}."
        )
    if output_type == "classes":
        return None, float((expected == found).mean())
    scale = max(1.0, float(np.abs(expected).max()))
    error = float(np.abs(expected.astype(np.float64) - found).max()) / scale
    return error, float((expected.argmax(axis=1) == found.argmax(axis=1)).mean())


def passes(kind: str, found: Sequence[Case]) -> bool:
    """Whether every case is within the bounds; a NaN is not."""
    return all(
        (case.error is None or case.error <= ERROR_BOUNDS[kind]) and case.agreement >= AGREEMENT_BOUND for case in found
    )

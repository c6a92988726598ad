"""One function a format: a graph becomes a file. All of torch.jit, torch.export and onnx that segvid uses is here."""

import contextlib
import io
import logging
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segvid.attention.context import GridSelfAttention, PyramidObjectContext
from segvid.attention.context.interlaced import BlockAttention
from segvid.errors import UserError
from segvid.export.graph import InferenceGraph
from segvid.export.record import NAME


@dataclass(frozen=True)
class SizeRule:
    """Which images a file takes.

    Args:
        multiple: height and width are multiples of this.
        minimum: and not below this.
        reason: why, where it is a limit.
    """

    multiple: int = 1
    minimum: int = 1
    reason: str | None = None

    def fit(self, length: int) -> int:
        """The next length that fits."""
        length = max(length, self.minimum)
        return -(-length // self.multiple) * self.multiple


def size_rule(graph: InferenceGraph, kind: str) -> SizeRule:
    """What limits the sizes of a graph in a format; README has the table."""

    def takes(height: int, width: int) -> bool:
        try:
            with torch.no_grad():
                graph(torch.zeros(1, 3, height, width))
        except (RuntimeError, ValueError, AssertionError):
            return False
        return True

    if not takes(75, 118) and takes(96, 128):
        return SizeRule(32, 64, "the backbone takes multiples of 32 only")
    if kind not in ("pt2", "aoti"):
        return SizeRule() if takes(1, 1) else SizeRule(1, 16, "the model itself takes no smaller images")
    # torch.export takes a length of 1 for another kind of graph than 2 and more: of maps, and of blocks of them.
    positions = [2]  # some mechanisms halve their maps
    positions += [max(m.block) for m in graph.modules() if isinstance(m, BlockAttention)]
    positions += [2 * max(m.sizes) - 1 for m in graph.modules() if isinstance(m, PyramidObjectContext)]
    positions += [
        m.stride for m in graph.modules() if isinstance(m, GridSelfAttention) and m.space in ("atrous", "sparse")
    ]
    stride = int(max(graph.backbone.strides))  # type: ignore[arg-type]
    return SizeRule(
        1, stride * max(positions) + 1, "torch.export fixes whether there is one block or position, or more"
    )


def example(rule: SizeRule, input_type: str) -> Tensor:
    """An image to export with: of a size that no case of the gate has."""
    size = (2, 3, rule.fit(75), rule.fit(118))
    image = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return image if input_type == "uint8" else image.float() / 255


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporters warn of what a user can do nothing about: deprecation of torch.jit, internals of onnxscript."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def write_torchscript(graph: InferenceGraph, image: Tensor, file: Path, *, optimize: bool) -> str:
    """Scripts the graph; a backbone that cannot be scripted is traced, with its sizes free. Returns how it was done."""
    with quiet():
        how = "scripted"
        try:
            module = torch.jit.script(graph)
        except Exception as error:
            how = f"backbone traced (it cannot be scripted: {type(error).__name__}), the rest scripted"
            traced = TracedBackbone(graph, image)
            module = torch.jit.script(
                InferenceGraph(traced, graph.head, graph.mean.flatten().tolist(), graph.std.flatten().tolist(),
                               graph.output_type).eval()
            )  # fmt: skip
        if optimize:
            module = torch.jit.freeze(module)
            how += ", frozen and fused"
        content = io.BytesIO()  # torch aborts the process where the disk is full
        torch.jit.save(module, content)
    file.write_bytes(content.getvalue())
    return how


class TracedBackbone(nn.Module):
    """A backbone as the trace of it."""

    def __init__(self, graph: InferenceGraph, image: Tensor) -> None:
        super().__init__()
        normalised = (image.float() - graph.mean) / graph.std
        with torch.no_grad():
            self.body = torch.jit.trace(graph.backbone, normalised, check_trace=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.body(image)
        return maps


def write_pt2(graph: InferenceGraph, image: Tensor, file: Path, *, compiled: bool) -> str:
    """Exports with free batch, height and width; compiled to a library for this machine if asked."""
    auto = torch.export.Dim.AUTO
    with quiet():
        program = torch.export.export(graph, (image,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
        if compiled:
            torch._inductor.aoti_compile_and_package(program, package_path=str(file))
            return "exported and compiled (AOTInductor)"
        content = io.BytesIO()
        torch.export.save(program, content)
    file.write_bytes(content.getvalue())
    return "exported"


def write_onnx(graph: InferenceGraph, image: Tensor, file: Path) -> str:
    """Exports with free batch, height and width, optimised by onnxscript.

    Raises:
        UserError: onnx or onnxscript is not installed.
    """
    auto = torch.export.Dim.AUTO
    try:
        with quiet():
            program = torch.onnx.export(
                graph, (image,), dynamo=True, dynamic_shapes=({0: auto, 2: auto, 3: auto},), verbose=False,
                input_names=["image"], output_names=[graph.output_type], optimize=True,
            )  # fmt: skip
            assert program is not None
            model = program.model
            for axis, name in ((0, "batch"), (2, "height"), (3, "width")):
                rename_axis(model, axis, name)
            program.save(str(file), external_data=False)
    except ModuleNotFoundError as error:
        raise UserError(f"ONNX needs the package {error.name}: pip install 'segvid[onnx]'.") from error
    return f"exported, opset {model.opset_imports['']}"


def rename_axis(model: Any, axis: int, name: str) -> None:
    """Gives a free axis of the image a readable name, wherever it stands."""
    old = model.graph.inputs[0].shape[axis]
    if not isinstance(old, int):
        for value in (*model.graph.inputs, *model.graph.outputs):
            for index, length in enumerate(value.shape):
                if not isinstance(length, int) and length.value == old.value:
                    value.shape[index] = name


def add_record(kind: str, file: Path, text: str) -> None:
    """Writes segvid's record into the file: an extra file of the archive, or ONNX metadata."""
    if kind == "onnx":
        import onnx

        model = onnx.load(file)
        onnx.helper.set_model_props(model, {"segvid": text})
        onnx.save(model, file)
        return
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/extra/{NAME}", text)

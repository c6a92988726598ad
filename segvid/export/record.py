"""What an exported file says of itself, and how its format, ending and content belong together."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len

from segvid.errors import UserError
from segvid.files import checked
from segvid.text import plain

SUFFIXES = {"torchscript": ".ts", "pt2": ".pt2", "onnx": ".onnx"}
OUTPUT_TYPES = ("logits", "probabilities", "classes")
NAME = "segvid.json"  # in the archive; in ONNX the key of the metadata is "segvid"
LARGEST = 10_000_000  # bytes: 255 classes with names of a page each

Length = Annotated[int, Ge(1), Le(1_000_000)]
Byte = Annotated[int, Ge(0), Le(255)]


@dataclass(frozen=True)
class Input:
    """Which images a file takes; `image_size` is what pictures are brought to before."""

    type: Literal["uint8", "float32", "uint8 or float32"]
    multiple: Length
    minimum: Length
    image_size: tuple[Length, Length] | None = None


@dataclass(frozen=True)
class Output:
    """What a file gives."""

    type: Literal["logits", "probabilities", "classes"]


@dataclass(frozen=True)
class Record:
    """The part of the record that `segvid predict` needs; `command.record` writes it with more."""

    format: Literal["torchscript", "pt2", "aoti", "onnx"]  # aoti: a compiled .pt2
    input: Input
    output: Output
    class_names: Annotated[list[str], Len(1)]
    palette: list[tuple[Byte, Byte, Byte]]


def parse(text: str | bytes, file: str) -> Record:
    """The record of a file, checked.

    Raises:
        UserError: it is something else; the message names file and field.
    """
    content = as_json(text, file)
    record = checked(content, Record, f"{file}: record")
    if len(record.palette) != len(record.class_names):
        raise UserError(
            f"{file}: record: field palette: {len(record.palette)} colours for {len(record.class_names)} classes."
        )
    return record


def as_json(text: str | bytes, file: str) -> Any:
    """The record as plain data.

    Raises:
        UserError: it is no JSON, or too much of it.
    """
    import json

    if len(text) > LARGEST:
        raise UserError(f"{file}: record: it has {len(text)} bytes, and {LARGEST} are the most.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else plain(error)[:200]
        raise UserError(f"{file}: record: it is not JSON that can be read ({said}).") from error

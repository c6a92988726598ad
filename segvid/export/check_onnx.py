"""ONNX files of strangers: one file, with the operators of the standard. onnxruntime runs no code of a file."""

from collections.abc import Iterator
from typing import Any

from segvid.errors import UserError
from segvid.export.archive import Refused

DOMAINS = ("", "ai.onnx")


def parsed(content: bytes) -> Any:
    """The model.

    Raises:
        Refused: it is none.
        UserError: onnx is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise UserError(f"ONNX needs the package {error.name}: pip install 'segvid[onnx]'.") from error
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's, whose place differs between its versions
        raise Refused(f"it is no ONNX model ({type(error).__name__})") from error


def record(model: Any) -> str | None:
    """segvid's record in a model."""
    return next((str(entry.value) for entry in model.metadata_props if entry.key == "segvid"), None)


def checked(model: Any) -> bytes:
    """The model with what was checked, as bytes to be loaded.

    Raises:
        Refused: it reads other files, or has operators or functions of its own.
    """
    if len(model.functions) or len(model.training_info):
        raise Refused("it has functions of its own")
    for message in messages(model):
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto" and (message.data_location == message.EXTERNAL or len(message.external_data)):
            raise Refused("its weights are in another file")
        if kind == "NodeProto" and message.domain not in DOMAINS:
            raise Refused(f"it uses {message.domain}.{message.op_type}"[:200])
    return bytes(model.SerializeToString())


def messages(message: Any) -> Iterator[Any]:
    """A message of protobuf and all inside it."""
    waiting = [message]
    while waiting:
        message = waiting.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting += [value] if hasattr(value, "ListFields") else list(value)

"""An exported file as what may be loaded: ending, content and record agree, and nothing in it could run unasked.

The file is read once; what is checked is what is loaded. Each format has its module `check_...`.
"""

from pathlib import Path

from segvid.errors import UserError
from segvid.export import check_onnx, check_pt2, check_torchscript, record
from segvid.export.archive import Refused, members
from segvid.text import plain

NATIVE = "data/aotinductor/"


def read(path: Path, *, allow_native_code: bool = False) -> tuple[record.Record, bytes | str]:
    """What a file says of itself, and what `run_file.load` takes for it: bytes, or the path of native code.

    Args:
        path: ends in .ts, .pt2 or .onnx.
        allow_native_code: the file is trusted as a program: native code, and any operator.

    Raises:
        UserError: there is no such file, it was not written by `segvid export`, or it is not trusted.
    """
    kind = {suffix: kind for kind, suffix in record.SUFFIXES.items()}.get(path.suffix.lower())
    if not path.is_file():
        raise UserError(f"there is no file {path} (--model).")
    if kind is None:
        raise UserError(f"{path} has no ending of an exported model: {', '.join(record.SUFFIXES.values())} (--model).")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        text, native = described(kind, content)
    except Refused as error:
        raise UserError(f"{path} was not written by segvid export as a {path.suffix} file: {plain(error)}.") from error
    said = record.parse(text, str(path))
    if said.format != ("aoti" if native else kind):
        raise UserError(
            f"{path}: record: field format: it says {said.format}, and the file is {kind}. It is not loaded."
        )
    if native and not allow_native_code:
        raise UserError(
            f"{path} holds native code, which runs as any program does (pt2, compiled). It is not loaded. If you trust "
            "whoever made it: --allow_native_code."
        )
    if native:
        return said, str(path)
    if allow_native_code:
        return said, content
    try:
        return said, checked(kind, content)
    except Refused as error:
        raise UserError(
            f"{path} is not loaded, and nothing of it was run: {plain(error)}. If you trust whoever made it as "
            "you trust a program: --allow_native_code."
        ) from error


def described(kind: str, content: bytes) -> tuple[str | bytes, bool]:
    """The record in a file of this kind, as text, and whether the file is native code.

    Raises:
        Refused: the content is of another kind, or has no record.
    """
    if kind == "onnx":
        text = check_onnx.record(check_onnx.parsed(content))
        if text is None:
            raise Refused("it has no record")
        return text, False
    files = members(content)
    native = any(name.startswith(NATIVE) for name in files)
    if (files.get("archive_format") == b"pt2") != (kind == "pt2") or ("data.pkl" in files) != (kind == "torchscript"):
        raise Refused("its content is of another format")
    if f"extra/{record.NAME}" not in files:
        raise Refused("it has no record")
    return files[f"extra/{record.NAME}"], native


def checked(kind: str, content: bytes) -> bytes:
    """The file with what was checked only.

    Raises:
        Refused: it holds, or would run, what a segmentation model has no need of.
    """
    if kind == "onnx":
        return check_onnx.checked(check_onnx.parsed(content))
    files = members(content)
    return check_torchscript.checked(files) if kind == "torchscript" else check_pt2.checked(files)

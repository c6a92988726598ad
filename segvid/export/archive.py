"""The archives of torch (.ts, .pt2) as their files, read once and written anew: what is checked is what is loaded."""

import io
import re
import zipfile

MAGIC = b"PK\x03\x04"
LARGEST_TEXT = 64_000_000  # bytes that compressed members may grow to; torch compresses code only
NAME = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+")
ROOT = "archive"


class Refused(Exception):
    """Why a file is not loaded."""


def members(content: bytes) -> dict[str, bytes]:
    """The files of an archive by their names below its one folder.

    Raises:
        Refused: it is no archive as torch writes it.
    """
    if not content.startswith(MAGIC):
        raise Refused("it is no archive of torch")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            check_entries(entries, len(content))
            return {entry.filename.split("/", 1)[1]: archive.read(entry) for entry in entries}
    except Refused:
        raise
    except Exception as error:  # zipfile raises whatever a damaged archive leads it to
        raise Refused(f"its archive is damaged ({type(error).__name__})") from error


def check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    """Nothing that two readers could understand differently, and nothing that grows without bound.

    Raises:
        Refused: there is.
    """
    names = [entry.filename for entry in entries]
    if not entries or min(entry.header_offset for entry in entries) != 0:
        raise Refused("its archive does not begin where the file does")
    if len({name.lower() for name in names}) != len(names):
        raise Refused("two members of its archive have one name")
    for entry in entries:
        if entry.orig_filename != entry.filename or not NAME.fullmatch(entry.filename):
            raise Refused("a member of its archive has a strange name")
        if ".." in entry.filename.split("/") or entry.flag_bits & 1:
            raise Refused("a member of its archive leads out of it, or is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused("a member of its archive is compressed in an unknown way")
    if len({name.split("/", 1)[0] for name in names}) != 1:
        raise Refused("its archive has more than one folder")
    stored = [entry.file_size for entry in entries if entry.compress_type == zipfile.ZIP_STORED]
    compressed = [entry.file_size for entry in entries if entry.compress_type == zipfile.ZIP_DEFLATED]
    if sum(stored) > size or sum(compressed) > LARGEST_TEXT:
        raise Refused("its archive holds more than the file has room for")


def written(files: dict[str, bytes]) -> bytes:
    """An archive of these files that torch reads."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(f"{ROOT}/{name}", data)
    return content.getvalue()

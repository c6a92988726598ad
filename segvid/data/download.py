"""Fetching and unpacking of archives: in the end all of it is there, or nothing and a sentence that says why."""

import contextlib
import glob
import gzip
import hashlib
import http.client
import lzma
import os
import platform
import shutil
import stat
import tarfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Literal
from urllib.parse import urlsplit

from segvid.commands.options import Progress
from segvid.errors import UserError
from segvid.text import console

CHUNK = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
MAX_BYTES = 32 << 30  # sixteen times Pascal VOC
HOST = platform.node().replace(".", "-") or "unknown"
DAY = 86400.0  # seconds

Kind = Literal["file", "folder", "other"]  # of an entry of an archive
DAMAGED = (tarfile.TarError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


@dataclass(frozen=True)
class Archive:
    """An archive on somebody's server.

    Args:
        url: where it is, http(s):// or file://.
        checksum: of its bytes, "md5:..." or "sha256:...".
    """

    url: str
    checksum: str

    @property
    def name(self) -> str:
        """File name of the archive."""
        return PurePosixPath(urlsplit(self.url).path).name


def part_of(path: Path) -> Path:
    """The hidden name under which this process writes a file or folder until it is complete."""
    return path.with_name(f".{path.name}.{HOST}.{os.getpid()}.part")


def remove_abandoned(folder: Path, name: str) -> None:
    """Removes what killed processes have left of files or folders.

    Args:
        folder: that they are in.
        name: of the files once they are complete, a pattern as of `Path.glob`.
    """
    for part in folder.glob(f".{name}.*.part"):
        if _is_abandoned(part):
            with contextlib.suppress(OSError):
                if part.is_dir():
                    shutil.rmtree(part)
                else:
                    part.unlink()


def _is_abandoned(part: Path) -> bool:
    """Whether the process is dead; one of another machine counts as dead after a day without a byte."""
    *_, host, pid, _ = part.name.split(".")
    if host == HOST and pid.isdigit():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False
        return int(pid) == os.getpid()  # an earlier process had the number
    try:
        return time.time() - part.stat().st_mtime > DAY
    except OSError:
        return False


def download(url: str, path: Path, checksum: str) -> None:
    """Fetches a file, unless it is there already. It gets its name only once it is complete and right.

    Args:
        url: http(s):// or file:// address.
        path: file to write; a file of that name with another checksum is replaced.
        checksum: "md5:..." or "sha256:...".

    Raises:
        UserError: it cannot be fetched, or what came has another checksum. Nothing is left behind then.
    """
    algorithm, expected = _split_checksum(checksum)
    if path.is_file() and _digest(path, algorithm) == expected:
        return
    by_hand = f"fetch it by hand and put it at {path} ({checksum})"
    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise UserError(f"{url} is not an http, https or file address: {by_hand}.")
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, glob.escape(path.name))
        with part.open("wb") as target:
            found = _stream(url, target, algorithm)
        if found != expected:
            raise UserError(f"{url} is not the file it should be, its {algorithm} is {found}; {by_hand}.")
        part.replace(path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"{url} could not be fetched ({error}); {by_hand}.") from error
    finally:
        if path.parent.is_dir():
            part.unlink(missing_ok=True)


def verify(path: Path, checksum: str) -> None:
    """Checks a file that somebody else has put there.

    Raises:
        UserError: it has another checksum.
    """
    algorithm, expected = _split_checksum(checksum)
    found = _digest(path, algorithm)
    if found != expected:
        raise UserError(f"{path} is damaged or another file, its {algorithm} is {found} and not {expected}; delete it.")


def extract(archive: Path, folder: Path, max_bytes: int = MAX_BYTES) -> None:
    """Unpacks a tar (plain or compressed) or zip archive into a folder: all of it, or nothing.

    The files are written to a hidden folder beside and moved at the end. Archives of data hold files and folders; one
    with links, devices, absolute names or names with ".." is refused. That is stricter than tarfile's filter "data",
    which Python has from 3.11.4 on and which links have fooled (CVE-2025-4517), and the same for tar and zip.

    Args:
        archive: the file.
        folder: where the content of the archive goes. It may exist, but must have none of the archive's entries.
        max_bytes: size of all files together that is taken for an attack, counted while they are written.

    Raises:
        UserError: the archive is missing, damaged, refused or too large, or its content exists. Nothing is left then.
    """
    if not archive.is_file():
        raise UserError(f"There is no archive {archive}.")
    beside = folder if folder.is_dir() else folder.parent
    content = part_of(beside / archive.name)
    try:
        beside.mkdir(parents=True, exist_ok=True)
        remove_abandoned(beside, glob.escape(archive.name))
        content.mkdir()
        _write(archive, content, max_bytes)
        _move(archive, content, folder)
    except DAMAGED as error:
        raise UserError(f"{archive} is damaged ({error}); delete it and fetch it again.") from error
    except OSError as error:
        raise UserError(f"{archive} could not be unpacked into {folder} ({error}).") from error
    finally:
        shutil.rmtree(content, ignore_errors=True)


def _split_checksum(checksum: str) -> tuple[str, str]:
    algorithm, _, expected = checksum.partition(":")
    if algorithm not in ("md5", "sha256") or not expected:
        raise UserError(f"The checksum {checksum!r} must be 'md5:...' or 'sha256:...'.")
    return algorithm, expected.lower()


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _progress(what: str, length: int | None) -> Progress:
    return Progress(console(stderr=True), what, None if length is None else -(-length // CHUNK), "MiB")


def _stream(url: str, target: IO[bytes], algorithm: str) -> str:
    """Copies what is at the address, and gives its digest."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    request = urllib.request.Request(url, headers={"User-Agent": "segvid"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        length = response.headers.get("Content-Length")
        total = int(length) if length is not None else None
        received = 0
        with _progress(f"Fetching {PurePosixPath(urlsplit(url).path).name}", total) as progress:
            while chunk := response.read(CHUNK):
                target.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                progress.advance(received // CHUNK - progress.done)
    if total is not None and received < total:
        raise OSError(f"the connection ended after {received} of {total} bytes")
    return digest.hexdigest()


def _write(archive: Path, content: Path, max_bytes: int) -> None:
    """Writes the files of an archive, with names and sizes checked."""
    written = 0
    with archive.open("rb") as raw, _progress(f"Unpacking {archive.name}", archive.stat().st_size) as progress:
        members = _zip_members(raw) if archive.suffix.lower() == ".zip" else _tar_members(raw)
        for name, kind, stream in members:
            if kind == "other":
                raise UserError(f"{archive} is refused: its entry {name!r} is a link or a device.")
            parts = PureWindowsPath(name)  # knows both kinds of separators, and drives
            if parts.drive or parts.root or ".." in parts.parts:
                raise UserError(f"{archive} is refused: its entry {name!r} would be written outside of the folder.")
            target = content.joinpath(*parts.parts)
            if stream is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                while chunk := stream.read(CHUNK):
                    written += len(chunk)
                    if written > max_bytes:
                        raise UserError(f"{archive} is refused: it unpacks to more than {max_bytes} bytes.")
                    file.write(chunk)
            progress.advance(max(raw.tell() // CHUNK - progress.done, 0))


def _tar_members(raw: IO[bytes]) -> Iterator[tuple[str, Kind, IO[bytes] | None]]:
    with tarfile.open(fileobj=raw, mode="r:*") as archive:
        for member in archive:
            if member.isfile():
                yield member.name, "file", archive.extractfile(member)
            else:
                yield member.name, "folder" if member.isdir() else "other", None
        while archive.fileobj is not None and archive.fileobj.read(CHUNK):
            pass  # gzip and xz compare their checksum at the very end


def _zip_members(raw: IO[bytes]) -> Iterator[tuple[str, Kind, IO[bytes] | None]]:
    with zipfile.ZipFile(raw) as archive:
        for info in archive.infolist():
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                yield info.filename, "other", None
            elif info.is_dir():
                yield info.filename, "folder", None
            else:
                with archive.open(info) as stream:
                    yield info.filename, "file", stream


def _move(archive: Path, content: Path, folder: Path) -> None:
    """Gives the unpacked files their place."""
    if not folder.is_dir():
        content.rename(folder)
        return
    entries = sorted(content.iterdir())
    for entry in entries:
        if os.path.lexists(folder / entry.name):
            raise UserError(f"{folder / entry.name} exists, but is incomplete: move it away to unpack {archive}.")
    for entry in entries:
        entry.rename(folder / entry.name)

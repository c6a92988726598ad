"""What a folder of predictions holds: which model made them, and of which file, as it was then, each of them is.

The record `.segvid-predict.json` has a line for the model and the options, and one for every file that is done. Lines
are added, never rewritten: a kill costs the last one at most, and thousands of files cost a line each.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segvid.errors import UserError
from segvid.files import write_text
from segvid.text import plain

RECORD = ".segvid-predict.json"


@dataclass(frozen=True)
class Stamp:
    """A file as it was when it was predicted: another size or time is another picture.

    Args:
        path: absolute.
        size: in bytes.
        mtime_ns: when it was last written.
    """

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Done:
    """A line of the record.

    Args:
        source: what was predicted.
        files: the bytes of each result, by its path in the folder; of a folder, those of its files.
    """

    source: Stamp
    files: dict[str, int]


def stamp_of(path: Path) -> Stamp:
    """A file as it is now.

    Raises:
        UserError: it is not there any more.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{plain(path)} cannot be read: {error.strerror}.") from error
    return Stamp(os.path.abspath(path), found.st_size, found.st_mtime_ns)  # noqa: PTH100 (links stay)


def size_of(path: Path) -> int | None:
    """The bytes of a result, of a folder those of its files; None where there is none."""
    try:
        if path.is_dir():
            return sum(entry.stat().st_size for entry in os.scandir(path))
        return path.stat().st_size
    except OSError:
        return None


class Record:
    """The record of a folder.

    Args:
        output: the folder.
        origin: the model and the options that results depend on, as plain data.

    Raises:
        UserError: what lies there is of another model or other options, or the record cannot be understood.
    """

    def __init__(self, output: Path, origin: dict[str, Any]) -> None:
        self.output = output
        self.origin = origin
        self.file = output / RECORD
        self.exists = self.file.is_file()
        self.done: dict[str, Done] = {}  # by the path of the source
        self.owners: dict[str, str] = {}  # of results
        if self.exists:
            self._read()

    def _read(self) -> None:
        from pydantic import TypeAdapter, ValidationError

        try:
            first, *lines = self.file.read_bytes().split(b"\n")
            before = TypeAdapter(dict[str, Any]).validate_json(first)
        except OSError as error:
            raise UserError(f"{plain(self.file)} cannot be read: {error.strerror}.") from error
        except ValidationError as error:
            raise UserError(
                f"{plain(self.file)} does not say what the predictions in {plain(self.output)} were made with (its "
                "first line is damaged, or of an earlier segvid). Choose another --output, or delete that folder."
            ) from error
        changed = [name for name in self.origin if before.get(name) != self.origin[name]]
        if changed:
            raise UserError(
                f"{plain(self.output)} holds predictions with another {', '.join(changed)}, and what is done is not "
                "predicted again. Choose another --output, or delete that folder."
            )
        reader = TypeAdapter(Done)
        for line in lines:
            try:
                self._keep(reader.validate_json(line))
            except ValidationError:  # half a line, of a run that was killed: that file is not done
                continue

    def _keep(self, done: Done) -> None:
        before = self.done.get(done.source.path)
        if before is not None and before.source == done.source:
            done = Done(done.source, before.files | done.files)  # now with frames, or found in another folder
        self.done[done.source.path] = done
        self.owners.update(dict.fromkeys(done.files, done.source.path))

    def check(self, source: Stamp, files: Sequence[Path]) -> None:
        """No result of another picture, and nothing that is not of segvid predict, is overwritten.

        Raises:
            UserError: it would be.
        """
        for file in files:
            owner = self.owners.get(self._name(file))
            if owner not in (None, source.path) and size_of(file):
                raise UserError(
                    f"{plain(file)} is the result of {plain(owner)}; that of {plain(source.path)} would have the same "
                    "name. Choose another --output."
                )
            if not self.exists and size_of(file):
                raise UserError(
                    f"{plain(file)} is there already, and {plain(self.output)} has no record of segvid predict "
                    f"({RECORD}): it may be yours. Choose another --output, or delete it."
                )

    def is_done(self, source: Stamp, files: Sequence[Path]) -> bool:
        """Whether the file was predicted as it is now, and all of its results are there, whole."""
        done = self.done.get(source.path)
        if done is None or done.source != source:
            return False
        return all(size_of(file) == done.files.get(self._name(file), -1) for file in files)

    def begin(self) -> None:
        """Makes the record, if there is none.

        Raises:
            UserError: it cannot be written.
        """
        if not self.exists:
            write_text(self.file, json.dumps(self.origin) + "\n")
            self.exists = True
        elif not self.file.read_bytes().endswith(b"\n"):  # half a line must not spoil the next one
            self._append("\n")

    def add(self, source: Stamp, files: Iterable[Path]) -> None:
        """A file is done.

        Raises:
            UserError: the line cannot be written.
        """
        done = Done(source, {self._name(file): size_of(file) or 0 for file in files})
        self._keep(done)
        self._append(json.dumps(asdict(done)) + "\n")

    def _append(self, text: str) -> None:
        try:
            with self.file.open("ab") as content:
                content.write(text.encode("ascii"))  # json escapes every other letter
        except OSError as error:
            raise UserError(f"{plain(self.file)} cannot be written: {error.strerror}.") from error

    def _name(self, file: Path) -> str:
        return file.relative_to(self.output).as_posix()

"""Files are written whole, and checked where they are read."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from annotated_types import Gt

from segvid.errors import UserError
from segvid.files import checked, read_json, remove_partials, write_json, write_text


@dataclass
class Record:
    names: list[str]
    size: tuple[Annotated[int, Gt(0)], Annotated[int, Gt(0)]] | None = None


def test_written_and_read(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.json"
    write_json(file, {"names": ["a\r\n"], "size": (1, 2), "more": float("nan")})
    assert json.loads(file.read_text()) == {"names": ["a\r\n"], "size": [1, 2], "more": None}
    assert read_json(file, Record) == Record(["a\r\n"], (1, 2))
    assert [f.name for f in file.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "a.json: "),
        ("null", "a.json: "),
        ('"x"', "a.json: "),
        ("{}", "a.json: field names: Field required"),
        ('{"names": [1]}', "a.json: field names.0: Input should be a valid string"),
        ('{"names": ["a"], "size": [0, 0]}', "a.json: field size.0: Input should be greater than 0"),
        ('{"names": ["a"], "size": [1]}', "a.json: field size.1: Field required"),
        ('{"names": ["a', "a.json is not JSON that can be read"),
        ("[" * 100_000, "a.json is not JSON that can be read"),
        ("\xff", "a.json is not JSON that can be read"),
    ],
)
def test_something_else_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_json(file, Record)
    said = str(caught.value)
    assert message in said
    assert len(said) < 400


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json cannot be read: No such file"):
        read_json(tmp_path / "a.json", Record)


def test_content_that_is_not_from_json() -> None:
    assert checked({"names": []}, Record, "x.ckpt: data") == Record([])
    with pytest.raises(UserError, match=r"x\.ckpt: data: field names: Field required"):
        checked({}, Record, "x.ckpt: data")


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    """Not what another process writes now, and nothing that only looks like it."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [tmp_path / f".partial-{process}-a.json" for process in (gone.pid, os.getpid(), 10**30)]
    others = [tmp_path / name for name in (f".partial-{os.getppid()}-a.json", ".partial-mine", "a.json")]
    for file in (*left, *others):
        file.touch()
    folder = tmp_path / f".partial-{gone.pid}-frames"
    (folder / "deep").mkdir(parents=True)
    remove_partials([tmp_path, tmp_path / "nowhere"])
    assert set(tmp_path.iterdir()) == set(others)

"""Archives: fetched and unpacked whole, or not at all."""

import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Callable
from email.message import Message
from pathlib import Path

import pytest

from segvid.data import download as downloading
from segvid.data.download import Archive, download, extract, part_of, remove_abandoned, verify
from segvid.errors import UserError

CONTENT = b"0123456789" * 1000


def checksum(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "server" / "data.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_download_writes_the_file_and_nothing_else(tmp_path: Path, source: Path, algorithm: str) -> None:
    target = tmp_path / "new" / "folder" / "data.bin"
    download(source.as_uri(), target, checksum(CONTENT, algorithm).upper().replace(algorithm.upper(), algorithm))
    assert target.read_bytes() == CONTENT
    assert everything_in(target.parent) == ["data.bin"]
    assert target.stat().st_mode & 0o777 == source.stat().st_mode & 0o777  # as any file of this user


def test_download_fetches_only_what_is_not_there(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "data.bin"
    target.write_bytes(CONTENT[:-1])
    download(source.as_uri(), target, checksum(CONTENT))
    assert target.read_bytes() == CONTENT
    source.unlink()
    download(source.as_uri(), target, checksum(CONTENT))


def test_download_of_a_wrong_file_leaves_nothing(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "new" / "data.bin"
    with pytest.raises(UserError, match=r"server/data\.bin is not the file it should be.*put it at .*new/data\.bin"):
        download(source.as_uri(), target, checksum(b"another"))
    assert everything_in(target.parent) == []


def test_download_of_a_wrong_file_keeps_the_old_one(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "data.bin"
    target.write_bytes(b"old")
    with pytest.raises(UserError):
        download(source.as_uri(), target, checksum(b"another"))
    assert target.read_bytes() == b"old"


class BreakingResponse(io.BytesIO):
    """An answer of a server that announces `length` bytes and fails, or just ends, after those it has."""

    def __init__(self, content: bytes, length: int, error: BaseException | None) -> None:
        super().__init__(content)
        self.headers = Message()
        self.headers["Content-Length"] = str(length)
        self.error = error

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(min(size or 100, 100))
        if not chunk and self.error is not None:
            raise self.error
        return chunk


@pytest.mark.parametrize(
    ("error", "seen", "reason"),
    [
        (None, UserError, "ended after 500 of 10000 bytes"),
        (ConnectionResetError("reset by peer"), UserError, "reset by peer"),
        (TimeoutError("timed out"), UserError, "timed out"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_interrupted_download_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None, seen: type[BaseException], reason: str
) -> None:
    response = BreakingResponse(CONTENT[:500], len(CONTENT), error)
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: response)
    with pytest.raises(seen, match=reason):
        download("https://example.org/data.bin", tmp_path / "data.bin", checksum(CONTENT))
    assert everything_in(tmp_path) == []


HELD_UP = """
import importlib.util, sys, time
from pathlib import Path

place, archive, data = map(Path, sys.argv[1:])
spec = importlib.util.spec_from_file_location("download", place)  # by itself: the package takes seconds
download = sys.modules["download"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(download)
download._stream = lambda *rest: time.sleep(600)
download._move = lambda *rest: download.download("https://example.org/data.bin", data / "data.bin", "md5:00")
download.extract(archive, data)
"""


def test_what_a_killed_process_leaves_is_removed_the_next_time(tmp_path: Path, source: Path) -> None:
    """It is unpacking and fetching."""
    archive = good_archive(tmp_path / "archives", ".tar")
    data = tmp_path / "data"
    data.mkdir()
    words = [downloading.__file__, str(archive), str(data)]
    with subprocess.Popen([sys.executable, "-c", HELD_UP, *words]) as process:
        deadline = time.monotonic() + 120
        while len(names_in(data)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        left = names_in(data)
        assert [name.split(".")[1] for name in left] == ["data", "good"]
        download(source.as_uri(), data / "data.bin", checksum(CONTENT))
        assert set(left) < set(names_in(data))  # it lives
        (data / "data.bin").unlink()
        process.kill()
    download(source.as_uri(), data / "data.bin", checksum(CONTENT))
    extract(archive, data)
    assert names_in(data) == ["data.bin", "top"]


def test_parts_of_other_machines_and_other_files_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / ".data.bin.elsewhere.7.part"
    kept = [other, tmp_path / ".data.txt.part", part_of(tmp_path / "x.bin"), tmp_path / "data.bin.1.part"]
    for file in kept:
        file.touch()
    part_of(tmp_path / "data.bin").mkdir()  # of a process that had our number
    remove_abandoned(tmp_path, "data.bin")
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    os.utime(other, (0, 0))  # nothing came for a day
    remove_abandoned(tmp_path, "data.bin")
    assert sorted(tmp_path.iterdir()) == sorted(kept[1:])


def test_failed_download_says_what_to_put_where(tmp_path: Path) -> None:
    address = (tmp_path / "nothing.tar").as_uri()
    with pytest.raises(UserError) as caught:
        download(address, tmp_path / "data" / "nothing.tar", "md5:00")
    assert address in str(caught.value)
    assert f"fetch it by hand and put it at {tmp_path / 'data' / 'nothing.tar'}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_download_into_a_file_as_folder(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be fetched"):
        download(source.as_uri(), tmp_path / "file" / "data.bin", checksum(CONTENT))


@pytest.mark.parametrize("address", ["ftp://example.org/a.tar", "example.org/a.tar", "/etc/passwd"])
def test_other_addresses_are_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match="not an http, https or file address"):
        download(address, tmp_path / "a.tar", "md5:00")


@pytest.mark.parametrize("wrong", ["", "0123", "crc32:00", "md5:"])
def test_checksum_must_name_its_algorithm(tmp_path: Path, source: Path, wrong: str) -> None:
    with pytest.raises(UserError, match="must be 'md5:"):
        download(source.as_uri(), tmp_path / "data.bin", wrong)


def test_verify(source: Path) -> None:
    verify(source, checksum(CONTENT, "md5"))
    with pytest.raises(UserError, match=r"data\.bin is damaged"):
        verify(source, checksum(b"", "md5"))


def test_archive_name() -> None:
    assert Archive("https://example.org/a/b.tar?x=1", "md5:00").name == "b.tar"


# Unpacking


def tar_of(*entries: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for info, content in entries:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(*entries: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, content in entries:
            archive.writestr(info, content)
    return buffer.getvalue()


def tar_entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


GOOD = {"top/a.txt": b"a" * 3000, "top/sub/b.txt": b"b", "top/empty.txt": b""}


def good_archive(folder: Path, kind: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"good{kind}"
    if kind == ".zip":
        path.write_bytes(zip_of(("top/", b""), *GOOD.items()))
    else:
        mode = {".tar": "w", ".tgz": "w:gz", ".tar.xz": "w:xz"}[kind]
        entries = [(tar_entry(name), content) for name, content in GOOD.items()]
        path.write_bytes(tar_of((tar_entry("top", tarfile.DIRTYPE), b""), *entries, mode=mode))
    return path


@pytest.mark.parametrize("kind", [".tar", ".tgz", ".tar.xz", ".zip"])
@pytest.mark.parametrize("exists", [False, True])
def test_extract(tmp_path: Path, kind: str, exists: bool) -> None:
    target = tmp_path / "data" / "set"
    if exists:
        target.mkdir(parents=True)
        (target / "other").write_text("kept")
    extract(good_archive(tmp_path / "archives", kind), target)
    for name, content in GOOD.items():
        assert (target / name).read_bytes() == content
    assert names_in(target) == (["other", "top"] if exists else ["top"])
    assert names_in(target.parent) == ["set"]
    (tmp_path / "plain").mkdir()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_extract_does_not_overwrite(tmp_path: Path) -> None:
    (tmp_path / "set" / "top").mkdir(parents=True)
    with pytest.raises(UserError, match=r"set/top exists, but is incomplete: move it away"):
        extract(good_archive(tmp_path / "archives", ".tar"), tmp_path / "set")
    assert everything_in(tmp_path / "set") == ["top"]


ATTACKS: dict[str, Callable[[], bytes]] = {
    "parent.tar": lambda: tar_of((tar_entry("a"), b"a"), (tar_entry("../evil"), b"x")),
    "inner-parent.tar": lambda: tar_of((tar_entry("a/../../evil"), b"x")),
    "absolute.tar": lambda: tar_of((tar_entry("/tmp/segvid-evil"), b"x")),
    "backslash.tar": lambda: tar_of((tar_entry("..\\evil"), b"x")),
    "folder.tar": lambda: tar_of((tar_entry("../evil", tarfile.DIRTYPE), b"")),
    "symlink.tar": lambda: tar_of((tar_entry("l", tarfile.SYMTYPE, "../.."), b""), (tar_entry("l/evil"), b"x")),
    "hardlink.tar": lambda: tar_of((tar_entry("l", tarfile.LNKTYPE, "../../secret"), b"")),
    "device.tar": lambda: tar_of((tar_entry("null", tarfile.CHRTYPE), b"")),
    "pipe.tar": lambda: tar_of((tar_entry("pipe", tarfile.FIFOTYPE), b"")),
    "parent.zip": lambda: zip_of(("a", b"a"), ("../evil", b"x")),
    "inner-parent.zip": lambda: zip_of(("a/../../evil", b"x")),
    "absolute.zip": lambda: zip_of(("/tmp/segvid-evil", b"x")),
    "backslash.zip": lambda: zip_of(("a\\..\\..\\evil", b"x")),
    "drive.zip": lambda: zip_of(("C:evil", b"x")),
    "symlink.zip": lambda: zip_of((zip_link("l"), b"../.."), ("l/evil", b"x")),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("exists", [False, True])
def test_attacks_are_refused_and_nothing_is_written(tmp_path: Path, name: str, exists: bool) -> None:
    archive = tmp_path / name
    archive.write_bytes(ATTACKS[name]())
    if exists:
        (tmp_path / "data" / "set").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{name} is refused: its entry"):
        extract(archive, tmp_path / "data" / "set")
    assert everything_in(tmp_path / "data") == (["set"] if exists else [])
    assert names_in(tmp_path) == sorted([name, "data"])
    assert not Path("/tmp/segvid-evil").exists()


@pytest.mark.parametrize("kind", ["bomb.tgz", "bomb.zip", "many.zip"])
def test_bombs_are_refused_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    zeros = bytes(8 << 20)
    contents = {
        "bomb.tgz": lambda: tar_of((tar_entry("zeros"), zeros)),
        "bomb.zip": lambda: zip_of(("zeros", zeros)),
        "many.zip": lambda: zip_of(*[(f"zeros{k}", bytes(1 << 19)) for k in range(16)]),
    }
    archive = tmp_path / kind
    archive.write_bytes(contents[kind]())
    assert archive.stat().st_size < 100_000
    with pytest.raises(UserError, match=rf"{kind} is refused: it unpacks to more than 3000000 bytes"):
        extract(archive, tmp_path / "set", max_bytes=3_000_000)
    assert names_in(tmp_path) == [kind]
    extract(archive, tmp_path / "set", max_bytes=8 << 20)


@pytest.mark.parametrize("kind", [".tar", ".tgz", ".tar.xz", ".zip"])
@pytest.mark.parametrize("damage", ["half", "noise", "empty"])
def test_damaged_archives_leave_nothing(tmp_path: Path, kind: str, damage: str) -> None:
    archive = good_archive(tmp_path / "archives", kind)
    content = archive.read_bytes()
    archive.write_bytes({"half": content[: len(content) // 3], "noise": b"\x07" * 4000, "empty": b""}[damage])
    with pytest.raises(UserError, match="is damaged"):
        extract(archive, tmp_path / "data" / "set")
    assert everything_in(tmp_path / "data") == []


def test_wrong_content_in_a_zip_is_noticed(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        file.writestr("a", b"right")
    archive.write_bytes(archive.read_bytes().replace(b"right", b"wrong"))
    with pytest.raises(UserError, match=r"a\.zip is damaged"):
        extract(archive, tmp_path / "set")
    assert names_in(tmp_path) == ["a.zip"]


def test_damaged_gzip_is_noticed(tmp_path: Path) -> None:
    archive = tmp_path / "a.tgz"
    content = bytearray(tar_of((tar_entry("a"), os.urandom(5000))))
    content[3000] ^= 255  # a bit of the stored bytes: only gzip's own checksum can tell
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tgz is damaged"):
        extract(archive, tmp_path / "set")
    assert names_in(tmp_path) == ["a.tgz"]


def test_interrupted_unpacking_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = good_archive(tmp_path / "archives", ".tar")

    def interrupt(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(archive, tmp_path / "data" / "set")
    assert everything_in(tmp_path / "data") == []


def test_missing_archive_and_target_that_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no archive .*a\.tar"):
        extract(tmp_path / "a.tar", tmp_path / "set")
    (tmp_path / "set").write_text("mine")
    with pytest.raises(UserError, match="could not be unpacked"):
        extract(good_archive(tmp_path / "archives", ".tar"), tmp_path / "set")
    assert (tmp_path / "set").read_text() == "mine"

"""Folders that one process at a time writes, and processes that do not outlive the one that started them."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from segvid.errors import UserError
from segvid.files import read_json
from segvid.text import plain

LOCK = ".lock"
GRACE = 20.0  # seconds that a training without its parent has to finish its step and save


@dataclass(frozen=True)
class Owner:
    """Who has a folder."""

    pid: int
    host: str
    since: str


@contextlib.contextmanager
def taken(folder: Path, wait: float = 0.0, waiting: Callable[[str], object] = lambda owner: None) -> Iterator[None]:
    """The folder for this process alone.

    The lock is the kernel's: it ends with the process, and the loader workers that it forked, however they end. What
    the file says is only for the message.

    Args:
        folder: to take; it is made where it is not there.
        wait: seconds that another process has to let go of it.
        waiting: is told who has it before a wait.

    Raises:
        UserError: another process has it, or it cannot be written.
    """
    file = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{plain(folder)} cannot be written: {error.strerror}.") from error
    if sys.platform == "win32":  # it has other locks
        os.close(handle)
        yield
        return
    try:
        until = time.monotonic() + wait
        told = False
        while not locked(handle, folder):
            owner = owner_of(file)
            if time.monotonic() >= until:
                raise UserError(f"{plain(folder)} is in use {owner}. Wait for it, end it, or name another --output.")
            if not told:
                waiting(owner)
                told = True
            time.sleep(0.1)
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        content = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        with contextlib.suppress(OSError):  # a full disk
            os.truncate(handle, 0)
            os.pwrite(handle, content.encode(), 0)
        try:
            yield
        finally:
            free(handle)
    finally:
        os.close(handle)


def locked(handle: int, folder: Path) -> bool:
    """Takes the lock of an open file, if nobody has it."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        warnings.warn(f"{folder} cannot be locked ({error}): start only one comparison in it.", stacklevel=3)
    return True


def free(handle: int) -> None:
    """Lets go of a lock, which loader workers may have inherited."""
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)


def owner_of(file: Path) -> str:
    """Who has written into the lock."""
    try:
        owner = read_json(file, Owner)
    except UserError:
        return "by a process that does not say which"
    return f"by process {owner.pid} on {plain(owner.host)} since {plain(owner.since)}"


def end_with_parent(parent: int) -> None:
    """From now on this process ends when its parent does, even if that was killed.

    First as with SIGTERM, by which a training saves; after a while at once. Its loader workers watch it themselves.

    Args:
        parent: process id. Lightning starts further processes of a training with the same arguments: their parent is
            the first of them.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(128 + signal.SIGTERM)

    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)
    threading.Thread(target=watch, daemon=True).start()


def leave_signals_to_parent() -> None:
    """Ctrl-C, and the end of a terminal, reach all its processes: the parent decides, and sends SIGTERM."""
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        signal.signal(number, signal.SIG_IGN)

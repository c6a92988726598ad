"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from segvid.errors import UserError


def write_whole(file: Path, save: Callable[[Path], object]) -> None:
    """Saves under a temporary name first, so that an interrupted run leaves no half file that counts as done.

    Raises:
        UserError: it cannot be written.
    """
    partial = file.with_name(f".partial-{os.getpid()}-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save(partial)
        partial.replace(file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()

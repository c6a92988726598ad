"""Where a result comes from."""

import hashlib
import subprocess
from pathlib import Path


def commit() -> str | None:
    """The commit of the working tree that segvid runs from, where it is one."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:  # there is no git
        return None
    return found.stdout.strip() or None


def sha256(file: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()

"""Makes `.venv` beside this folder and installs segvid into it: the part that quickstart.py and test.py share.

Standard library only, safe to repeat (an installation that is complete is not touched) and to interrupt (a half-made
one is completed the next time).
"""

import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(extra: str = "") -> Path:
    """Installs segvid, with an extra if one is named, in editable form; gives the environment's Python.

    Raises:
        SystemExit: Python too old, or pip failed (its own message stands above).
    """
    if sys.version_info < (3, 11):  # noqa: UP036 - said before pip says it worse
        sys.exit(f"segvid needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: python3.12 {sys.argv[0]}")
    target = f"{ROOT}[{extra}]" if extra else str(ROOT)
    wanted = hashlib.sha256()
    for file in ("pyproject.toml", "constraints.txt"):
        wanted.update((ROOT / file).read_bytes())
    marks = [ENVIRONMENT / f"installed-{name}" for name in ("test", "run")]
    mark = marks[0] if extra == "test" else marks[1]
    digest = f"{wanted.hexdigest()} {ROOT}"
    # The test installation contains the other one.
    if PYTHON.exists() and any(m.exists() and m.read_text() == digest for m in (marks[0], mark)):
        return PYTHON
    started = time.monotonic()
    if not PYTHON.exists():
        print(f"Making the virtual environment {ENVIRONMENT} ...", flush=True)
        venv.create(ENVIRONMENT, with_pip=True)
    print("Installing segvid and what it needs (torch alone is a few GB; a few minutes) ...", flush=True)
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    # pip shows its progress bars on a terminal; elsewhere its lines.
    code = subprocess.call([*command, "-e", target])
    if code:
        sys.exit(f"pip failed with exit code {code}; its message is above. Once mended, run the same command again.")
    mark.write_text(digest)
    print(f"Installed in {time.monotonic() - started:.0f} s.", flush=True)
    return PYTHON

"""Runs the tests: `python3 tools/test.py [pytest arguments]`.

Makes `.venv` and installs segvid with its test extra first, where that is not done yet.
"""

import subprocess
import sys

from setup_environment import ROOT, install


def main() -> int:
    """Installs and tests; returns pytest's exit code."""
    python = install("test")
    try:
        # One process a core; a slow file does not keep the others waiting.
        parallel = ["-n", "auto", "--dist", "worksteal"]
        return subprocess.call([str(python), "-m", "pytest", *parallel, *sys.argv[1:]], cwd=ROOT)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

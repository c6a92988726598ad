"""From nothing to a comparison of attention heads: `python3 tools/quickstart.py`.

Makes `.venv`, installs segvid, and runs `segvid compare --config configs/compare/quickstart.yaml` on data that ships
with the package. Arguments are passed on to `segvid compare`. Safe to interrupt: the same command goes on.
"""

import subprocess
import sys
import time

from setup_environment import ROOT, install


def main() -> int:
    """Installs and compares; returns the exit code."""
    python = install()
    started = time.monotonic()
    print("Training and comparing six heads; a few minutes on a CPU ...", flush=True)
    command = [str(python), "-m", "segvid", "compare", "--config", "configs/compare/quickstart.yaml", *sys.argv[1:]]
    try:
        code = subprocess.call(command, cwd=ROOT)
    except KeyboardInterrupt:
        return 130
    if code == 0:
        print(f"Done in {time.monotonic() - started:.0f} s (without the installation).")
    return code


if __name__ == "__main__":
    sys.exit(main())

"""`python -m segvid` is the same program as `segvid`."""

import sys

from segvid.cli import main

if __name__ == "__main__":
    sys.exit(main())

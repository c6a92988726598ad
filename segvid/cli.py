"""The command line: `segvid`, `lightning` and `python -m segvid` are all `main`."""

import importlib
import os
import sys
from collections.abc import Sequence

from segvid.commands.usage import USAGE, usage
from segvid.errors import fault, user_message
from segvid.text import plain

# Imported only when it runs: a command should not wait for what it does not use.
COMMANDS = {
    "fit": "segvid.training:fit",
    "validate": "segvid.training:validate",
    "test": "segvid.training:test",
    "resume": "segvid.training:resume",
    "lr_find": "segvid.lr_find:lr_find",
    "compare": "segvid.compare.command:compare",
    "data": "segvid.data_command:data_command",
    "predict": "segvid.predict:predict",
    "export": "segvid.export.command:export",
    "attention": "segvid.show_attention:show_attention",
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code (see `segvid --help`).

    Args:
        args: the words after the program's name; `sys.argv[1:]` when None.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] == "--version":
        from segvid import __version__

        print(f"segvid {__version__}")
        return 0
    command = words[0]
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        words = take_packages(words)
        command, rest = words[0], words[1:]
        if command not in COMMANDS:
            print(f"segvid: there is no command {plain(command)!r}.\n\n{USAGE}", end="", file=sys.stderr)
            return 2
        if rest[-1:] in (["-h"], ["--help"]) and usage(command) is not None:
            print(usage(command), end="")
            return 0
        if rest[-2:] == ["--help", "all"]:
            rest = rest[:-1]
        module, _, name = COMMANDS[command].partition(":")
        code: int = getattr(importlib.import_module(module), name)(rest)
        return code
    except Exception as error:
        message = user_message(error) or fault(error)
        if debug or message is None:
            raise
        print(f"segvid {command}: {plain(message)}", file=sys.stderr)
        return 1
    except SystemExit as stop:  # --help and --print_config
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        print(f"segvid {command}: interrupted.", file=sys.stderr)
        return 130


def take_packages(words: Sequence[str]) -> list[str]:
    """The words without `--allow_import PACKAGE`, which holds for this process and those that it starts."""
    left = list(words)
    while "--allow_import" in left[:-1]:
        from segvid.allowed import allow

        place = left.index("--allow_import")
        allow(left[place + 1])
        del left[place : place + 2]
    return left

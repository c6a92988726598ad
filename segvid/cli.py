"""The command line: `segvid`, `lightning` and `python -m segvid` are all `main`."""

import os
import sys
from collections.abc import Sequence

from segvid.allowed import allow
from segvid.errors import fault, user_message

USAGE = """\
usage: segvid <command> [options]          (lightning <command> and python -m segvid <command> are the same)

  fit        train:     segvid fit --config RECIPE.yaml --config HEAD.yaml [--trainer.max_steps 1000 ...]
  validate   evaluate on the validation split:  segvid validate --config RUN/config.yaml --ckpt_path RUN/.../best.ckpt
  test       evaluate on the test split, likewise
  resume     go on with a training that was stopped:  segvid resume RUN [options of fit]
  lr_find    the loss at rising learning rates:  segvid lr_find --config RECIPE.yaml --config HEAD.yaml
  compare    train and evaluate several heads, and report:  segvid compare --config configs/compare/quickstart.yaml
  data       check a data set, weigh its classes:  segvid data check --config RECIPE.yaml, segvid data weights ...
  predict    classes of images, folders and videos:  segvid predict --ckpt_path RUN/checkpoints/best.ckpt photos/
  export     TorchScript, .pt2 or ONNX, proven equal:  segvid export --ckpt_path RUN/checkpoints/best.ckpt
  attention  where a head looks:  segvid attention --ckpt_path RUN/checkpoints/last.ckpt --image PICTURE --point 120,80

  segvid <command> --help     its options; --print_config prints the whole configuration
  --debug                     (anywhere) show the stack trace of an error
  --allow_import PACKAGE      (anywhere) let configs and checkpoints name classes of a package of yours
"""


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 done, 1 failed with a message, 2 wrong usage.

    Args:
        args: the words after the program's name; `sys.argv[1:]` when None.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    while "--allow_import" in words[:-1]:
        place = words.index("--allow_import")
        allow(words[place + 1])
        del words[place : place + 2]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] == "--version":
        from segvid import __version__

        print(f"segvid {__version__}")
        return 0
    command, rest = words[0], words[1:]
    try:
        if command == "compare":
            from segvid.compare.command import compare

            code: int = compare(rest)
            return code
        if command == "attention":
            from segvid.show_attention import show_attention

            return show_attention(rest)
        if command == "export":
            from segvid.export.command import export

            return export(rest)
        if command == "predict":
            from segvid.predict import predict

            return predict(rest)
        if command == "data":
            from segvid.data_command import data_command

            return data_command(rest)
        if command == "lr_find":
            from segvid.lr_find import lr_find

            return lr_find(rest)
        if command in ("fit", "validate", "test", "resume"):
            os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
            from segvid.training import run

            return run(command, rest)
        print(f"segvid: there is no command {command!r}.\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    except Exception as error:
        message = user_message(error) or fault(error)
        if debug or message is None:
            raise
        print(f"segvid {command}: {message}", file=sys.stderr)
        return 1
    except SystemExit as stop:  # --help and --print_config
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        print(f"segvid {command}: interrupted.", file=sys.stderr)
        return 130

"""Which packages a config, or a checkpoint's record of one, may take classes from: both are data, not programs."""

import os
import re

from jsonargparse import set_parsing_settings

ALLOWED_PACKAGES = ["segvid", "lightning", "pytorch_lightning", "torch", "torchmetrics"]
MORE = "SEGVID_ALLOW_IMPORT"  # environment variable, so that the processes of a comparison have it too


def allow(package: str) -> None:
    """Adds a package for this process and those that it starts."""
    os.environ[MORE] = " ".join([*os.environ.get(MORE, "").split(), package])


def restrict_imports() -> None:
    """From now on every other package is refused before it is imported."""
    allowed = [*ALLOWED_PACKAGES, *os.environ.get(MORE, "").split()]
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)


def explain_refusal(text: str) -> str:
    """jsonargparse's message, with what a user can do."""
    return re.sub(
        r"Importing '(([^'.]+)[^']*)' is not allowed, denied by .*? to allow it\.?",
        rf"Importing '\1' is not allowed: only {', '.join(ALLOWED_PACKAGES)} are. If you trust it: --allow_import \2",
        text,
        flags=re.DOTALL,
    )

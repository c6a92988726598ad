"""Files that are written whole or not at all, and files of others that are checked where they are read."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from segvid.errors import UserError

Content = TypeVar("Content")
PARTIAL = ".partial-"  # then the number of the process and the name


def write_whole(file: Path, save: Callable[[Path], object]) -> None:
    """Saves under a temporary name first, so that an interrupted run leaves no half file that counts as done.

    Raises:
        UserError: it cannot be written.
    """
    partial = file.with_name(f"{PARTIAL}{os.getpid()}-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save(partial)
        partial.replace(file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def remove_partials(folders: Iterable[Path]) -> None:
    """Removes what processes that were killed while they wrote have left in these folders."""
    for folder in folders:
        for partial in folder.glob(f"{PARTIAL}*"):
            process = partial.name.removeprefix(PARTIAL).partition("-")[0]
            if not process.isdigit() or _runs(int(process)):
                continue
            if partial.is_dir() and not partial.is_symlink():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    partial.unlink()


def _runs(process: int) -> bool:
    """Whether there is another process of this number; this one has not begun to write yet."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_text(file: Path, text: str) -> None:
    """Replaces the file by the text, as UTF-8.

    Raises:
        UserError: it cannot be written.
    """
    write_whole(file, lambda partial: partial.write_text(text, encoding="utf-8", newline=""))


def write_json(file: Path, content: Any) -> None:
    """Replaces the file by the content as JSON, in which NaN is null.

    Raises:
        UserError: it cannot be written.
    """
    write_text(file, json.dumps(without_nan(content), indent=1) + "\n")


def find_config(name: str | Path) -> Path:
    """A configuration: where the user is, else among those that the package brings along.

    In an installed package they lie inside of it, in a clone beside it.
    """
    path = Path(name)
    if path.exists() or path.is_absolute():
        return path
    package = Path(__file__).parent
    inside = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    shipped = [folder / "configs" / inside for folder in (package, package.parent)]
    return next((file for file in shipped if file.is_file()), path)


def shipped_configs(words: Sequence[str]) -> list[str]:
    """The words, with files of `--config FILE` that are not there from where the package has them."""
    found = list(words)
    for index, (word, after) in enumerate(pairwise(words)):
        if word in ("-c", "--config"):
            found[index + 1] = str(find_config(after))
    return [f"--config={find_config(w.removeprefix('--config='))}" if w.startswith("--config=") else w for w in found]


def without_nan(value: Any) -> Any:
    """NaN is no JSON: None instead, at any depth."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def read_json(file: Path, kind: type[Content]) -> Content:
    """The content of a JSON file, checked.

    Args:
        file: to read.
        kind: what it holds: a dataclass (its fields), or any type that pydantic knows, such as `dict[str, float]`.

    Raises:
        UserError: it cannot be read, is no JSON, or holds something else; the message names file and field.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON that can be read ({' '.join(str(error).split())[:200]}).") from error
    return checked(content, kind, file)


def checked(content: object, kind: type[Content], file: Path | str) -> Content:
    """What was read from a file, if it is what it should be.

    Args:
        content: plain data.
        kind: see `read_json`. Limits of single values are written as `Annotated[int, annotated_types.Gt(0)]`.
        file: where the content is from; where in it, if it is a part: `f"{file}: data"`.

    Raises:
        UserError: it is something else; the message names file and field.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(content)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise UserError(f"{file} is nested too deeply.") from error
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        found = repr(first.get("input"))
        found = found if len(found) <= 80 else found[:80] + " ..."
        raise UserError(f"{file}: {f'field {field}: ' if field else ''}{first['msg']} (found: {found}).") from error

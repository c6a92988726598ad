"""Names of classes, rows, files and people are text, wherever they are shown: never markup, a formula or a command.

Whoever shows a name that a person or a file has chosen passes it through the function of the place: `plain` on a
terminal (with a console of `console`), `label` in a chart, `cell` in a CSV, `markdown` and `html` in a report, `slug`
as a part of a file name.
"""

import hashlib
import html as standard_html
import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# They turn the order of the letters around, so that one name reads like another.
BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
SLUG_LENGTH = 80


def plain(text: object) -> str:
    """The text in one line: what a terminal would obey, and what cannot be encoded, as visible escapes."""
    return "".join(_visible(letter) for letter in str(text))


def _visible(letter: str) -> str:
    if letter in BIDIRECTIONAL or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp"):
        return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
    return letter


def console(**options: Any) -> "Console":
    """rich's console without markup, emoji codes and highlighting: brackets and colons stay what they are."""
    from rich.console import Console

    return Console(**{"markup": False, "emoji": False, "highlight": False} | options)


def label(text: object) -> str:
    """The text for matplotlib, which takes what stands between dollars as TeX, and hides labels that begin with "_"."""
    shown = plain(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def cell(text: object) -> str:
    """The text for a CSV: spreadsheets run cells that begin with one of "= + - @"."""
    shown = plain(text)
    return f"'{shown}" if shown.lstrip()[:1] in ("=", "+", "-", "@") else shown


def markdown(text: object) -> str:
    """The text for Markdown, also as the cell of a table."""
    shown = re.sub(r"([\\`*\[\]<>|~$#])", r"\\\1", " ".join(plain(text).split()))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", shown)  # inside a word it is only an underscore


def html(text: object) -> str:
    """The text for HTML, also as an attribute."""
    return standard_html.escape(plain(text))


def slug(text: str) -> str:
    """A part of a file name: letters, digits and "._=-" stay; what is lost is made up for by a checksum.

    Different texts have different slugs, also where the file system does not know capitals.
    """
    kept = re.sub(r"[^A-Za-z0-9._=-]+", "_", text).lstrip(".")[:SLUG_LENGTH]
    if kept == text and kept and kept == kept.lower():
        return kept
    return f"{kept}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}".lstrip("-")

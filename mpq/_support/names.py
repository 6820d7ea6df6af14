"""Names that a user's network brings, harmless to whoever reads them: terminal, picture, table.

A module's name is any text: it may hold escape sequences, formulas, markup, a whole novel. Files
that programs read back (JSON) keep names as they are. We write no HTML: the only one that anybody
sees is that of a pandas table in a notebook, which pandas escapes; a test holds both.
"""

import re
from typing import Final

LONGEST: Final = 80
"""Characters of one name, or one quoted value, that people are shown."""
_LONGEST_TEXT: Final = 4000
"""Characters of a whole message: some fifty lines of a terminal."""
_LONGEST_LABEL: Final = 40
"""Characters below an axis: twice as many leave no room for the axis."""
_LONG_WORD: Final = re.compile(rf"\S{{{2 * LONGEST},}}")
"""Twice the length of a name: paths of files are shown whole."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""What spreadsheets take for the beginning of a formula."""


def visible(text: str) -> str:
    r"""Control characters, line breaks and marks of writing direction as escapes.

    >>> visible("conv\x1b]0;owned\x07")
    'conv\\x1b]0;owned\\x07'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shortened(text: str, longest: int = LONGEST) -> str:
    """A text of at most so many characters: its middle is left out.

    >>> shortened("abcdefghij", 7)
    'abc...j'
    """
    if len(text) <= longest:
        return text
    kept = max(longest - 3, 2)
    # Most of the beginning, and the end, where numbers are.
    tail = max(kept // 3, 1)
    return f"{text[: kept - tail]}...{text[-tail:]}"


def for_people(text: str) -> str:
    """A sentence that names are a part of: lines stay, what is not printable is seen."""
    lines = (visible(line) for line in text.splitlines())
    words = _LONG_WORD.sub(lambda found: shortened(found.group()), "\n".join(lines))
    return shortened(words, _LONGEST_TEXT)


def for_picture(text: str, longest: int = _LONGEST_LABEL) -> str:
    """A label of matplotlib, which takes what is between two dollars for a formula."""
    return shortened(visible(text), longest).replace("$", r"\$")


def for_csv(cell: str) -> str:
    """A cell that no spreadsheet computes; ``from_csv`` is the inverse.

    >>> for_csv("=cmd|' /C calc'!A0")
    "'=cmd|' /C calc'!A0"
    """
    # One more quote for what begins with a quote already, so that reading it back is no guess.
    return f"'{cell}" if cell.lstrip("'").startswith(_FORMULA) else cell


def from_csv(cell: str) -> str:
    """Inverse of ``for_csv``."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell


def for_markdown(cell: str) -> str:
    """A cell of a Markdown table: bars would begin the next one, and tags are HTML there."""
    escaped = visible(cell).replace("\\", "\\\\").replace("|", "\\|")
    # The ampersand first: a name that is an entity (``&lt;``) would be shown as another.
    return escaped.replace("&", "&amp;").replace("<", "&lt;")

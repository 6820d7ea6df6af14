"""The scripts that draw the page's pictures: Vega, Vega-Lite and Vega-Embed in one text.

They are part of ``vl-convert-python``, which puts them together in some seconds, and the text is
kept in the user's cache folder for the next page. Nothing is read from the network, here or by the
page.
"""

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

_PACKAGE: Final = "vl-convert-python"
_PROGRAM: Final = (
    "import sys, vl_convert; sys.stdout.reconfigure(encoding='utf-8', newline='');"
    "sys.stdout.write(vl_convert.javascript_bundle())"
)
_LIMIT_S: Final = 120
_END: Final = "</script"
"""What ends a script wherever it stands, also in a text."""


@cache
def vega_script() -> str:
    """The text for a script element; empty where the package is missing or fails: no pictures."""
    try:
        found = version(_PACKAGE)
    except PackageNotFoundError:
        return ""
    kept = _cache_folder() / f"vega-{found}.js"
    with suppress(OSError, UnicodeDecodeError):
        return kept.read_text(encoding="utf-8")
    made = _made().replace(_END, _END.replace("/", "\\/"))
    if made:
        _keep(kept, made)
    return made


def _made() -> str:
    # In a process of its own: a whole JavaScript engine would stay in this one's memory.
    try:
        run = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            capture_output=True,
            check=True,
            timeout=_LIMIT_S,
            encoding="utf-8",
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout


def _cache_folder() -> Path:
    """As the XDG base directories have it, and on Windows its own."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    with suppress(RuntimeError):  # there may be no home
        return (Path(base) if base else Path.home() / ".cache") / "mpq"
    return Path(tempfile.gettempdir()) / "mpq"


def _keep(path: Path, text: str) -> None:
    """Whole or not at all, as several processes may do it; a folder that is read-only is none."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False
        ) as file:
            file.write(text)
        Path(file.name).replace(path)

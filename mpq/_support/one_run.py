"""The mark that all files of one run have, and folders that hold files of two."""

import re
from collections.abc import Iterable
from pathlib import Path

from mpq.errors import FileFormatError

# What a run writes: whatever else the user keeps there is not read.
_SUFFIXES = (".json", ".csv", ".png")
# Bytes, because pictures are marked too.
_RUN = re.compile(rb"mpq-run-[0-9a-f]{16}")


def check_one_run(folder: Path, names: Iterable[str] | None = None) -> None:
    """Refuses a folder with files of two runs; what has no mark is no file of a run.

    Args:
        folder: Of a search.
        names: The files that are looked at; default: all that a run may write.

    Raises:
        FileFormatError: If there are files of two runs.
    """
    runs: dict[bytes, str] = {}
    # Sorted, as the order of a folder's files, and with it the message, is the system's.
    found = sorted(folder.glob("*.*")) if names is None else [folder / name for name in names]
    for file in found:
        if file.suffix in _SUFFIXES and file.is_file():
            for mark in _RUN.findall(file.read_bytes()):
                runs.setdefault(mark, file.name)
    if len(runs) > 1:
        shown = " and ".join(list(runs.values())[:2])
        raise FileFormatError(
            f"{folder} holds files of {len(runs)} runs ({shown} are not of one): search again into "
            "a new folder, or remove what does not belong there"
        )

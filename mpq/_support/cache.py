"""What took long, kept on disk: files named after a checksum of all that determines them."""

import json
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Final, final

from mpq._support.files import prepare_folder, remove_files, write_files
from mpq.errors import OutputError

VERSION: Final = 2
"""Of the layout of the files."""


@final
class Cache:
    """A folder that several processes may use at a time.

    A file appears whole or not at all, and says its name and SHA-256: a killed run goes on where it
    was. What is damaged, or was kept under another name, counts as missing. Files can be deleted
    at any time.

    Args:
        folder: Made if it does not exist.

    Raises:
        OutputError: If it cannot be written to.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = prepare_folder(Path(folder))

    def write(self, name: str, content: bytes) -> None:
        """Keeps something under a name; a warning says so where that fails."""
        try:
            self.must_write(name, content)
        except OutputError as error:
            warnings.warn(f"{error}: {name} is not kept", stacklevel=2)

    def must_write(self, name: str, content: bytes) -> None:
        """Keeps what somebody waits for.

        Raises:
            OutputError: If it cannot be written.
        """
        write_files(self.folder, {name: _header(name, content) + content})

    def read(self, name: str) -> bytes | None:
        """What is kept under a name; ``None``: nothing, or something damaged, with a warning.

        Raises:
            OutputError: If the file cannot be read.
        """
        path = self.folder / name
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(
                f"cannot read the kept file {path}: {error.strerror}; make it readable, delete it, "
                "or name another folder (--cache)"
            ) from error
        content = checked(found, name)
        if content is None:
            warnings.warn(f"{path} is damaged: what was in it is made anew", stacklevel=2)
        return content

    def remove(self, name: str) -> None:
        """Removes what is kept under a name, if anything is.

        Raises:
            OutputError: If it cannot be removed.
        """
        remove_files(self.folder, [name])


def checked(file: bytes, name: str | None = None) -> bytes | None:
    """What a kept file holds; ``None``: it is damaged, or none, or was kept under another name.

    Args:
        file: All of it.
        name: Under which it has to have been kept; ``None``: any.
    """
    header, newline, content = file.partition(b"\n")
    try:
        known = json.loads(header)["name"] if name is None else name
    except (ValueError, TypeError, KeyError):
        return None
    return content if header + newline == _header(known, content) else None


def _header(name: str, content: bytes) -> bytes:
    """The first line of a file, which says what follows."""
    said = {"mpq_cache": VERSION, "name": name, "sha256": sha256(content).hexdigest()}
    return json.dumps(said).encode() + b"\n"

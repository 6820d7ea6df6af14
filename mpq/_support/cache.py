"""What took long, kept on disk: files named after a checksum of all that determines them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest, sha256
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from mpq._support.events import warn
from mpq._support.files import prepare_folder, remove_files, write_files
from mpq._support.tensor_file import ALIGNMENT, arrays_of, mapped_content
from mpq.errors import OutputError

if TYPE_CHECKING:
    import numpy as np

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
            warn(f"{error}: {name} is not kept", stacklevel=2)

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
        with self._opened(name) as file:
            if file is None:
                return None
            content = checked(file.read(), name)
        if content is None:
            self._warn_damaged(name)
        return content

    def mapped(self, name: str) -> "dict[str, np.ndarray[Any, Any]] | None":
        """Arrays that are kept under a name as ``file_parts`` has them, and stay in their file.

        ``None``: nothing is, or something damaged, with a warning.

        Raises:
            OutputError: If the file cannot be read.
        """
        with self._opened(name) as file:
            if file is None:
                return None
            header = file.readline()
            if header != _header_of(name, file_digest(file, sha256).hexdigest()):
                self._warn_damaged(name)
                return None
            return arrays_of(mapped_content(file)[len(header) :])

    @contextmanager
    def _opened(self, name: str) -> Iterator[BufferedReader | None]:
        path = self.folder / name
        try:
            with path.open("rb") as file:
                yield file
        except FileNotFoundError:
            yield None
        except OSError as error:
            raise OutputError(
                f"cannot read the kept file {path}: {error.strerror}; make it readable, delete it, "
                "or name another folder (--cache)"
            ) from error

    def _warn_damaged(self, name: str) -> None:
        path = self.folder / name
        warn(f"{path} is damaged: what was in it is made anew", stacklevel=3)

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
    return _header_of(name, sha256(content).hexdigest())


def _header_of(name: str, digest: str) -> bytes:
    told = json.dumps({"mpq_cache": VERSION, "name": name, "sha256": digest}).encode()
    # Numbers that are mapped from the file begin at a multiple of their size.
    return told + b" " * (-(len(told) + 1) % ALIGNMENT) + b"\n"

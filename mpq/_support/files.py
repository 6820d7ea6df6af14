"""Writing results: whole files or none."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias

from mpq._support.locks import try_locked
from mpq.errors import OutputError

_LAST: Final = "assignment.json"
"""The file that users take away."""
_STAGING: Final = r"\.mpq-{}-[a-z0-9_]{{8}}"
"""As ``tempfile`` names a folder with our prefix."""


def prepare_folder(folder: Path) -> Path:
    """Makes sure that files can be written there, before hours are spent on them.

    Raises:
        OutputError: If the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A file is really opened: `os.access` says yes to some folders where writing fails, such as
        # on network file systems.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to the folder {folder}: {error.strerror}") from error
    return folder


@contextmanager
def prepared_folder(folder: Path) -> Iterator[Path]:
    """Within this block the folder is there; afterwards, if it is empty, it is as it was before.

    What is refused late, such as a limit that nothing meets, leaves no folder that looks like one
    of a run.

    Raises:
        OutputError: If the folder cannot be made or written to.
    """
    made: list[Path] = []
    for path in (folder, *folder.parents):
        # What cannot even be looked at is told below.
        with suppress(OSError):
            made += [] if path.exists() else [path]
    try:
        yield prepare_folder(folder)
    finally:
        # From the innermost; one that holds something, also of another process, stays.
        for path in made:
            with suppress(OSError):
                path.rmdir()


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Removes files that are there.

    Raises:
        OutputError: If one cannot be removed.
    """
    for name in names:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove {folder / name}: {error.strerror}") from error


Content: TypeAlias = "bytes | Callable[[], Iterable[bytes | memoryview]]"
"""Of a file: all of it, or a function that gives it piece by piece."""


def write_files(folder: Path, files: Mapping[str, Content]) -> list[Path]:
    """Writes all files; each appears whole, and none before all could be written.

    What a killed process left of its own is removed first. ``assignment.json`` appears last: once
    it is there, so are the files that it belongs to.

    Raises:
        OutputError: If a file cannot be written.
    """
    with prepared_folder(folder):
        _refuse_no_files(folder, files)
        return _written(folder, files)


def _refuse_no_files(folder: Path, names: Iterable[str]) -> None:
    # Renaming onto a folder fails, and by then the files before it would be replaced. A device or a
    # pipe would itself be replaced by a file.
    for name in names:
        path = folder / name
        if path.is_dir():
            raise OutputError(f"cannot write the file {path}: a folder is there")
        if path.exists() and not path.is_file():
            raise OutputError(f"cannot write the file {path}: a device or a pipe is there")
        # It may lead to an open stream, to which nothing would be written then.
        if path.is_symlink():
            raise OutputError(
                f"cannot write the file {path}: a link is there, which a file would replace; name "
                "what it leads to"
            )


def _written(folder: Path, files: Mapping[str, Content]) -> list[Path]:
    try:
        with staging(folder) as place:
            for name, content in files.items():
                _write_through(place / name, content)
            # Two loops: a full disk shows up in the one above, while all old files are still there.
            for name in sorted(files, key=_LAST.__eq__):
                (place / name).replace(folder / name)
    except OSError as error:
        raise OutputError(f"cannot write to the folder {folder}: {error}") from error
    return [folder / name for name in files]


@contextmanager
def staging(folder: Path, purpose: str = "staging") -> Iterator[Path]:
    """A folder of our own beside the destination; gone afterwards, in the next write at the latest.

    Beside it, as a rename is atomic only within one file system.

    Args:
        folder: In which it lies.
        purpose: A part of its name; what processes that were killed left of the same purpose is
            removed first.

    Raises:
        OSError: If it cannot be made.
    """
    remove_dead(folder, purpose)
    while True:
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=f".mpq-{purpose}-") as name,
            try_locked(Path(name)) as is_ours,
        ):
            # Before it was locked it looked like a dead one's, and may be gone or going.
            if is_ours is not False and Path(name).is_dir():
                yield Path(name)
                return


def remove_dead(folder: Path, purpose: str) -> None:
    """Removes what processes that were killed left of their ``staging`` for a purpose."""
    for path in folder.glob(f".mpq-{purpose}-*"):
        _remove_if_dead(path, purpose)


def _remove_if_dead(path: Path, purpose: str) -> None:
    """Removes a staging folder whose lock the system has taken back from its owner."""
    is_ours = re.fullmatch(_STAGING.format(purpose), path.name)
    if not is_ours or not path.is_dir() or path.is_symlink():
        return
    with try_locked(path) as is_dead:
        if is_dead:
            # Another process may do the same now: what is gone is as good as removed.
            shutil.rmtree(path, ignore_errors=True)


def _write_through(path: Path, content: Content) -> None:
    """Writes to the disk itself: a rename may get there before what was only handed over."""
    path.write_bytes(content if isinstance(content, bytes) else b"")
    with path.open("r+b") as file:
        file.writelines(() if isinstance(content, bytes) else content())
        file.flush()
        os.fsync(file.fileno())

"""Writing results: whole files or none."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from mpq.errors import OutputError


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


def write_files(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Writes all files; each appears whole, and none before all could be written.

    Raises:
        OutputError: If a file cannot be written.
    """
    prepare_folder(folder)
    # Renaming onto a folder fails, and by then the files before it would be replaced. A device or a
    # pipe would itself be replaced by a file.
    for name in files:
        path = folder / name
        if path.is_dir():
            raise OutputError(f"cannot write the file {path}: a folder is there")
        if path.exists() and not path.is_file():
            raise OutputError(f"cannot write the file {path}: a device or a pipe is there")
    try:
        # Beside their destination: a rename is atomic only within one file system.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".mpq-") as staging:
            for name, content in files.items():
                (Path(staging) / name).write_bytes(content)
            # Two loops: a full disk shows up in the one above, while all old files are still there.
            for name in files:
                (Path(staging) / name).replace(folder / name)
    except OSError as error:
        raise OutputError(f"cannot write to the folder {folder}: {error}") from error
    return [folder / name for name in files]

"""Rows of a long measurement, on disk as they are measured: a killed run goes on where it was."""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, final

from mpq._support import schema_versions
from mpq._support.locks import locked
from mpq._support.torn import cut_torn_line, is_torn
from mpq.errors import FileFormatError, InputError, OutputError


@final
class Journal:
    """A file of JSON lines: a header that says what was measured, then one line per row.

    A last line that was cut off in the middle of a write is dropped; one that has its end, and is
    no row of ours, is damage. Every row has a checksum: one that somebody changed is not believed.
    Several processes may write one journal.

    Args:
        path: The journal's file; made if it is not there, in a folder that is.
        key: JSON object of strings: everything that determines the rows. A file that was written
            under another key is not resumed.

    Raises:
        InputError: If the file has another key.
        FileFormatError: If the file is no journal.
        OutputError: If the file cannot be read or written.
    """

    def __init__(self, path: str | Path, key: Mapping[str, str]) -> None:
        self.path = Path(path)
        self._rows: dict[str, Any] = {}
        self._header = header = {"mpq_journal": schema_versions.JOURNAL, "key": dict(key)}
        # A pipe would be waited for, and /dev/full read without end.
        if self.path.exists() and not self.path.is_file():
            raise OutputError(f"cannot read the journal {self.path}: it is no regular file")
        with self._opened() as file:
            # Under the lock: what looks like half a line is another process's whole one soon.
            content = file.read()
            written = self._read(content, header)
            # What is left of a line goes first: the next row would be appended to it, and both be
            # lost.
            if written < len(content):
                file.truncate(written)
            if not written:
                _append(file, header)

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def __getitem__(self, name: str) -> Any:
        return self._rows[name]

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, name: str, row: Any) -> None:
        """Writes a row; when this returns, it is on disk.

        Args:
            name: Says what was measured, such as ``batch 3, layer conv1``.
            row: What was measured, as anything that ``json`` can write.

        Raises:
            OutputError: If it cannot be written.
        """
        with self._opened() as file:
            # A disk that was full may have taken half of a line, of this process or of another.
            cut_torn_line(file)
            # Another process may have ended its measurement, and removed the file: rows without a
            # header are a journal that nobody can read.
            if not os.fstat(file.fileno()).st_size:
                _append(file, self._header, *map(_row, self._rows, self._rows.values()))
            _append(file, _row(name, row))
        # After the write: a row that could not be written does not count as measured.
        self._rows[name] = row

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """The file for reading from its beginning and appending, for this process alone."""
        try:
            with self.path.open("a+b") as file, locked(file):
                file.seek(0)
                yield file
        except OSError as error:
            raise OutputError(
                f"cannot write the journal {self.path}: {error.strerror}; give the path of a file "
                "in a folder that exists and can be written to"
            ) from error

    def _read(self, content: bytes, header: Mapping[str, Any]) -> int:
        """Keeps the rows; how many bytes are whole lines."""
        # A process that was killed within its first write left the beginning of this very header.
        if _line(header).removesuffix(b"\n").startswith(content):
            return 0
        # Lines are rows, whatever the rows hold: JSON escapes the line breaks inside of strings.
        lines = content.splitlines(keepends=True)
        self._check(lines[0], header)
        # A crash tears only the last line; all else is damage that must not go unnoticed: of a row
        # that was measured, or of the end of the line before.
        if is_torn(lines[-1]):
            lines.pop()
        for number, line in enumerate(lines[1:], start=2):
            row = _parsed(line)
            if row is None or not _is_ours(row):
                raise FileFormatError(
                    f"the journal {self.path} is damaged in line {number}: remove that line to "
                    "measure it anew, or give the path of a new file"
                )
            self._rows[row["name"]] = row["row"]
        return sum(map(len, lines))

    def _check(self, line: bytes, header: Mapping[str, Any]) -> None:
        found = _parsed(line)
        if found is None or "mpq_journal" not in found:
            raise FileFormatError(
                f"{self.path} is not a journal of mpq; give the path of a new file"
            )
        if found["mpq_journal"] != schema_versions.JOURNAL:
            raise FileFormatError(
                f"the journal {self.path} has schema version {found['mpq_journal']}; this mpq "
                f"reads version {schema_versions.JOURNAL}"
            )
        old, new = found.get("key"), header["key"]
        if not isinstance(old, dict):
            raise FileFormatError(
                f"the journal {self.path} is damaged in line 1: expected an object as its key, got "
                f"{old!r}; give the path of a new file"
            )
        # Names of both: what only one of the keys has is a difference too.
        other = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if other:
            raise InputError(
                f"the journal {self.path} is of another measurement (other {', '.join(other)}); "
                "delete it to measure anew, or give another path"
            )


def _append(file: BinaryIO, *lines: Mapping[str, Any]) -> None:
    file.writelines(map(_line, lines))
    # `flush` hands the line to the system; only `fsync` makes it survive a power cut.
    file.flush()
    os.fsync(file.fileno())


def _row(name: str, row: Any) -> dict[str, Any]:
    return {"name": name, "row": row, "crc32": _checksum(name, row)}


def _checksum(name: str, row: Any) -> int:
    """Of a row as JSON writes it: read and written again, it is the same text."""
    return zlib.crc32(json.dumps([name, row]).encode())


def _is_ours(line: Mapping[str, Any]) -> bool:
    """Whether a line is a row as ``Journal.add`` wrote it."""
    # The name first: no row is looked up by a list, say.
    if not isinstance(line.get("name"), str) or "row" not in line:
        return False
    return bool(line.get("crc32") == _checksum(line["name"], line["row"]))


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a whole line; ``None`` if it is none."""
    # Whole JSON without its line end counts as cut off: the next row would land on the same line.
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None

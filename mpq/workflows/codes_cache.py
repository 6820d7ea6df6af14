"""Codes that a rounding found, kept on disk: what was rounded once is not rounded again."""

import json
import warnings
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, final

from mpq._support.files import prepare_folder, write_files
from mpq.errors import OutputError
from mpq.quantization.stored import StoredWeight, StoredWeights
from mpq.workflows.codes_keys import ToRoundTogether

VERSION: Final = 1
"""Of the layout of the files."""


@final
class CodesCache:
    """A folder of codes, each file named after a checksum of all that determines what is in it.

    A file appears whole or not at all, and says its own SHA-256: several processes may use one
    folder, and a killed one goes on where it was. What is damaged is made anew. Nothing is ever
    removed: files can be deleted at any time.

    Args:
        folder: Made if it does not exist.

    Raises:
        OutputError: If it cannot be written to.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = prepare_folder(Path(folder))

    def codes(self, asked: ToRoundTogether) -> list[list[StoredWeight]]:
        """Codes of each weight and format: found before, or found now and kept.

        Where those of one weight are missing, all that go with it are found again.

        Raises:
            OutputError: If the folder cannot be read or written.
        """
        kept = [self.weights(key) for key in asked.keys]
        known = [weights for weights in kept if weights is not None]
        if len(known) == len(kept):
            return known
        found = asked.codes()
        name = asked.weights[0].rounding.name
        for key, before, now in zip(asked.keys, kept, found, strict=True):
            if before is None:
                named = {f"{place:04d}": weight for place, weight in enumerate(now)}
                self._write(f"{key}.codes", StoredWeights(name, named).content)
        return found

    def weights(self, key: str) -> list[StoredWeight] | None:
        """The codes that are kept under a key of ``ToRoundTogether``; ``None``: there are none.

        Raises:
            OutputError: If the file cannot be read.
        """
        content = self._read(f"{key}.codes")
        if content is None:
            return None
        by_place = StoredWeights.from_content(content, "", sha256(content).hexdigest()).by_layer
        return [by_place[place] for place in sorted(by_place)]

    def record(self, key: str) -> dict[str, Any] | None:
        """What is kept of a whole network; ``None``: nothing.

        Raises:
            OutputError: If the file cannot be read.
        """
        content = self._read(f"{key}.network")
        return None if content is None else dict(json.loads(content))

    def keep_record(self, key: str, record: Mapping[str, Any]) -> None:
        """Keeps something of a whole network, as JSON.

        Raises:
            OutputError: If it cannot be written.
        """
        self._write(f"{key}.network", json.dumps(record).encode())

    def _write(self, name: str, content: bytes) -> None:
        write_files(self.folder, {name: _header(content) + content})

    def _read(self, name: str) -> bytes | None:
        path = self.folder / name
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(
                f"cannot read the kept codes {path}: {error.strerror}; make the file readable, "
                "delete it, or name another folder (--codes-cache)"
            ) from error
        header, newline, content = found.partition(b"\n")
        if header + newline == _header(content):
            return content
        warnings.warn(f"{path} is damaged: what was in it is made anew", stacklevel=2)
        return None


def _header(content: bytes) -> bytes:
    """The first line of a file, which says what follows."""
    return (
        json.dumps({"mpq_codes": VERSION, "sha256": sha256(content).hexdigest()}).encode() + b"\n"
    )

"""How far a tuning has come, on the disk: a run that is killed goes on where it was."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch

from mpq._support.files import remove_files, write_files
from mpq.errors import FileFormatError

CHECKPOINT_FILE: Final = "tuning.checkpoint"
"""In the run's folder, until the tuning is done."""


@final
@dataclass(frozen=True)
class Checkpoint:
    """A file that has the state after the last finished epoch.

    Args:
        folder: Where it lies; ``None``: nothing is kept.
        key: Of network, examples and settings: the state of another tuning is not gone on with.
    """

    folder: Path | None
    key: str

    def read(self) -> dict[str, Any] | None:
        """The state, if there is one of this very tuning.

        Raises:
            FileFormatError: If the file is none of ours.
        """
        path = None if self.folder is None else self.folder / CHECKPOINT_FILE
        if path is None or not path.exists():
            return None
        try:
            # Tensors and plain values only: a file from elsewhere runs no code.
            found = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        # Torch's reader fails in whatever way the bytes of a damaged file lead it to.
        except Exception as error:
            raise FileFormatError(
                f"{path} cannot be read as the state of a tuning: remove it to begin anew"
            ) from error
        is_ours = isinstance(found, dict) and found.get("key") == self.key
        return found if is_ours else None

    def write(self, state: dict[str, Any]) -> None:
        """Replaces the file as a whole.

        Raises:
            OutputError: If it cannot be written.
        """
        if self.folder is None:
            return
        content = io.BytesIO()
        torch.save({"key": self.key, **state}, content)
        write_files(self.folder, {CHECKPOINT_FILE: content.getvalue()})

    def remove(self) -> None:
        """The tuning is done."""
        if self.folder is not None:
            remove_files(self.folder, [CHECKPOINT_FILE])

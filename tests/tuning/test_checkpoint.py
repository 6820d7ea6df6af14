"""State of a tuning on the disk."""

from pathlib import Path

import pytest

from mpq.errors import FileFormatError
from mpq.tuning.checkpoint import CHECKPOINT_FILE, Checkpoint


@pytest.mark.parametrize("content", [b"", b"abc", b"\x80\x04K\x01."])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    """Whatever torch's reader makes of its bytes, the user is told what to do."""
    (tmp_path / CHECKPOINT_FILE).write_bytes(content)

    with pytest.raises(FileFormatError, match="remove it to begin anew"):
        Checkpoint(tmp_path, "key").read()

"""Locks of files and folders: one at a time, and given back at the end of the block."""

from contextlib import suppress
from pathlib import Path

import pytest

from mpq._support.locks import locked, try_locked


def test_one_has_the_lock_of_a_folder(tmp_path: Path) -> None:
    """Nobody waits: whoever comes second is told so, and gets it when the first is done."""
    for _ in range(2):
        with try_locked(tmp_path) as first, try_locked(tmp_path) as second:
            assert (first, second) == (True, False)


def test_a_folder_that_is_gone_has_no_lock(tmp_path: Path) -> None:
    """Nobody can tell whether somebody has it."""
    with try_locked(tmp_path / "gone") as found:
        assert found is None


def test_a_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    """Of a file and of a folder; a file's lock is taken twice by nobody."""
    import fcntl

    path = tmp_path / "file"
    for _ in range(2):
        with path.open("ab") as file, path.open("ab") as other:
            with suppress(ZeroDivisionError), locked(file), try_locked(tmp_path) as is_ours:
                assert is_ours
                with pytest.raises(BlockingIOError):
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                raise ZeroDivisionError
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are listed on Linux")
def test_no_descriptor_is_kept(tmp_path: Path) -> None:
    """A sweep writes thousands of folders."""
    before = len(list(Path("/proc/self/fd").iterdir()))

    for _ in range(3):
        with try_locked(tmp_path):
            pass

    assert len(list(Path("/proc/self/fd").iterdir())) == before

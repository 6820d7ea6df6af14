"""The file of a study: read before anything is written to it, a torn last line cut off."""

from pathlib import Path

import pytest

from mpq._support.study_file import study_file
from mpq.errors import FileFormatError, InputError

BEGUN = b'{"op_code":0,"a":1}\n{"op_code":1}\n{"op_code":2,"b":[1,2]}\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is not there yet."""
    return tmp_path / "study.journal"


@pytest.mark.parametrize(
    "torn", [b"", b'{"op_code"', b'{"op_code":3}', b'{"op_code":3,\0\n', b"\0\0\n", b"[" * 99_999]
)
def test_what_is_left_of_a_line_is_cut_off(path: Path, torn: bytes) -> None:
    """Whole lines stay, byte by byte; half a line, or one that ends in zeros, goes."""
    path.write_bytes(BEGUN + torn)

    study_file(str(path))

    assert path.read_bytes() == BEGUN


def test_a_study_goes_on_where_it_was_torn(path: Path) -> None:
    """What is appended is read back after what was there, by one that opens it anew."""
    path.write_bytes(BEGUN + b'{"op_code":9')

    study = study_file(str(path))
    study.append_logs([{"op_code": 7}])
    study.append_logs([{"op_code": 8}])  # the lock was let go

    found = list(study_file(str(path)).read_logs(0))
    assert [line["op_code"] for line in found] == [0, 1, 2, 7, 8]


@pytest.mark.parametrize("line", [b'{"op_code":3,\n', b"\n", b"\xff\n", b"[" * 99_999 + b"\n"])
def test_a_damaged_last_line_is_told(path: Path, line: bytes) -> None:
    """With its end it was whole once: nothing is cut off, and nothing appended behind it."""
    path.write_bytes(BEGUN + line)

    with pytest.raises(FileFormatError, match="is damaged in line 4: remove that line"):
        study_file(str(path))

    assert path.read_bytes() == BEGUN + line


def test_a_line_after_half_of_another_ones(path: Path) -> None:
    """Another process found the disk full while this one had the study open."""
    path.write_bytes(BEGUN)
    study = study_file(str(path))
    with path.open("ab") as file:
        file.write(b'{"op_code":9')

    study.append_logs([{"op_code": 7}])

    assert path.read_bytes() == BEGUN + b'{"op_code":7}\n'


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"op_code"', b'{"op_code":0,'])
def test_a_new_study(path: Path, content: bytes | None) -> None:
    """Where there is no file, an empty one, or one that was torn in its first line."""
    if content is not None:
        path.write_bytes(content)

    study_file(str(path)).append_logs([{"op_code": 1}])

    assert path.read_bytes() == b'{"op_code":1}\n'


@pytest.mark.parametrize("content", [b"import os\n", b'{"mpq_journal": 2}\n', b"\n"])
def test_another_file_is_not_touched(path: Path, content: bytes) -> None:
    """Also one that may only be read; the message shows how it begins."""
    path.write_bytes(content)
    path.chmod(0o444)

    with pytest.raises(FileFormatError) as caught:
        study_file(str(path))

    head = content[: len(b'{"op_code":')].decode()
    assert str(caught.value) == (
        f"storage {str(path)!r} is no journal of optuna's, or is damaged: it begins with "
        f"{head!r}; give another path"
    )
    assert path.read_bytes() == content


def test_a_folder_is_refused(tmp_path: Path) -> None:
    """Nothing can be appended to it."""
    with pytest.raises(InputError, match=r"^storage .*: it is no regular file; give another path$"):
        study_file(str(tmp_path))

"""Files of arrays that are written and read in parts."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from mpq._support.tensor_file import (
    array_entries,
    arrays_of,
    file_parts,
    mapped_content,
    unnamed_file,
)
from mpq.errors import FileFormatError, OutputError

KINDS = ("int8", "uint8", "float32", "int32", "float16", "uint16", "int16")


def arrays() -> dict[str, np.ndarray]:
    """Of every type twice, of odd lengths, with names that JSON has to escape; and an empty one."""
    generator = np.random.default_rng(0)
    found = {
        f'model.{i} "é".{kind}': generator.integers(0, 100, (3, 5 + i)).astype(kind)
        for i, kind in enumerate(2 * KINDS)
    }
    return {**found, "none": np.zeros((0, 3), np.float32)}


def test_the_bytes_are_those_of_the_library() -> None:
    """Files are what they were before they were written in parts."""
    assert b"".join(file_parts(array_entries(arrays()))) == save(arrays())


@pytest.mark.parametrize("start", [0, 64])
def test_mapped_arrays_are_what_was_written(tmp_path: Path, start: int) -> None:
    """Also behind something else, and when the file is gone; they can be written to."""
    path = tmp_path / "some.safetensors"
    path.write_bytes(b" " * start + b"".join(file_parts(array_entries(arrays()))))
    with path.open("rb") as file:
        found = arrays_of(mapped_content(file)[start:])
    path.unlink()

    assert found.keys() == arrays().keys()
    for name, array in arrays().items():
        assert found[name].dtype == array.dtype
        assert found[name].flags.aligned
        np.testing.assert_array_equal(found[name], array)
    found[next(iter(found))][:] = 0


def test_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    """With metadata, which hold no array."""
    path = tmp_path / "some.safetensors"
    path.write_bytes(save(arrays(), {"by": "someone"}))

    with path.open("rb") as file:
        found = arrays_of(mapped_content(file))

    expected = load(path.read_bytes())
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


@pytest.mark.parametrize("content", [b"nothing", b"\x02" + 7 * b"\0" + b"[]", 8 * b"\xff"])
def test_what_is_no_such_file(tmp_path: Path, content: bytes) -> None:
    """In a sentence."""
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)

    with path.open("rb") as file, pytest.raises(FileFormatError, match="not a safetensors file"):
        arrays_of(mapped_content(file))


def test_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, and nothing is left in the folder, even while they are used."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    found = unnamed_file(array_entries(arrays()))

    assert list(tmp_path.iterdir()) == []
    assert all(np.array_equal(found[name], array) for name, array in arrays().items())


def test_no_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the folder, and how to take another one."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))

    with pytest.raises(OutputError, match="missing: No such file.*TMPDIR"):
        unnamed_file(array_entries(arrays()))

"""Files in the format of safetensors that are never whole in memory: written and read in parts.

The library's own ``save`` and ``load`` hold a file as one piece of bytes. Bytes are those that it
writes: eight of the length of a header, the header as JSON, arrays in the order that it names.
"""

import json
import mmap
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final, final

import numpy as np

from mpq._support.names import for_people
from mpq._support.pages import release_arrays
from mpq.errors import FileFormatError, OutputError

_KINDS: Final = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16",
    "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL",
)  # fmt: skip
"""As the format spells types; numbers of one type lie side by side, in this order."""
_TYPES: Final = {
    "int64": "I64",
    "float32": "F32",
    "int32": "I32",
    "float16": "F16",
    "uint16": "U16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
}
"""Of arrays, those of ``mpq.quantization.stored.StoredWeight`` among them."""
ALIGNMENT: Final = 8
"""Bytes at a multiple of which numbers begin."""


@final
@dataclass(frozen=True, eq=False)
class Entry:
    """What a file has of one tensor.

    Args:
        kind: Its type, as the format spells it.
        shape: Its shape.
        num_bytes: Of its numbers.
        numbers: Gives them as bytes ``[num_bytes]``; asked when they are written.
    """

    kind: str
    shape: tuple[int, ...]
    num_bytes: int
    numbers: "Callable[[], np.ndarray[Any, np.dtype[np.uint8]]]"


def array_entry(array: "np.ndarray[Any, Any]") -> Entry:
    """Of an array that is read when it is written."""

    def numbers() -> "np.ndarray[Any, np.dtype[np.uint8]]":
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    return Entry(_TYPES[str(array.dtype)], array.shape, array.nbytes, numbers)


def array_entries(arrays: "Mapping[str, np.ndarray[Any, Any]]") -> dict[str, Entry]:
    """Of arrays by name."""
    return {name: array_entry(array) for name, array in arrays.items()}


def file_parts(
    entries: Mapping[str, Entry], metadata: Mapping[str, str] | None = None
) -> "Iterator[bytes | memoryview]":
    """The content of a file, piece by piece; pages of numbers that lie in files leave again.

    Args:
        entries: Of each tensor, by name.
        metadata: What the header says besides.
    """
    names = sorted(entries, key=lambda name: (_KINDS.index(entries[name].kind), name))
    told: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        entry = entries[name]
        start, end = end, end + entry.num_bytes
        shape = list(entry.shape)
        told[name] = {"dtype": entry.kind, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    yield len(header).to_bytes(8, "little") + header
    for name in names:
        numbers = entries[name].numbers()
        yield numbers.data
        release_arrays([numbers])


def mapped_content(file: IO[bytes]) -> memoryview:
    """What is in a file, without reading it; it may be written to, which the file does not see.

    Args:
        file: Open for reading, not empty; it may be closed, renamed or removed afterwards.
    """
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def arrays_of(content: memoryview) -> "dict[str, np.ndarray[Any, Any]]":
    """The arrays of a content that is mapped: what is read of them comes from the file.

    Raises:
        FileFormatError: If it is none of such a file.
    """
    try:
        begin = 8 + int.from_bytes(content[:8], "little")
        told = json.loads(bytes(content[8:begin]))
        return {
            name: _array(content[begin:], entry)
            for name, entry in told.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = for_people(str(error))
        raise FileFormatError(f"not a safetensors file of codes: {why}") from error


def _array(content: memoryview, entry: Mapping[str, Any]) -> "np.ndarray[Any, Any]":
    known = {told: kind for kind, told in _TYPES.items()}
    start, end = entry["data_offsets"]
    numbers = np.frombuffer(content[start:end], dtype=known[entry["dtype"]])
    return numbers.reshape(entry["shape"])


def unnamed_file(entries: Mapping[str, Entry]) -> "dict[str, np.ndarray[Any, Any]]":
    """The same numbers in a file without a name, which is gone with the last of the arrays.

    Raises:
        OutputError: If there is no room for it.
    """
    try:
        with tempfile.TemporaryFile() as file:
            file.writelines(file_parts(entries))
            file.flush()
            return arrays_of(mapped_content(file))
    except OSError as error:
        raise OutputError(
            f"cannot keep codes in the temporary folder {tempfile.gettempdir()}: {error.strerror}; "
            "name another one (the environment variable TMPDIR), or a folder to keep them (--cache)"
        ) from error

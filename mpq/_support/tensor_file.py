"""Files in the format of safetensors that are never whole in memory: written and read in parts.

The library's own ``save`` and ``load`` hold a file as one piece of bytes. Bytes are those that it
writes: eight of the length of a header, the header as JSON, arrays in the order that it names.
"""

import json
import mmap
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any, Final

import numpy as np

from mpq._support.names import for_people
from mpq._support.pages import release_arrays
from mpq.errors import FileFormatError, OutputError

_TYPES: Final = {
    "float32": "F32",
    "int32": "I32",
    "float16": "F16",
    "uint16": "U16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
}
"""Of arrays, as the format spells them; those of one type lie side by side, in this order."""
ALIGNMENT: Final = 8
"""Bytes at a multiple of which numbers begin."""


def file_parts(tensors: "Mapping[str, np.ndarray[Any, Any]]") -> "Iterator[bytes | memoryview]":
    """The content of a file, piece by piece; pages of arrays that lie in files leave again.

    Args:
        tensors: Name to array, of the types of ``mpq.quantization.stored.StoredWeight``.
    """
    kinds = list(_TYPES)
    names = sorted(tensors, key=lambda name: (kinds.index(str(tensors[name].dtype)), name))
    told: dict[str, Any] = {}
    end = 0
    for name in names:
        array = tensors[name]
        start, end = end, end + array.nbytes
        kind, shape = _TYPES[str(array.dtype)], list(array.shape)
        told[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    yield len(header).to_bytes(8, "little") + header
    for name in names:
        array = np.ascontiguousarray(tensors[name])
        # As bytes: an array without numbers cannot be cast.
        yield array.reshape(-1).view(np.uint8).data if array.size else b""
        release_arrays([array])


def mapped_tensors(file: IO[bytes], start: int = 0) -> "dict[str, np.ndarray[Any, Any]]":
    """The arrays of a file, which lie there: what is read of them comes from it.

    They may be written to, which the file does not see.

    Args:
        file: Open for reading; it may be closed, renamed or removed afterwards.
        start: Where in it the content begins, a multiple of eight.

    Raises:
        FileFormatError: If it is no such file.
    """
    content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))[start:]
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


def unnamed_file(tensors: "Mapping[str, np.ndarray[Any, Any]]") -> "dict[str, np.ndarray[Any, Any]]":
    """The same arrays in a file without a name, which is gone with the last of them.

    Raises:
        OutputError: If there is no room for it.
    """
    try:
        with tempfile.TemporaryFile() as file:
            file.writelines(file_parts(tensors))
            file.flush()
            return mapped_tensors(file)
    except OSError as error:
        raise OutputError(
            f"cannot keep codes in the temporary folder {tempfile.gettempdir()}: {error.strerror}; "
            "name another one (the environment variable TMPDIR), or a folder to keep them (--cache)"
        ) from error

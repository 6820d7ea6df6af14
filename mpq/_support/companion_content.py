"""The content of a safetensors file that another file states by its SHA-256."""

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from mpq._support.names import for_people
from mpq._support.pages import release_arrays
from mpq._support.tensor_file import arrays_of
from mpq.errors import FileFormatError

if TYPE_CHECKING:
    import numpy as np

AT_ONCE: Final = 1 << 24
"""Bytes of a file that are looked at together."""


def stated_tensors(
    content: bytes | memoryview, stated_sha256: str, what: str
) -> "dict[str, np.ndarray[Any, Any]]":
    """Its tensors by name.

    Args:
        content: Of the file; arrays of what is mapped from it stay there.
        stated_sha256: What the assignment says of it.
        what: The file holds, for people.

    Raises:
        FileFormatError: If it is another file than the one that was written, or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if _digest(content) != stated_sha256:
        raise FileFormatError(
            f"the {what} are not those that the assignment was written with (their SHA-256 is "
            "another): copy all files of one run"
        )
    if isinstance(content, memoryview):
        return arrays_of(content)
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise FileFormatError(f"not a safetensors file: {for_people(str(error))}") from error


def _digest(content: bytes | memoryview) -> str:
    """SHA-256, piece by piece, so that pages of a file leave memory again."""
    import numpy as np

    found = sha256()
    for start in range(0, len(content), AT_ONCE):
        piece = content[start : start + AT_ONCE]
        found.update(piece)
        if isinstance(piece, memoryview):
            release_arrays([np.frombuffer(piece, np.uint8)])
    return found.hexdigest()

"""The content of a safetensors file that another file states by its SHA-256."""

from hashlib import sha256
from typing import TYPE_CHECKING, Any

from mpq._support.names import for_people
from mpq.errors import FileFormatError

if TYPE_CHECKING:
    import numpy as np


def stated_tensors(
    content: bytes, stated_sha256: str, what: str
) -> "dict[str, np.ndarray[Any, Any]]":
    """Its tensors by name.

    Args:
        content: Of the file.
        stated_sha256: What the assignment says of it.
        what: The file holds, for people.

    Raises:
        FileFormatError: If it is another file than the one that was written, or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if sha256(content).hexdigest() != stated_sha256:
        raise FileFormatError(
            f"the {what} are not those that the assignment was written with (their SHA-256 is "
            "another): copy all files of one run"
        )
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise FileFormatError(f"not a safetensors file: {for_people(str(error))}") from error

"""The files beside assignment.json: numbers that no JSON holds."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mpq._support.files import Content
from mpq._support.json_object import quoted
from mpq._support.pages import is_streaming
from mpq._support.tensor_file import mapped_content
from mpq.errors import FileFormatError
from mpq.network.reparametrization import TRANSFORMS_FILE, Reparametrization
from mpq.network.tuned_parameters import TUNED_FILE, TunedParameters
from mpq.quantization.stored import WEIGHTS_FILE, StoredWeights

Stated = Mapping[str, Any]
"""What an assignment's JSON says of a file: its name, its SHA-256 and what it holds."""
Read = Callable[[str], bytes | memoryview]
"""Gives the content of the file that is named so; what is mapped from it stays there."""


def companions(
    weights: StoredWeights | None,
    reparametrization: Reparametrization | None,
    tuned: TunedParameters | None,
) -> tuple[dict[str, Content], list[str]]:
    """Files to write beside an assignment, and names that an earlier one may have left there."""
    found = {WEIGHTS_FILE: weights, TRANSFORMS_FILE: reparametrization, TUNED_FILE: tuned}
    # Codes are as many as the network has weights, and need not be in memory.
    files: dict[str, Content] = {
        name: part.content_parts if isinstance(part, StoredWeights) else part.content
        for name, part in found.items()
        if part is not None
    }
    return files, [name for name, part in found.items() if part is None]


def weights_of(stated: Stated | None, read: Read | None) -> StoredWeights | None:
    """The weights that an assignment's JSON states.

    Args:
        stated: As ``StoredWeights.to_dict``; ``None``: it has none.
        read: ``None``: there is only the JSON.

    Raises:
        FileFormatError: If the file is missing, or another one.
    """
    if stated is None:
        return None
    how = f"weights were rounded with regard to data ({quoted(stated['rounding'])})"
    content = _content(stated, read, how)
    return StoredWeights.from_content(content, stated["rounding"], stated["sha256"])


def reparametrization_of(stated: Stated | None, read: Read | None) -> Reparametrization | None:
    """The transformations that an assignment's JSON states.

    Args:
        stated: As ``Reparametrization.to_dict``; ``None``: it has none.
        read: ``None``: there is only the JSON.

    Raises:
        FileFormatError: If the file is missing, or another one.
    """
    if stated is None:
        return None
    how = f"network was transformed ({quoted(', '.join(stated['transforms']))})"
    return Reparametrization.from_content(bytes(_content(stated, read, how)), stated)


def tuned_of(stated: Stated | None, read: Read | None) -> TunedParameters | None:
    """The tuned vectors that an assignment's JSON states.

    Args:
        stated: As ``TunedParameters.to_dict``; ``None``: it has none.
        read: ``None``: there is only the JSON.

    Raises:
        FileFormatError: If the file is missing, or another one.
    """
    if stated is None:
        return None
    content = _content(stated, read, "biases and norms were tuned")
    return TunedParameters.from_content(bytes(content), stated)


def _content(stated: Stated, read: Read | None, how: str) -> bytes | memoryview:
    if read is None:
        raise FileFormatError(
            f"its {how}, and what that made is in {quoted(stated['file'])}: read all files, by "
            "Assignment.load"
        )
    return read(stated["file"])


def content_beside(path: Path, name: str) -> bytes | memoryview:
    """Content of the file that ``assignment.json`` names, in its own folder.

    While streaming, codes stay in their file.

    Raises:
        FileFormatError: If it cannot be read.
    """
    try:
        if is_streaming() and name == WEIGHTS_FILE:
            with (path.parent / name).open("rb") as file:
                return mapped_content(file)
        return (path.parent / name).read_bytes()
    except OSError as error:
        raise FileFormatError(
            f"a part of it is in {name} beside it, which cannot be read ({error.strerror}): copy "
            "all files of the run"
        ) from error


def check_companions(
    weights: StoredWeights | None,
    reparametrization: Reparametrization | None,
    tuned: TunedParameters | None,
    path: Path,
) -> None:
    """Refuses an assignment that says nothing of a file that lies beside it.

    Args:
        weights: That it names.
        reparametrization: That it names.
        tuned: That it names.
        path: Of assignment.json.

    Raises:
        FileFormatError: If it names none and there is one: it would be another network than the
            one that was searched.
    """
    for name in companions(weights, reparametrization, tuned)[1]:
        if path.with_name(name).exists():
            raise FileFormatError(
                f"{name} lies beside it, which it does not name: copy all files of one run, or "
                "remove that one"
            )

"""The files beside assignment.json: numbers that no JSON holds."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mpq._support.json_object import quoted
from mpq.errors import FileFormatError
from mpq.network.reparametrization import TRANSFORMS_FILE, Reparametrization
from mpq.problem.stored_weights import check_named
from mpq.quantization.stored import WEIGHTS_FILE, StoredWeights


def companions(
    weights: StoredWeights | None, reparametrization: Reparametrization | None
) -> tuple[dict[str, bytes], list[str]]:
    """Files to write beside an assignment, and names that an earlier one may have left there."""
    found = {WEIGHTS_FILE: weights, TRANSFORMS_FILE: reparametrization}
    files = {name: part.content for name, part in found.items() if part is not None}
    return files, [name for name, part in found.items() if part is None]


def reparametrization_of(
    stated: Mapping[str, Any] | None, read: Callable[[str], bytes] | None
) -> Reparametrization | None:
    """The transformations that an assignment's JSON states.

    Args:
        stated: As ``Reparametrization.to_dict``; ``None``: it has none.
        read: Gives the content of the file that it names; ``None``: there is only the JSON.

    Raises:
        FileFormatError: If the file is missing, or another one.
    """
    if stated is None:
        return None
    if read is None:
        raise FileFormatError(
            f"its network was transformed ({quoted(', '.join(stated['transforms']))}), by what is "
            f"in {quoted(stated['file'])}: read all files, by Assignment.load"
        )
    return Reparametrization.from_content(read(stated["file"]), stated)


def check_companions(
    weights: StoredWeights | None, reparametrization: Reparametrization | None, path: Path
) -> None:
    """Refuses an assignment that says nothing of a file that lies beside it.

    Args:
        weights: That it names.
        reparametrization: That it names.
        path: Of assignment.json.

    Raises:
        FileFormatError: If it names none and there is one: it would be another network than the
            one that was searched.
    """
    check_named(weights, path)
    if reparametrization is None and path.with_name(TRANSFORMS_FILE).exists():
        raise FileFormatError(
            f"{TRANSFORMS_FILE} lies beside it, which it does not name: copy all files of one run, "
            "or remove that of the transformations"
        )

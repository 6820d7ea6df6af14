"""Whether the parts of an assignment's file say the same."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mpq._support.json_object import quoted
from mpq._support.names import shortened
from mpq.errors import FileFormatError
from mpq.quantization.precision import Precision


def check_consistent(
    layers: Sequence[tuple[str, Precision]],
    ties: Iterable[Sequence[str]],
    folded: Mapping[str, str],
) -> None:
    """Refuses layers that are there twice, ties that do not hold, a BatchNorm folded twice.

    Args:
        layers: Name and precision of each.
        ties: Names of layers that share one.
        folded: Convolution to BatchNorm.

    Raises:
        FileFormatError: Says what is wrong.
    """
    _refuse_doubles("layer", (name for name, _ in layers))
    _refuse_doubles("folded BatchNorm", folded.values())
    precisions = dict(layers)
    for tie in ties:
        unknown = [name for name in tie if name not in precisions]
        if unknown:
            raise FileFormatError(
                f"not a valid assignment: a tie names {quoted(unknown[0])}, which is no layer"
            )
        if len({precisions[name] for name in tie}) > 1:
            told = ", ".join(f"{quoted(name)} at {precisions[name]}" for name in tie)
            raise FileFormatError(
                f"not a valid assignment: tied layers share a precision; got {shortened(told)}"
            )


def _refuse_doubles(what: str, names: Iterable[str]) -> None:
    name, count = next(iter(Counter(names).most_common(1)), ("", 0))
    if count > 1:
        raise FileFormatError(
            f"not a valid assignment: the {what} {quoted(name)} is there {count} times"
        )

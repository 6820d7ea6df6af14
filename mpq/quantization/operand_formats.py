"""What operands of operations between layers may become. Loads no torch."""

from collections.abc import Iterable
from typing import Final

from mpq.errors import PrecisionError
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.tensor_format import Granularity

INPUTS: Final = "inputs"
ALL: Final = "all"
ACTIVATIONS: Final = (INPUTS, ALL)
"""Which activations are rounded: inputs of layers, or operands of operations between them, too."""
_NOT_FOR_OPERANDS: Final = {
    Granularity.INPUT_CHANNEL: "a scale for every input channel of a weight",
    Granularity.TOKEN_BLOCK: "a scale for every block of input channels of a weight",
    Granularity.FIRST_APART: "a scale of its own for the first position of what a layer reads",
}


def operand_precision(precision: Precision) -> Precision:
    """What an operand becomes where layers have a precision: its activation, without a weight.

    Raises:
        PrecisionError: If the format is one of layers alone.
    """
    why = _NOT_FOR_OPERANDS.get(precision.activation.granularity)
    if why:
        raise PrecisionError(
            f"{precision}: it has {why}, and operands of operations between layers have one scale, "
            "or one for every token: leave it out, or round inputs alone (activations='inputs', "
            "--activations inputs)"
        )
    return Precision(ORIGINAL.weight, precision.activation)


def operand_precisions(precisions: Iterable[Precision]) -> tuple[Precision, ...]:
    """Candidates of operands, each once, in the order of those of layers.

    Raises:
        PrecisionError: If a format is one of layers alone, or none rounds anything.
    """
    found = tuple(dict.fromkeys(map(operand_precision, precisions)))
    if all(precision.activation.is_exact for precision in found):
        raise PrecisionError(
            "all activations are asked for, and no candidate rounds activations: take some such as "
            "w4a8, or leave it out (activations='inputs', --activations inputs)"
        )
    return found

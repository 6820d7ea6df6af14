"""Operands of operations between layers where a backend holds them, or does not."""

from dataclasses import replace

from mpq.backends._base import HELD, Backend
from mpq.errors import PrecisionError
from mpq.network.layer import OPERANDS
from mpq.problem.assignment import Assignment
from mpq.quantization.precision import ORIGINAL


def with_operands_as(backend: Backend, assignment: Assignment) -> Assignment:
    """What a backend is given: operands only where it holds them.

    Raises:
        PrecisionError: If one is quantized, and the backend holds none.
    """
    if backend.operands == HELD:
        return assignment
    rounded = [x for x in assignment.layers if x.kind in OPERANDS and x.precision != ORIGINAL]
    if rounded:
        raise PrecisionError(
            f"{backend.name} rounds inputs of layers alone, and the operand {rounded[0].name!r} is "
            f"at {rounded[0].precision}: it is simulated (mpq.quantize, mpq.evaluate); search with "
            "--activations inputs for this tool"
        )
    layers = tuple(layer for layer in assignment.layers if layer.kind not in OPERANDS)
    names = {layer.name for layer in layers}
    kept = (tuple(name for name in tie if name in names) for tie in assignment.ties)
    return replace(assignment, layers=layers, ties=tuple(tie for tie in kept if len(tie) > 1))

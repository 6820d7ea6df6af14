"""Which activations a task rounds, checked before anything is computed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from mpq._support.workers import Workers
from mpq.errors import InputError, UnknownNameError
from mpq.quantization.operand_formats import ACTIVATIONS, operand_precisions
from mpq.quantization.precision import Precision

if TYPE_CHECKING:
    from mpq.backends.target import Target

_INSTEAD: Final = "round inputs of layers alone (activations='inputs', --activations inputs)"


def check_choice(activations: str) -> None:
    """Refuses what is none of ``ACTIVATIONS``.

    Raises:
        UnknownNameError: Names those.
    """
    if activations not in ACTIVATIONS:
        raise UnknownNameError("choice of activations", activations, ACTIVATIONS)


def check_operands(
    workers: Workers | None,
    is_streamed: bool,
    target: "Target | None",
    precisions: Sequence[Precision],
) -> None:
    """Refuses what operands of operations between layers do not go with.

    Raises:
        InputError: Says what.
    """
    if workers is not None and workers.kind == "ray":
        raise InputError(
            "operands between layers are searched in this process or by torchrun: leave out "
            f"--workers ray, or {_INSTEAD}"
        )
    if is_streamed:
        raise InputError(
            "of a network that is streamed no operands between layers are looked for: leave out "
            f"memory (--memory), or {_INSTEAD}"
        )
    if target is not None:
        _check_target(target)
    operand_precisions(precisions)


def _check_target(target: "Target") -> None:
    from mpq.backends._base import REFUSED  # loads torch

    if target.operands == REFUSED:
        raise InputError(
            "all activations are searched (activations='all', --activations all), and "
            f"{target.name} rounds inputs of layers alone: search without a target, or {_INSTEAD}"
        )

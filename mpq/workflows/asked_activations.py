"""Which activations a task rounds, checked before anything is computed."""

from typing import TYPE_CHECKING, Final

from mpq.errors import InputError, UnknownNameError
from mpq.quantization.operand_formats import ACTIVATIONS, ALL, operand_precisions

if TYPE_CHECKING:
    from mpq.workflows.task import Task

_INSTEAD: Final = "round inputs of layers alone (activations='inputs', --activations inputs)"


def check_activations(task: "Task") -> None:
    """Refuses what operands of operations between layers do not go with.

    Raises:
        InputError: Says what.
    """
    if task.activations not in ACTIVATIONS:
        raise UnknownNameError("choice of activations", task.activations, ACTIVATIONS)
    if task.activations != ALL:
        return
    workers = task.built_workers
    if workers is not None and workers.kind == "ray":
        raise InputError(
            "operands between layers are searched in this process or by torchrun: leave out "
            f"--workers ray, or {_INSTEAD}"
        )
    if task.streamed:
        raise InputError(
            "of a network that is streamed no operands between layers are looked for: leave out "
            f"memory (--memory), or {_INSTEAD}"
        )
    _check_target(task)
    operand_precisions(task.precisions)


def _check_target(task: "Task") -> None:
    from mpq.backends._base import REFUSED  # loads torch

    target = task.target
    if target is not None and target.operands == REFUSED:
        raise InputError(
            f"all activations are searched (activations='all', --activations all), and "
            f"{target.name} rounds inputs of layers alone: search without a target, or {_INSTEAD}"
        )

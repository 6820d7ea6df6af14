"""The step of every example, read from what a network is called with."""

import inspect
from collections.abc import Mapping, Sequence
from math import isfinite
from numbers import Real
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mpq.errors import DataError
from mpq.network.examples import Batch, Calibration


@final
class RunningSteps:
    """The steps of the batch that runs: a hook of the network tells them, and layers ask.

    Args:
        argument: Name of an argument of ``forward``, or its place.
    """

    def __init__(self, argument: str | int) -> None:
        self.argument = argument
        self.values: tuple[float, ...] = ()
        """``[N]``, or one for all examples; empty before the first call."""

    def follow(self, module: nn.Module) -> RemovableHandle:
        """From now on the steps are those of the module's calls; takes a hook of it."""
        return module.register_forward_pre_hook(self._read, with_kwargs=True)

    def _read(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.values = step_values(self.argument, parameters_of(module), args, kwargs)


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Names of what can be given to a network by place, in order."""
    try:
        found = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a forward that is not written in Python
        return ()
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(x.name for x in found if x.kind in by_place)


def steps_of(argument: str | int, module: nn.Module, data: Calibration) -> tuple[float, ...]:
    """``[N]`` step of every example of the data, which is read once.

    Args:
        argument: As in ``RunningSteps``.
        module: That is called with the batches.
        data: Examples.

    Raises:
        DataError: If a batch has none, or one that is not finite, or not one for each example.
    """
    names, found = parameters_of(module), list[float]()
    for batch in data.uncut:
        found += _of_examples(argument, names, batch)
    return tuple(found)


def _of_examples(argument: str | int, names: Sequence[str], batch: Batch) -> tuple[float, ...]:
    values = step_values(argument, names, batch.args, batch.kwargs)
    if len(values) == 1:
        return values * batch.size
    if len(values) != batch.size:
        raise DataError(
            f"{_told(argument)} has {len(values)} steps for {batch.size} examples: give one for "
            "each, or one number for all"
        )
    return values


def step_values(
    argument: str | int, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[float, ...]:
    """Steps in the arguments of a call: ``[N]``, or a single one for all examples.

    Args:
        argument: As in ``RunningSteps``.
        names: What can be given by place, in order.
        args: By place.
        kwargs: By name.

    Raises:
        DataError: If there is no such argument, or it holds no steps.
    """
    place = argument if isinstance(argument, int) else _place(argument, names)
    name = argument if isinstance(argument, str) else _name(argument, names)
    if place is not None and place < len(args):
        return _numbers(argument, args[place])
    if name is not None and kwargs.get(name) is not None:
        return _numbers(argument, kwargs[name])
    given = [*(names[i] if i < len(names) else f"place {i}" for i in range(len(args))), *kwargs]
    raise DataError(
        f"a batch does not have {_told(argument)}; it has {', '.join(map(str, given))}: every "
        "batch says its steps in the argument that steps (--step) names"
    )


def _place(name: str, names: Sequence[str]) -> int | None:
    return names.index(name) if name in names else None


def _name(place: int, names: Sequence[str]) -> str | None:
    return names[place] if place < len(names) else None


def _told(argument: str | int) -> str:
    return f"the argument {argument!r}" if isinstance(argument, str) else f"argument {argument}"


def _numbers(argument: str | int, value: Any) -> tuple[float, ...]:
    found: list[float] | None = None
    if isinstance(value, Tensor) and not value.is_complex() and value.dtype != torch.bool:
        # [N, 1] as embeddings of steps are often given them.
        is_flat = value.ndim < 2 or tuple(value.shape[1:]) == (1,)
        found = value.detach().flatten().double().tolist() if is_flat else None
    elif isinstance(value, Real) and not isinstance(value, bool):
        found = [float(value)]
    if not found:
        shape = (
            f" of shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else ""
        )
        raise DataError(
            f"{_told(argument)} holds a {type(value).__name__}{shape}; steps are numbers, a tensor "
            "[N] with one for every example, or one number for all"
        )
    if not all(map(isfinite, found)):
        raise DataError(f"{_told(argument)} has a step that is NaN or infinite")
    return tuple(found)

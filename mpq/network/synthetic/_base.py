"""The interface of every source of examples."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import prod
from typing import ClassVar

import torch
from torch import nn

from mpq.errors import InputError
from mpq.network.examples import Calibration


class DataSource(ABC):
    """Makes calibration examples for a network out of nothing but the network.

    The model is left as found: weights, buffers, gradients, mode, hooks; so is the global random
    state. Seeds are fields: the same one gives the same examples.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def calibration(self, model: nn.Module) -> Calibration:
        """Examples, on the CPU, without targets; made once, here.

        Args:
            model: The network that the examples are for, in evaluation mode.

        Raises:
            ModelError: If no such examples can be made for this model.
        """


def check_positive(source: str, **options: float) -> None:
    """Refuses options that are not above 0.

    Raises:
        InputError: If one is not.
    """
    for option, value in options.items():
        # A nan compares as false, so that it is refused as well.
        if not 0 < value < float("inf"):
            raise InputError(f"{source} needs {option} above 0; got {value}")


def parse_shape(source: str, text: str) -> tuple[int, ...]:
    """Of one example, from ``3x32x32``.

    Raises:
        InputError: If it is not written so.
    """
    sizes = text.split("x")
    if not all(size.isdecimal() for size in sizes) or not prod(map(int, sizes)):
        raise InputError(f"{source}: write a shape such as 3x32x32, of one example; got {text!r}")
    return tuple(map(int, sizes))


def batch_sizes(num_examples: int, batch_size: int) -> Iterator[int]:
    """Full batches, then the rest."""
    for start in range(0, num_examples, batch_size):
        yield min(batch_size, num_examples - start)


def dtype_of(model: nn.Module) -> torch.dtype:
    """Of the first floating-point parameter, which inputs are given in."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

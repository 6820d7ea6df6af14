"""The interface of every source of examples."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import prod
from typing import ClassVar

import torch
from torch import nn

from mpq._support.bounds import Bounded, check_memory
from mpq._support.json_object import quoted
from mpq.errors import InputError
from mpq.network.examples import Calibration


class DataSource(Bounded, ABC):
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
    # By ASCII digits, and few: Python reads no number of thousands of them.
    if not all(re.fullmatch("[0-9]{1,12}", size) for size in sizes) or not prod(map(int, sizes)):
        raise InputError(
            f"{source}: write a shape such as 3x32x32, of one example; got {quoted(text)}"
        )
    return tuple(map(int, sizes))


def check_images(source: str, num_examples: int, shape: str) -> None:
    """Refuses examples that this machine's memory cannot hold, before they are made.

    Args:
        source: Its name, for the message.
        num_examples: All of them, as they are kept.
        shape: Of one, as for ``parse_shape``; its numbers are made in float32.

    Raises:
        InputError: If they are too many, or the shape is none.
    """
    elements = prod(parse_shape(source, shape))
    check_memory(f"{source}: {num_examples} examples of {shape}", 4 * num_examples * elements)


def check_texts(source: str, num_examples: int, length: int) -> None:
    """As ``check_images``, of texts of so many tokens, which are int64."""
    check_memory(f"{source}: {num_examples} texts of {length} tokens", 8 * num_examples * length)


def batch_sizes(num_examples: int, batch_size: int) -> Iterator[int]:
    """Full batches, then the rest."""
    for start in range(0, num_examples, batch_size):
        yield min(batch_size, num_examples - start)


def dtype_of(model: nn.Module) -> torch.dtype:
    """Of the first floating-point parameter, which inputs are given in."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

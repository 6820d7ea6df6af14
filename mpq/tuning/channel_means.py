"""Mean and variance of every channel of what some modules give or read."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpq.network.arguments import input_of
from mpq.network.examples import Calibration
from mpq.network.modules import device_of, hooks
from mpq.network.own_forward import is_computed_again
from mpq.network.tracing import kind_of


@final
@dataclass
class Channels:
    """Of one module: of a layer the output's channels, of a BatchNorm the input's.

    Args:
        total: ``[C]`` float64, sum over examples and positions.
        squares: ``[C]`` float64, of their squares.
        count: How many examples and positions.
        calls: How often the module was called.
        stage: Rises with the order of first calls; modules that follow each other and read one
            tensor have the same.
    """

    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    count: int = 0
    calls: int = 0
    stage: int = 0

    def add(self, values: Tensor) -> None:
        """A call that gave, or read, ``[P, C]``."""
        wide = values.double()
        self.total = self.total + wide.sum(dim=0)
        self.squares = self.squares + wide.square().sum(dim=0)
        self.count += len(values)
        self.calls += 1

    @property
    def mean(self) -> Tensor:
        """``[C]``."""
        assert isinstance(self.total, Tensor)
        return self.total / self.count

    @property
    def variance(self) -> Tensor:
        """``[C]``, of all examples and positions, as BatchNorm's running one."""
        assert isinstance(self.squares, Tensor)
        return (self.squares / self.count - self.mean.square()).clamp_min(0)


class _AllRead(Exception):  # noqa: N818
    """Ends a pass in which all has been read; no error."""


def channels_of(
    module: nn.Module, names: Collection[str], data: Calibration, *, stops: bool = False
) -> Mapping[str, Channels]:
    """Reads some modules in one pass over the examples.

    Args:
        module: The network; left as found.
        names: Of layers and BatchNorms in it.
        data: The examples.
        stops: Whether a batch is run until each of them has been called once, and no further.

    Returns:
        Those that were called, in the order of their first calls.
    """
    reader = _Reader(stops)
    device, parts = device_of(module), {name: module.get_submodule(name) for name in names}
    for batch in data:
        reader.waiting = set(names)
        placed = batch.to(device)
        handles = [
            part.register_forward_hook(partial(reader.read, name), with_kwargs=True)
            for name, part in parts.items()
        ]
        with hooks(handles), torch.no_grad(), suppress(_AllRead):
            module(*placed.args, **placed.kwargs)
    return reader.found


class _Reader:
    def __init__(self, stops: bool) -> None:
        self.found: dict[str, Channels] = {}
        self.waiting = set[str]()
        self._stops = stops
        self._last: Tensor | None = None

    def read(self, name: str, part: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        """A forward hook."""
        x = input_of(args, kwargs)
        if x is None or is_computed_again():
            return
        if name not in self.found:
            stage = max((known.stage for known in self.found.values()), default=0)
            # The object itself, which is kept: another one may get the memory of one that is gone.
            self.found[name] = Channels(stage=stage + (x is not self._last))
        self._last = x
        values = x if isinstance(part, _BatchNorm) else output
        self.found[name].add(_by_channel(part, values.detach()))
        self.waiting.discard(name)
        if self._stops and not self.waiting:
            raise _AllRead


def _by_channel(part: nn.Module, values: Tensor) -> Tensor:
    """``[P, C]``"""
    if isinstance(part, _BatchNorm):
        axis = 1
    elif kind_of(part) == "linear":
        axis = -1
    else:  # a convolution, of a batch or of a single example
        kernel = part.kernel_size
        assert isinstance(kernel, tuple)
        axis = -1 - len(kernel)
    return values.movedim(axis, -1).flatten(0, -2)

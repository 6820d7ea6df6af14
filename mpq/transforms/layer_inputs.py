"""What layers read: magnitudes of every channel, and a sample to try roundings on."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final, Self, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpq._support.arrays import Array
from mpq.network.examples import Batch
from mpq.transforms.parameter_views import LAYERS, ParameterViews, run_under

NUM_EXAMPLES: Final = 64
"""Examples whose inputs are looked at."""
NUM_ROWS: Final = 512
"""Rows (tokens) of a linear layer's inputs that are kept."""
NUM_MAPS: Final = 8
"""Examples of a convolution's inputs that are kept."""


@final
@dataclass(eq=False)
class LayerInput:
    """What a layer reads in all of its calls.

    Args:
        largest: ``[C]`` the largest magnitude of every channel.
        sums: ``[C]`` sums of magnitudes.
        low: ``[C]`` the smallest number of every channel.
        high: ``[C]`` the largest.
        count: Of the numbers in each sum.
        samples: Parts of the inputs, ``[R, C]`` or ``[N, C, ...]``.
        convolution: Arguments of ``aten.convolution`` after the bias; ``None`` of a linear layer.
    """

    largest: Tensor
    sums: Tensor
    low: Tensor
    high: Tensor
    count: int
    samples: list[Tensor]
    convolution: tuple[Any, ...] | None

    @property
    def mean(self) -> Array:
        """``[C]`` mean magnitudes."""
        found: Array = (self.sums / max(self.count, 1)).cpu().numpy()
        return found

    @property
    def maximum(self) -> Array:
        """``[C]`` largest magnitudes."""
        found: Array = self.largest.cpu().numpy()
        return found

    def add(self, x: Tensor, generator: torch.Generator) -> None:
        """Takes a call's input in, channels second."""
        numbers = x.detach().movedim(1, 0).flatten(1).double()  # [C, ...]
        magnitudes = numbers.abs()
        self.low = torch.minimum(self.low, numbers.amin(dim=1))
        self.high = torch.maximum(self.high, numbers.amax(dim=1))
        self.largest = torch.maximum(self.largest, magnitudes.amax(dim=1))
        self.sums = self.sums + magnitudes.sum(dim=1)
        self.count += magnitudes.shape[1]
        room = NUM_MAPS if self.convolution is not None else NUM_ROWS
        room -= sum(len(sample) for sample in self.samples)
        # At most a quarter of what is kept, so that several batches have a part in it.
        take = min(len(x), max(1, -(-room // 4)), room)
        if take > 0:
            places = torch.randperm(len(x), generator=generator)[:take]
            self.samples.append(x[places.to(x.device)].detach().float())

    @classmethod
    def empty(cls, x: Tensor, convolution: tuple[Any, ...] | None) -> Self:
        """Before the first call."""
        zeros = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        ends = torch.full_like(zeros, torch.inf)
        return cls(zeros, zeros, ends, -ends, 0, [], convolution)


def magnitudes(weight: Tensor, axis: int) -> Array:
    """``[n]`` the largest magnitude of every entry of an axis."""
    entries = weight.double().movedim(axis, 0).reshape(weight.shape[axis], -1)
    found: Array = entries.abs().amax(dim=1).cpu().numpy()
    return found


def layer_inputs(
    module: nn.Module, batches: Iterable[Batch], weights: Collection[str]
) -> dict[str, LayerInput]:
    """What the layers with some weights read; an input without numbers is left out.

    Args:
        module: In evaluation mode; left as found.
        batches: On the module's device.
        weights: Names of parameters.
    """
    recorder = _Recorder(module, weights)
    for batch in batches:
        run_under(recorder, module, batch)
    return recorder.found


@final
class _Recorder(TorchDispatchMode):
    def __init__(self, module: nn.Module, weights: Collection[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._module = module
        self._weights = weights
        self._views = ParameterViews(module)
        # Of its own, on the CPU: the global random state stays, and all devices draw alike.
        self._generator = torch.Generator().manual_seed(0)
        self.found: dict[str, LayerInput] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = func._schema.name.partition("::")[2]
        if self._views.follow(operation, args, result):
            return result
        if operation in LAYERS:
            x, weight = (args[place] for place in LAYERS[operation])
            is_kernel = operation == "convolution"
            x = x if is_kernel else x.reshape(-1, x.shape[-1])
            self._take(weight, x, tuple(args[3:]) if is_kernel else None)
        return result

    def _take(self, weight: Tensor, x: Tensor, convolution: tuple[Any, ...] | None) -> None:
        view = self._views.of(weight)
        if view is None or view.name not in self._weights or not x.numel():
            return
        known = self.found.setdefault(view.name, LayerInput.empty(x, convolution))
        if known.convolution == convolution:
            known.add(x, self._generator)

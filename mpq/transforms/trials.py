"""A site tried with some factors: its readers rounded, and how far outputs move by it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpq._support.arrays import Array
from mpq.network.examples import Batch
from mpq.network.metric import OutputMetric
from mpq.quantization.input_sample import InputSample
from mpq.quantization.numerics import Numerics
from mpq.quantization.observer import needs_range
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.ranges import RANGE_METHODS, Ranges
from mpq.quantization.rounding import quantize_activation, quantize_rows, weight_grid
from mpq.quantization.tensor_format import TensorFormat
from mpq.transforms.channels import Reader
from mpq.transforms.layer_inputs import LayerInput
from mpq.transforms.parameter_views import LAYERS, ParameterViews, run_under
from mpq.transforms.sites import by_label

NUM_OUTPUTS: Final = 256
"""Output channels of a linear layer that its own error is of, evenly spaced."""
_NO_ERROR: Final = 1e-12
"""Share of the outputs' power that is rounding: it has no logarithm at 0."""


@final
@dataclass(frozen=True, eq=False)
class Rounded:
    """A layer as it computes with factors, rounded.

    Args:
        weight: ``[O, C]``, or a kernel.
        divisors: ``[C]`` that its inputs are divided by.
        inputs: Format of its inputs.
        calibrated: Their range, where the format is static.
        numerics: How tokens are rounded.
    """

    weight: Tensor
    divisors: Tensor
    inputs: TensorFormat
    calibrated: ActivationRange | None
    numerics: Numerics

    def read(self, x: Tensor) -> Tensor:
        """Inputs, channels second, divided and rounded."""
        divided = x / self.divisors.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))
        axes = 1 if self.weight.ndim == 2 else x.ndim - 1
        return quantize_activation(divided, self.inputs, self.calibrated, axes, self.numerics)


@final
@dataclass(frozen=True, eq=False)
class Trial:
    """One layer, a sample of what it reads, and how both are rounded.

    Args:
        reader: The layer's place at the site.
        weight: With all changes so far.
        read: What it reads.
        ranges: How ranges are chosen.
        numerics: How scales are stored and tokens rounded.
    """

    reader: Reader
    weight: Tensor
    read: LayerInput
    ranges: Ranges
    numerics: Numerics

    def rounded(self, factors: Array, precision: Precision, step: int = 1) -> Rounded:
        """The layer with factors, at a precision.

        Args:
            factors: ``[n]`` of the site's channels.
            precision: Of weight and inputs.
            step: Between the rows of a linear layer's weight that are looked at.
        """
        along = self.reader.weight
        divisors = torch.from_numpy(by_label(factors, self.reader.inputs)).to(self._x)
        times = torch.from_numpy(by_label(factors, along.labels)).to(self._x)
        scaled = self.weight.float() * times.view(-1, *[1] * (self.weight.ndim - along.axis - 1))
        rows = scaled.movedim(self.reader.out_axis, 0)
        rows = self._rounded_weight(rows if self.is_kernel else rows[::step], precision.weight)
        weight = rows.movedim(0, self.reader.out_axis) if self.is_kernel else rows
        x = self._x / divisors.view(1, -1, *[1] * (self._x.ndim - 2))
        calibrated = self._range(x, precision.activation)
        return Rounded(weight, divisors, precision.activation, calibrated, self.numerics)

    def error(self, factors: Array, precision: Precision) -> float:
        """Logarithm of the outputs' relative squared error, of some of a linear layer's outputs.

        Args:
            factors: ``[n]`` of the site's channels.
            precision: Of weight and inputs.
        """
        scale = float(self._original.square().sum()) or 1.0
        rounded = self.rounded(factors, precision, self._step)
        found = self._outputs(rounded.read(self._x), rounded.weight)
        return log(float((found - self._original).square().sum()) / scale + _NO_ERROR)

    @property
    def is_kernel(self) -> bool:
        """Whether the layer is a convolution."""
        return self.read.convolution is not None

    @cached_property
    def _x(self) -> Tensor:
        return torch.cat(self.read.samples)

    @property
    def _step(self) -> int:
        return -(-self.weight.shape[self.reader.out_axis] // NUM_OUTPUTS)

    @cached_property
    def _original(self) -> Tensor:
        weight = self.weight.float()
        rows = weight.movedim(self.reader.out_axis, 0)[:: self._step]
        return self._outputs(self._x, weight if self.is_kernel else rows)

    def _outputs(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.read.convolution is None:
            return x @ weight.T
        found: Tensor = torch.convolution(x, weight, None, *self.read.convolution)
        return found

    def _rounded_weight(self, last: Tensor, tensor_format: TensorFormat) -> Tensor:
        if tensor_format.is_exact:
            return last
        rows, grid = last.flatten(1), None
        if tensor_format.number.needs_scale:
            method = RANGE_METHODS.build(self.ranges.weight)
            grid = weight_grid(rows, tensor_format, method, self.numerics)
        return quantize_rows(rows, tensor_format, grid).view(last.shape)

    def _range(self, x: Tensor, tensor_format: TensorFormat) -> ActivationRange | None:
        if not needs_range(tensor_format):
            return None
        # Of a sample, whose numbers have lost their channels and positions.
        method = RANGE_METHODS.build(self.ranges.activation)
        return InputSample(x.flatten()).range(method, tensor_format)


@final
class NetworkLoss:
    """How far the network's outputs move where layers are rounded.

    A layer is rounded from when it is ``set``; all others compute as they came.

    Args:
        module: In evaluation mode; left as found.
        batches: Examples, on the module's device.
        metric: How outputs are compared.
    """

    def __init__(self, module: nn.Module, batches: Sequence[Batch], metric: OutputMetric) -> None:
        self._module = module
        self._batches = batches
        self._metric = metric
        self._layers: dict[str, Rounded] = {}
        self._original = [self._outputs(batch, {}) for batch in batches]

    def set(self, layers: Mapping[str, Rounded]) -> None:
        """Rounds some layers from now on; their rounded weights are held."""
        self._layers |= layers

    def of(self, layers: Mapping[str, Rounded]) -> Array:
        """``[N]`` of every example the mean square root of its divergences, with layers as given.

        A divergence is quadratic in what moves the outputs. Its mean is that of a few undecided
        examples, which differ from one sample to the next; the mean of roots is one of all.
        """
        tried = {**self._layers, **layers}
        found = []
        for batch, original in zip(self._batches, self._original, strict=True):
            apart = self._metric.divergence(original, self._outputs(batch, tried))
            found.append(apart.double().clamp_min(0).sqrt().mean(dim=1).cpu().numpy())
        return np.concatenate(found)

    def _outputs(self, batch: Batch, layers: Mapping[str, Rounded]) -> Tensor:
        output = run_under(_Rounding(self._module, layers), self._module, batch)
        return batch.as_examples(self._metric.positions(output))


@final
class _Rounding(TorchDispatchMode):
    """Layers compute with rounded weights and inputs, whatever module they are called by."""

    def __init__(self, module: nn.Module, layers: Mapping[str, Rounded]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._views = ParameterViews(module)
        self._layers = layers

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func._schema.name.partition("::")[2]
        args = list(args)
        if operation in LAYERS:
            at_x, at_weight = LAYERS[operation]
            view = self._views.of(args[at_weight])
            layer = None if view is None else self._layers.get(view.name)
            if layer is not None:
                x, before = args[at_x], args[at_weight]
                weight = layer.weight if operation == "convolution" else layer.weight.T
                args[at_weight] = weight.to(before.dtype).expand(before.shape)
                rows = x if operation == "convolution" else x.reshape(-1, x.shape[-1])
                args[at_x] = layer.read(rows).view(x.shape)
        result = func(*args, **(kwargs or {}))
        self._views.follow(operation, args, result)
        return result

"""How far a layer's outputs move when its weight and its inputs are rounded, with factors between."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, final

import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.quantization.numerics import Numerics
from mpq.quantization.observer import needs_range
from mpq.quantization.precision import Precision, TensorFormat
from mpq.quantization.ranges import RANGE_METHODS, ActivationRange, Ranges
from mpq.quantization.rounding import quantize_activation, quantize_rows, weight_grid
from mpq.transforms.channels import Reader
from mpq.transforms.layer_inputs import LayerInput
from mpq.transforms.sites import by_label

NUM_OUTPUTS: Final = 256
"""Output channels of a linear layer that are looked at, evenly spaced."""


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

    @cached_property
    def _x(self) -> Tensor:
        return torch.cat(self.read.samples)

    @cached_property
    def _w(self) -> Tensor:
        """``[O, ...]`` of a linear layer some of its rows; a kernel as it is."""
        if self.read.convolution is not None:
            return self.weight.float()
        rows = self.weight.float().movedim(self.reader.out_axis, 0)
        step = -(-len(rows) // NUM_OUTPUTS)
        return rows[::step]

    @cached_property
    def _original(self) -> Tensor:
        return self._outputs(self._x, self._w)

    def error(self, factors: Array, precisions: Sequence[Precision]) -> float:
        """Sum over precisions of the logarithm of the outputs' relative squared error.

        Args:
            factors: ``[n]`` of the site's channels.
            precisions: That the weight and the inputs are rounded to.
        """
        to_inputs = torch.from_numpy(by_label(factors, self.reader.inputs)).to(self._x)
        along = self.reader.weight
        to_weight = torch.from_numpy(by_label(factors, along.labels)).to(self._x)
        axis = along.axis if self.read.convolution is not None else 1
        x = self._x / to_inputs.view(1, -1, *[1] * (self._x.ndim - 2))
        w = self._w * to_weight.view(-1, *[1] * (self._w.ndim - axis - 1))
        scale = float(self._original.square().sum()) or 1.0
        total = 0.0
        for precision in precisions:
            rounded = self._outputs(
                self._rounded_inputs(x, precision.activation),
                self._rounded_weight(w, precision.weight),
            )
            # A millionth of the outputs' power is no error any more, and has no logarithm at 0.
            apart = float((rounded - self._original).square().sum()) / scale
            total += float(torch.tensor(apart + 1e-12).log())
        return total

    def _outputs(self, x: Tensor, w: Tensor) -> Tensor:
        if self.read.convolution is None:
            return x @ w.T
        return torch.ops.aten.convolution.default(x, w, None, *self.read.convolution)

    def _rounded_weight(self, w: Tensor, tensor_format: TensorFormat) -> Tensor:
        if tensor_format.is_exact:
            return w
        out = self.reader.out_axis if self.read.convolution is not None else 0
        last = w.movedim(out, 0)
        rows, grid = last.flatten(1), None
        if tensor_format.number.needs_scale:
            method = RANGE_METHODS.build(self.ranges.weight)
            grid = weight_grid(rows, tensor_format, method, self.numerics)
        return quantize_rows(rows, tensor_format, grid).view(last.shape).movedim(0, out)

    def _rounded_inputs(self, x: Tensor, tensor_format: TensorFormat) -> Tensor:
        calibrated = None
        if needs_range(tensor_format):
            method = RANGE_METHODS.build(self.ranges.activation)
            row = x.reshape(1, -1)
            low, high = method.ends(row, tensor_format.number, tensor_format.symmetric)
            calibrated = ActivationRange(float(low), float(high)).with_zero
        axes = 1 if self.read.convolution is None else x.ndim - 1
        return quantize_activation(x, tensor_format, calibrated, axes, self.numerics)

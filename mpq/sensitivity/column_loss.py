"""Column loss: what steps of a format lose in a layer's output, in closed form."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.errors import ModelError
from mpq.network.layer import Layer
from mpq.network.mapped import release
from mpq.quantization.rounding import row_tiles
from mpq.quantization.tensor_format import TensorFormat
from mpq.rounding.column_losses import column_losses
from mpq.rounding.diagonal_blocks import diagonal
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.moment_mixing import SecondMoments
from mpq.sensitivity.passes.second_moments import second_moments
from mpq.sensitivity.passes.weight_changes import WeightChanges


@final
@dataclass(frozen=True)
class ColumnLoss(SensitivityEstimator):
    r"""Squared error of a layer's output that GPTQ is expected to leave, by the steps alone.

    .. math:: s_{\ell b} = \sum_o \sum_k \frac{\Delta_{\ell b o}^2}{12 \, d_{\ell k}^2}

    with the step of a format's scale for each output channel and ``d`` the diagonal of the upper
    Cholesky factor of the inverse of the damped second moment of what the layer reads, its inputs
    in GPTQ's order (``column_losses``): rounding an input makes an error that is even within a
    step, and inputs that follow make good what they can. The loss by which BAQ (Zhang et al. 2025,
    arXiv:2506.05664) allocates bits, whose optimum gives every column the same one,
    :math:`-\tfrac12 \log_2 (12 L d_k^2)` bits for weights in a unit range. Formats without even
    steps, or with a branch, have the squared error of rounding to nearest in place of a twelfth of
    the squared step, so have 0 bits all squared numbers; channels that a format holds as they are
    cost nothing. An embedding's rows are looked up alone: each of its numbers counts as often as a
    row is read.

    In squared output of each layer per example: how much a layer's error matters to the network is
    not known. ``by_layer`` has every layer in units of its own, in which as many bits lose as much
    in each:

    .. math:: \frac{s_{\ell b}}{\bar r_\ell^2 \prod_k d_{\ell k}^{-2 / K}}

    with the mean squared range of its channels and the geometric mean over inputs, so that columns
    of one layer share a loss, as in the paper, and layers the mean of their bits. Inputs cost
    nothing. Takes one forward pass, and a second moment ``[K, K]`` for every layer.

    Args:
        by_layer: Whether each layer's losses are in units of its own.
    """

    name: ClassVar[str] = "column-loss"
    summary: ClassVar[str] = "steps x what follows cannot make good (BAQ), forward only"
    prices_channels: ClassVar[bool] = True

    by_layer: bool = False

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``.

        Raises:
            ModelError: If squares of what a layer reads are beyond float32.
        """
        moments = second_moments(on, guidance=0.0)
        layers = {layer.name: layer for layer in on.network.layers}
        found = {name: _losses(on, layers[name], moments, self.by_layer) for name in on.names}
        channels = {name: on.weights.by_candidate(losses) for name, losses in found.items()}
        values = torch.stack([torch.from_numpy(x).sum(dim=0) for x in channels.values()])
        unit = "relative" if self.by_layer else "squared_output"
        table = on.table(values.numpy(), self.name, unit)
        return Sensitivity(table, channels=channels if on.divides else {})


def _losses(on: Estimation, layer: Layer, moments: SecondMoments, by_layer: bool) -> Array:
    """``[U, F]`` of the parts of one layer's weight."""
    changes = WeightChanges.of_original(on, layer.name)
    # To nearest: codes that fit data are further away, and have made that good.
    changes = replace(changes, quantizer=replace(on.quantizer, stored={}))
    counted = _counted(layer, moments).to(changes.rows.device)  # [G, K]
    if by_layer:
        counted = counted / _unit(changes.rows, counted)
    of_group = max(1, len(changes.rows) // len(counted))
    steps = [_steps(changes, tensor_format) for tensor_format in changes.formats]
    found = changes.no_squares()
    for some in row_tiles(changes.rows):
        groups = torch.arange(some.start, some.stop, device=counted.device) // of_group
        tile = changes.empty(some.stop - some.start)
        changes.of(some, tile)
        for column, (step, change) in enumerate(zip(steps, tile, strict=True)):
            squares = change.double().square_() if step is None else _even(step[some], change)
            changes.add(found[:, column], some, changes.units.sums(squares * counted[groups]))
    release([changes.original])
    return np.asarray(found.cpu().numpy())


def _unit(rows: Tensor, counted: Tensor) -> Tensor:
    """Mean squared range of channels, times what an input's error costs in the geometric mean."""
    low, high = rows.amin(dim=1).clamp(max=0), rows.amax(dim=1).clamp(min=0)
    squares = (high - low).double().square().mean()
    # Inputs of a group that are always 0 lose nothing, and so does a layer of zeros, in any unit.
    logs = torch.where(counted > 0, counted.log(), torch.nan)
    unit = squares * logs.nanmean().exp()
    return torch.where(unit > 0, unit, 1.0)


def _even(steps: Tensor, change: Tensor) -> Tensor:
    """``[r, K]`` of errors that are even within a step; 0 in rows that the format holds."""
    return steps.square().div_(12).mul_((change != 0).any(dim=1, keepdim=True))


def _counted(layer: Layer, moments: SecondMoments) -> Tensor:
    """``[G, K]`` float64, or ``[1, 1]`` for all alike: what a squared error of a weight costs."""
    moment = moments.values.get(layer.name)
    if moment is not None:
        # Back from units of each group's mean.
        return column_losses(moment) * diagonal(moment).double().mean(dim=-1, keepdim=True)
    if layer.kind == "embedding":
        # What reads one id for all examples reads less than one an example.
        reads = max(layer.input_elements, 1)
        return torch.full((1, 1), reads / layer.num_channels, dtype=torch.float64)
    raise ModelError(moments.missing[layer.name])


def _steps(changes: WeightChanges, tensor_format: TensorFormat) -> Tensor | None:
    """``[O, K]`` float64 steps of every weight; ``None`` where they are not even."""
    if not tensor_format.is_scaled_integer or tensor_format.branch is not None:
        return None
    num_rows, num_inputs = changes.rows.shape
    scale = changes.quantizer.grid(changes.name, changes.rows, tensor_format).scale.double()
    by_row = scale.expand(num_rows)[:, None] if scale.numel() == 1 else scale.view(num_rows, -1)
    each = tensor_format.numbers_per_scale(num_inputs)
    return by_row.repeat_interleave(each, dim=1)[:, :num_inputs]

"""Weight error: how much rounding changes a layer's numbers, without any data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.network.mapped import release
from mpq.quantization.input_sample import InputSample
from mpq.quantization.observer import needs_range
from mpq.quantization.ranges import LeastSquares
from mpq.quantization.rounding import quantize_activation, row_tiles
from mpq.quantization.tensor_format import TensorFormat
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.weight_changes import WeightChanges

_NORMAL_SAMPLE = 16384
"""Quantiles that stand for the normal distribution; four times as many change no digit shown."""


@final
@dataclass(frozen=True)
class WeightError(SensitivityEstimator):
    r"""Relative squared error of a layer's weight and of its input, without data.

    .. math:: s_{\ell b} = \frac{\lVert Q_b(W_\ell) - W_\ell \rVert^2}{\lVert W_\ell \rVert^2}
        + \frac{E (Q_b(x) - x)^2}{E x^2}, \quad x \sim N(0, 1)

    The noise-to-signal ratio of the layer's output if rounding errors are independent of the
    numbers (the model behind SQNR-based allocation, Lin et al. 2016, arXiv:1511.06393). Departs
    from it in the input's share, which is that of a standard normal input, because no data are
    used. The unit is ``relative``, not nats: how much an error matters to the output is not known,
    so that the table ranks layers only as far as they matter alike.
    """

    name: ClassVar[str] = "weight-error"
    summary: ClassVar[str] = "relative squared error of the numbers, no data needed"
    prices_channels: ClassVar[bool] = True

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``; no example is read."""
        by_channel = channel_errors(on)
        table = on.table(relative_errors(on, by_channel), self.name, "relative")
        return Sensitivity(table, channels=by_channel if on.divides else {})


def relative_errors(on: Estimation, by_channel: Mapping[str, Array]) -> Array:
    """``[L, B]`` relative squared errors of weight plus input, the input standard normal.

    Args:
        on: Network and candidates.
        by_channel: ``channel_errors``.
    """
    of_input = on.inputs.by_candidate(np.array([normal_error(f) for f in on.inputs.formats]))
    of_weight = np.stack([errors.sum(axis=0) for errors in by_channel.values()])
    # An embedding reads ids, which no format changes.
    reads_numbers = np.array([layer.kind != "embedding" for layer in on.network.layers])
    return of_weight + reads_numbers[:, None] * of_input


def channel_errors(on: Estimation) -> dict[str, Array]:
    """Layer name to ``[O, B]``, squared errors of channels relative to the whole weight."""
    return {name: on.weights.by_candidate(_errors(on, name)) for name in on.names}


def _errors(on: Estimation, name: str) -> Array:
    """``[O, F]``; 0 for a weight of zeros, which every format holds."""
    changes = WeightChanges.of_original(on, name)
    tiles = (changes.rows[some] for some in row_tiles(changes.rows))
    power = sum(float(tile.double().square().sum()) for tile in tiles)
    squares = changes.squares().cpu().numpy()
    release([changes.original])
    return squares / power if power > 0 else np.zeros_like(squares)


def relative_error(original: Tensor, rounded: Tensor) -> float:
    """Squared error over squared norm; 0 for a tensor of zeros, which every format holds."""
    power = original.double().square().sum()
    error = (rounded.double() - original.double()).square().sum()
    return float(error / power) if power > 0 else 0.0


def normal_error(tensor_format: TensorFormat) -> float:
    """Relative squared error of standard normal numbers in a format."""
    # The middles of equal shares, because the ends themselves are infinite.
    quantiles = (torch.arange(_NORMAL_SAMPLE, dtype=torch.float64) + 0.5) / _NORMAL_SAMPLE
    # One row is one token, so that a format with a scale per token sees the whole sample.
    x = torch.special.ndtri(quantiles).float()[None]
    calibrated = None
    if needs_range(tensor_format):
        calibrated = InputSample(x[0]).range(LeastSquares(), tensor_format)
    return relative_error(x, quantize_activation(x, tensor_format, calibrated, token_axes=1))

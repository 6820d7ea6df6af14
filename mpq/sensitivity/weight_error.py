"""Weight error: how much rounding changes a layer's numbers, without any data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import needs_range
from mpq.quantization.precision import Precision, TensorFormat
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.ranges import ActivationRange, LeastSquares
from mpq.quantization.rounding import quantize_activation
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator, loss_table

_NORMAL_SAMPLE = 16384


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

    def estimate(
        self,
        network: Network,
        data: Calibration,  # noqa: ARG002
        quantizer: Quantizer,
        candidates: Sequence[Precision],
    ) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``; ``data`` are not read."""
        values = relative_errors(network, quantizer, candidates)
        return Sensitivity(loss_table(network, candidates, values, self.name, "relative"))


def relative_errors(
    network: Network, quantizer: Quantizer, candidates: Sequence[Precision]
) -> npt.NDArray[np.float64]:
    """``[L, B]`` relative squared errors of weight plus input, the input standard normal."""
    of_input = {
        candidate.activation: normal_error(candidate.activation) for candidate in candidates
    }
    values = np.zeros((len(network.layers), len(candidates)))
    for row, layer in enumerate(network.layers):
        weight, layer_module = network.weight(layer.name), network.layer_module(layer.name)
        for column, candidate in enumerate(candidates):
            error = relative_error(
                weight, quantizer.weight(layer.name, layer_module, candidate.weight)
            )
            reads_numbers = layer.kind != "embedding"
            values[row, column] = error + reads_numbers * of_input[candidate.activation]
    return values


def relative_error(original: Tensor, rounded: Tensor) -> float:
    """Squared error over squared norm; 0 for a tensor of zeros, which every format holds."""
    power = original.double().square().sum()
    error = (rounded.double() - original.double()).square().sum()
    return float(error / power) if power > 0 else 0.0


def normal_error(tensor_format: TensorFormat) -> float:
    """Relative squared error of standard normal numbers in a format."""
    quantiles = (torch.arange(_NORMAL_SAMPLE, dtype=torch.float64) + 0.5) / _NORMAL_SAMPLE
    x = torch.special.ndtri(quantiles).float()[None]
    calibrated = None
    if needs_range(tensor_format):
        low, high = LeastSquares().ends(x, tensor_format.number, tensor_format.symmetric)
        calibrated = ActivationRange(float(low), float(high))
    return relative_error(x, quantize_activation(x, tensor_format, calibrated, token_axes=1))

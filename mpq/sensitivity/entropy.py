"""Entropy of a layer's numbers, and how far rounding moves their distribution."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from torch import Tensor

from mpq._support.arrays import Array
from mpq.errors import InputError
from mpq.quantization.precision import ORIGINAL
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.importance import importance_table
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.forward_pass import read_layers
from mpq.sensitivity.passes.histogram import (
    divergence,
    entropy,
    input_histograms,
    layer_bins,
    weight_histograms,
)


@final
@dataclass(frozen=True)
class HistogramKL(SensitivityEstimator):
    r"""KL divergence between histograms of the original and of the rounded numbers.

    .. math:: s_{\ell b} = KL\bigl(h(W_\ell) \,\|\, h(Q_b(W_\ell))\bigr)
        + KL\bigl(h(x_\ell) \,\|\, h(Q_b(x_\ell))\bigr)

    with ``h`` the shares of the numbers in equal bins over the original's range: of the weight, and
    of the input over all calibration examples. AdaPT (Kummer et al. 2021, arXiv:2107.13490) lowers
    a weight's precision during training as long as this divergence stays small. Departs from it in
    looking at inputs as well, and in spreading a small share of both histograms over all bins,
    because rounding leaves bins empty, which would cost infinitely much.

    The unit is ``relative``: these nats are of the layer's own numbers, not of the network's
    output. Takes two forward passes, the first for the ranges.

    Args:
        num_bins: Bins of every histogram.
        smoothing: Share that is spread over all bins, above 0 and below 1.

    Raises:
        InputError: If there are fewer than two bins, or the share is no such share.
    """

    name: ClassVar[str] = "histogram-kl"
    summary: ClassVar[str] = "KL divergence of rounded numbers' histograms (AdaPT), forward only"

    num_bins: int = 128
    smoothing: float = 1e-3

    def __post_init__(self) -> None:
        _check_bins(self.name, self.num_bins)
        if not 0 < self.smoothing < 1:
            raise InputError(f"{self.name} needs 0 < smoothing < 1; got {self.smoothing}")

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``."""

        def moved(original: Tensor, rounded: Tensor) -> float:
            return divergence(original, rounded, self.smoothing)

        values = _compared(on, self.num_bins, moved)
        return Sensitivity(on.table(values, self.name, "relative"))


@final
@dataclass(frozen=True)
class ActivationEntropy(SensitivityEstimator):
    r"""Relative rounding error, times the entropy of the layer's output.

    .. math:: \iota_\ell = - \sum_k p_{\ell k} \log p_{\ell k}

    with ``p`` the shares of the output's numbers, over all calibration examples, in equal bins over
    their range. Q-VLM (Wang et al. 2024, arXiv:2410.08119) finds that it goes with how much
    rounding errors of a layer depend on those of others, and cuts networks into blocks by it.
    Departs from it in making a table (see ``importance_table``).

    With ``loss=true`` the entropy that rounding takes away, as QuantMCU has it for feature maps
    (Tao et al. 2024, arXiv:2401.13714), here for weight and input alike:

    .. math:: s_{\ell b} = \bigl[ H(W_\ell) - H(Q_b(W_\ell)) \bigr]_+
        + \bigl[ H(x_\ell) - H(Q_b(x_\ell)) \bigr]_+

    The unit is ``relative`` either way: entropies are of the layer's own numbers. Takes two forward
    passes, the first for the ranges.

    Args:
        num_bins: Bins of every histogram.
        loss: Whether the entropy that is lost is the cost itself.

    Raises:
        InputError: If there are fewer than two bins.
    """

    name: ClassVar[str] = "activation-entropy"
    summary: ClassVar[str] = "rounding error x entropy of a layer's output (Q-VLM), forward only"

    num_bins: int = 256
    loss: bool = False

    def __post_init__(self) -> None:
        _check_bins(self.name, self.num_bins)

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``."""
        if self.loss:
            values = _compared(on, self.num_bins, _lost)
            return Sensitivity(on.table(values, self.name, "relative"))
        return Sensitivity(importance_table(on, output_entropies(on, self.num_bins), self.name))


def _check_bins(name: str, num_bins: int) -> None:
    # A single bin holds everything: entropy and divergence would be 0 for any numbers.
    if num_bins < 2:
        raise InputError(f"{name} needs num_bins >= 2; got {num_bins}")


def output_entropies(on: Estimation, num_bins: int) -> list[float]:
    """``[L]`` entropy in nats of every layer's output; two forward passes."""
    bins = layer_bins(on, lambda _, y: y, num_bins)
    found: dict[str, Tensor] = {}

    def read(tap: Tap, _: Tensor, y: Tensor) -> None:
        if tap.name in bins:
            # The bins span all batches, or counts of different batches could not be added.
            counts = bins[tap.name].histogram(y)
            found[tap.name] = counts + found.get(tap.name, 0)

    read_layers(on, read, "histograms")
    return [entropy(found[name]) if name in found else 0.0 for name in on.names]


def _lost(original: Tensor, rounded: Tensor) -> float:
    """Entropy that rounding takes away; what it seems to add is not to be bought."""
    return max(entropy(original) - entropy(rounded), 0.0)


def _compared(on: Estimation, num_bins: int, compare: Callable[[Tensor, Tensor], float]) -> Array:
    """``[L, B]``: histograms of weight and input against those of the rounded ones."""
    # The original's format is what all others are compared with, also where no candidate has it.
    inputs = tuple(dict.fromkeys((ORIGINAL.activation, *on.inputs.formats)))
    weights = tuple(dict.fromkeys((ORIGINAL.weight, *on.weights.formats)))
    # Both histograms of a comparison have the original's bins, so that a format that moves no
    # number costs exactly 0.
    bins = layer_bins(on, lambda x, _: x, num_bins)
    # A pass over the data for nothing, where no candidate rounds what layers read.
    of_inputs = input_histograms(on, inputs, bins) if len(inputs) > 1 else {}
    of_weights = weight_histograms(on, weights, num_bins)
    values = np.zeros(on.shape)
    for row, name in enumerate(on.names):
        held = of_weights[name]
        for column, candidate in enumerate(on.candidates):
            values[row, column] = compare(held[ORIGINAL.weight], held[candidate.weight])
        if name in of_inputs:
            held = of_inputs[name]
            for column, candidate in enumerate(on.candidates):
                values[row, column] += compare(
                    held[ORIGINAL.activation], held[candidate.activation]
                )
    return values

"""Histograms with fixed bins, gathered over batches, and what they say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from mpq.quantization.tensor_format import TensorFormat
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.forward_pass import read_layers


@final
@dataclass(frozen=True)
class Bins:
    """Equal bins over a range; what lies outside counts in the outermost ones.

    Args:
        low: Where the first begins.
        high: Where the last ends, above ``low``.
        count: Number of bins, ``K``, at least 1.
    """

    low: float
    high: float
    count: int

    def histogram(self, x: Tensor) -> Tensor:
        """``[K]`` int64: how many numbers fall into each bin, on the CPU."""
        # In float64, so that a number at the border of two bins is put on the same side in any
        # dtype.
        place = (x.detach().flatten().double() - self.low) * (self.count / (self.high - self.low))
        # The largest number of the range lies at `count` itself, and rounded ones may lie outside.
        index = place.clamp(0, self.count - 1).long()
        return torch.bincount(index, minlength=self.count).cpu()


def bins_of(low: float, high: float, count: int) -> Bins:
    """Bins over the range of some numbers, which may all be the same."""
    # Numbers that are all the same fall into the first bin, whatever its width.
    return Bins(low, high if high > low else low + 1.0, count)


def entropy(histogram: Tensor) -> float:
    r"""Entropy in nats, :math:`-\sum_k p_k \log p_k`; 0 for no numbers."""
    return float(torch.special.entr(_shares(histogram)).sum())


def divergence(histogram: Tensor, other: Tensor, smoothing: float) -> float:
    r"""KL divergence in nats of one histogram from another.

    .. math:: \sum_k p_k \log (p_k / q_k)

    Args:
        histogram: ``[K]`` counts, of which ``p`` are the shares.
        other: ``[K]`` counts, of which ``q`` are the shares.
        smoothing: Share of both that is spread evenly over all bins, so that none is empty.
    """
    p, q = (
        (1 - smoothing) * _shares(counts) + smoothing / len(counts) for counts in (histogram, other)
    )
    # Rounding can leave less than 0 for histograms that are nearly the same.
    return float(torch.special.xlogy(p, p / q).sum().clamp_min(0.0))


def _shares(histogram: Tensor) -> Tensor:
    return histogram.double() / histogram.sum().clamp_min(1)


Reading = Callable[[Tensor, Tensor], Tensor]
"""Which tensor of a layer is looked at, from its input and its output."""


def layer_bins(on: Estimation, reading: Reading, num_bins: int) -> dict[str, Bins]:
    """Bins over the range of all that a layer reads or writes, in one forward pass.

    Returns:
        Layer name to bins; layers without floating-point numbers are left out.
    """
    spans: dict[str, tuple[float, float]] = {}

    def read(tap: Tap, x: Tensor, y: Tensor) -> None:
        seen = reading(x, y)
        # Ids have no range; an expert that is sent nothing has none either, and aminmax would fail.
        if seen.is_floating_point() and seen.numel():
            low, high = (float(end) for end in seen.aminmax())
            held = spans.get(tap.name, (low, high))
            spans[tap.name] = (min(low, held[0]), max(high, held[1]))

    read_layers(on, read, "ranges")
    return {name: bins_of(*span, num_bins) for name, span in spans.items()}


Histograms = dict[TensorFormat, Tensor]
"""Format to ``[K]``, all over the same bins."""


def input_histograms(
    on: Estimation, formats: Sequence[TensorFormat], bins: Mapping[str, Bins]
) -> dict[str, Histograms]:
    """Every layer's input in every format, in one forward pass."""
    found: dict[str, Histograms] = {name: {} for name in bins}

    def read(tap: Tap, x: Tensor, _: Tensor) -> None:
        if tap.name in found and x.is_floating_point():
            for tensor_format in formats:
                rounded = on.rounded_input(tap.name, x, tensor_format)
                counts = bins[tap.name].histogram(rounded)
                held = found[tap.name].get(tensor_format)
                found[tap.name][tensor_format] = counts if held is None else held + counts

    read_layers(on, read, "histograms")
    return found


def weight_histograms(
    on: Estimation, formats: Sequence[TensorFormat], num_bins: int
) -> dict[str, Histograms]:
    """Every layer's weight in every format, over the range of the original."""
    found = {}
    for name in on.names:
        # The range of the original, for all formats: only over the same bins can they be compared.
        weight = on.network.weight(name)
        bins = bins_of(float(weight.min()), float(weight.max()), num_bins)
        found[name] = {f: bins.histogram(on.rounded_weight(name, f)) for f in formats}
    return found

"""Every layer's weight at every candidate, rounded with regard to the calibration examples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch

from mpq._support.progress import track
from mpq.network.modules import weight_of
from mpq.network.weight_layout import layout_of
from mpq.quantization.precision import TensorFormat
from mpq.quantization.stored import StoredWeight
from mpq.rounding import Nearest, WeightRounding
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes.second_moments import second_moments


@final
@dataclass(frozen=True, eq=False)
class RoundedWeights:
    """What a rounding found.

    Args:
        stored: Layer name and format to its codes.
        to_nearest: Layers that were rounded to nearest all the same, and why.
    """

    stored: Mapping[tuple[str, TensorFormat], StoredWeight] = field(default_factory=dict)
    to_nearest: Mapping[str, str] = field(default_factory=dict)


def rounded_weights(on: Estimation, rounding: WeightRounding, seed: int) -> RoundedWeights:
    """Rounds the weights of all layers at all candidates; nothing to do for ``nearest``.

    Layers that share a weight are looked at once, and get the same codes. Takes a forward and a
    backward pass over the calibration examples, and a second moment ``[K, K]`` for every layer.

    Args:
        on: Network, calibration examples, candidates, and the quantizer whose grids scales start
            from.
        rounding: How codes are found.
        seed: Of the probes that guide the second moments.

    Raises:
        ModelError: If what a layer reads is not finite.
    """
    formats = [f for f in on.weights.formats if f.number.needs_scale]
    if isinstance(rounding, Nearest) or not formats:
        return RoundedWeights()
    moments = second_moments(on, seed=seed)
    found: dict[tuple[str, TensorFormat], StoredWeight] = {}
    for layer in track(on.network.layers, "rounding weights"):
        if layer.name in moments.missing:
            continue
        owner = layer.weight_of or layer.name
        for tensor_format in formats:
            if (owner, tensor_format) in found:  # the codes of the layer that it shares it with
                found[layer.name, tensor_format] = found[owner, tensor_format]
        if (layer.name, formats[0]) not in found:
            codes = _codes(on, layer.name, moments.values[layer.name], formats, rounding)
            found |= {(layer.name, f): weight for f, weight in codes.items()}
    return RoundedWeights(found, dict(moments.missing))


def _codes(
    on: Estimation,
    name: str,
    moment: torch.Tensor,
    formats: list[TensorFormat],
    rounding: WeightRounding,
) -> dict[TensorFormat, StoredWeight]:
    layer_module = on.network.layer_module(name)
    weight = weight_of(layer_module).detach()
    rows = layout_of(layer_module).to_rows(weight).float().cpu()
    with torch.no_grad():
        grids = [on.quantizer.grid(name, rows, tensor_format) for tensor_format in formats]
        found = rounding.codes(rows, moment, formats, grids, on.quantizer.numerics)
    return {f: codes.stored(rows) for f, codes in zip(formats, found, strict=True)}

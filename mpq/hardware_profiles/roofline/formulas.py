"""Roofline: a layer takes as long as its arithmetic or its memory traffic, whichever is longer.

Williams, Waterman, Patterson (2009), doi:10.1145/1498765.1498785; plus a constant per call. An
estimate: caches, fusion, tiling and clock changes are left out, and so is everything between
layers. Departs from the paper in the launch overhead. Rates are what is reached: a peak times a
utilisation, where a profile has a source for one.
"""

from mpq.network.layer import Layer
from mpq.quantization.precision import Precision


def traffic_bytes(layer: Layer, precision: Precision, batch_size: int) -> float:
    """Bytes between memory and arithmetic: the weight once per call, every input, every output.

    Outputs are taken to be stored in the format of the layer's input. An embedding reads the rows
    that it looks up.
    """
    activation_bits = precision.activation.number.bits
    if layer.kind == "embedding":
        # Scales are stored per row, and `num_channels` counts rows: a row brings its share.
        row_bits = precision.weight.stored_bits(layer.num_weights, layer.num_channels)
        read = row_bits / layer.num_channels * layer.input_elements * batch_size
        return (read + layer.output_elements * batch_size * activation_bits) / 8
    weight_bits = precision.weight.stored_bits(layer.num_weights, layer.num_channels)
    # Counted over all calls already; the weight is not, and every call reads it again.
    numbers = (layer.input_elements + layer.output_elements) * batch_size
    return (layer.calls * weight_bits + numbers * activation_bits) / 8


def latency_seconds(
    layer: Layer,
    precision: Precision,
    batch_size: int,
    *,
    operations_per_s: float,
    bandwidth_bytes_per_s: float,
    launch_overhead_s: float,
) -> float:
    """Seconds for one batch."""
    # Rates count operations: a multiplication and an addition per MAC.
    arithmetic = 2 * layer.macs * batch_size / operations_per_s
    memory = traffic_bytes(layer, precision, batch_size) / bandwidth_bytes_per_s
    # Both are taken to overlap fully, so that the slower one decides, and launches with neither.
    return max(arithmetic, memory) + layer.calls * launch_overhead_s


def energy_joules(
    layer: Layer,
    precision: Precision,
    batch_size: int,
    *,
    energy_j_per_mac: float,
    energy_j_per_byte: float,
) -> float:
    """Joules for one batch: arithmetic and memory traffic add up."""
    # No maximum as for time: what overlaps still takes its energy.
    arithmetic = layer.macs * batch_size * energy_j_per_mac
    return arithmetic + traffic_bytes(layer, precision, batch_size) * energy_j_per_byte

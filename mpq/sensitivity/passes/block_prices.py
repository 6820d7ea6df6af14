"""What blocks of layers' inputs lose, each rounded by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.network.examples import Calibration
from mpq.network.halving import halved
from mpq.quantization.input_sample import channel_axis, token_axes_of
from mpq.quantization.tensor_format import TensorFormat
from mpq.quantization.token_blocks import to_blocks
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.output_sketch import OutputSketch
from mpq.sensitivity.passes.backward_pass import Tap, read_gradients
from mpq.sensitivity.passes.probes import TEMPERATURE, Probes


def block_prices(
    on: Estimation, formats: Mapping[str, Sequence[TensorFormat]], size: int, seed: int
) -> dict[str, Array]:
    r"""Half of what squared errors of a block's numbers cost by the squared gradients there.

    .. math:: p_{\ell k b} = \tfrac12 \, \mathrm{mean}_n \sum_{i \in k} (g^x_{n \ell i})^2
        \bigl(Q_b(x_{n \ell})_i - x_{n \ell i}\bigr)^2

    with the gradients of the output sketch's softened probes, of each layer its own share: the
    second-order change of the output where errors of numbers do not depend on each other. One
    forward pass, and a backward pass for each of the sketch's probes.

    Args:
        on: The network, calibration examples, and how inputs are quantized.
        formats: Layer name to the formats that its blocks may take.
        size: Consecutive input channels in a block.
        seed: Of the probes' random signs.

    Returns:
        Layer name to ``[G, F]``, in the unit of the network's metric per example.

    Raises:
        GradientError: If the network cannot be differentiated.
    """
    work = partial(_priced, on, formats, size, seed)
    return halved("prices of blocks of inputs", on.data, work, on.network.why_uncut)


def _priced(
    on: Estimation,
    formats: Mapping[str, Sequence[TensorFormat]],
    size: int,
    seed: int,
    data: Calibration,
) -> dict[str, Array]:
    on = replace(on, data=data)
    reader, probes = _Reader(on, formats, size), Probes(on.network.metric, TEMPERATURE, seed)
    count = OutputSketch().for_examples(data.num_examples).num_probes
    for batch in on.batches("prices of blocks of inputs"):
        drawn = [partial(probes.draw, batch, None, number) for number in range(count)]
        read_gradients(on.network, batch, reader, *drawn)
    factor = 0.5 * probes.scale / (count * data.num_examples)
    return {name: factor * np.asarray(x.cpu().numpy()) for name, x in reader.found.items()}


@final
@dataclass
class _Reader:
    """Adds up squared products of errors and gradients, on each layer's device.

    Args:
        on: How inputs are quantized.
        formats: As in ``block_prices``.
        size: As in ``block_prices``.
        found: Layer name to ``[G, F]``, in float64.
    """

    on: Estimation
    formats: Mapping[str, Sequence[TensorFormat]]
    size: int
    found: dict[str, Tensor] = field(default_factory=dict)

    @property
    def reads_inputs(self) -> bool:
        """See ``GradientReader``."""
        return True

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        if tap.name not in self.formats or not x.numel():
            return
        axes, axis = token_axes_of(tap.layer.kind, x.ndim), channel_axis(tap.layer_module)
        columns = []
        for tensor_format in self.formats[tap.name]:
            change = self.on.rounded_input(tap.name, x, tensor_format) - x
            blocks = to_blocks((change * g).float().square(), self.size, axes, axis)
            columns.append(blocks.sum(dim=(0, 2), dtype=torch.float64))
        added = torch.stack(columns, dim=1)
        known = self.found.get(tap.name)
        self.found[tap.name] = added if known is None else known + added

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""

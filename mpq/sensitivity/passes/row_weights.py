"""How much the loss minds an error at every position of a layer's output, kept."""

from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import Tensor

from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap, read_gradients
from mpq.sensitivity.passes.input_columns import input_columns, output_positions
from mpq.sensitivity.passes.looking import Looking
from mpq.sensitivity.passes.operator_calls import operator_call
from mpq.sensitivity.passes.probes import TEMPERATURE, Probes


def row_weights(
    on: Estimation, names: Collection[str], positions: int, seed: int
) -> Mapping[str, list[Tensor]]:
    """Squared gradients of the outputs of some layers in the float network, position by position.

    One forward and one backward pass, from the probes that guide ``second_moments``. Takes 4 bytes
    for every position that is looked at and each group of channels.

    Args:
        on: The network, nothing in which is quantized, and the examples.
        names: Layers that one pass calls once.
        positions: As in ``second_moments``.
        seed: Of the probes' random signs.

    Returns:
        Layer to ``[p, G]`` for every batch, the mean over a group's channels of the squared
        gradient, in the order of ``input_columns``. A layer that a gradient did not reach in every
        batch, or whose output examples share, is not in it.

    Raises:
        GradientError: If the network cannot be differentiated.
    """
    reader = _Reader(names, Looking.of(on, positions))
    probes, batches = Probes(on.network.metric, TEMPERATURE, seed, has_scale=False), 0
    for batch in on.batches("gradients"):
        read_gradients(on.network, batch, reader, partial(probes.draw, batch, None, 0))
        reader.first += batch.size
        batches += 1
    return {n: found for n, found in reader.found.items() if len(found) == batches}


class _Reader:
    """Keeps what each gradient of an output says."""

    def __init__(self, names: Collection[str], looking: Looking) -> None:
        self.found: dict[str, list[Tensor]] = {name: [] for name in names}
        self.first = 0
        self._looking = looking

    @property
    def reads_inputs(self) -> bool:
        """See ``GradientReader``."""
        return False

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        call = None if tap.name not in self.found or tap.is_shared else operator_call(tap, x)
        if call is None:
            return
        tap, x = call
        seen = self._looking.seen(tap, x, g, self.first)
        squares = output_positions(tap.layer_module, g).float().square().mean(dim=-1)
        pieces = input_columns(tap.layer_module, x, g, seen.lattice)
        self.found[tap.name].append(
            torch.cat([squares[piece].reshape(-1, len(columns)) for piece, columns in pieces])
        )

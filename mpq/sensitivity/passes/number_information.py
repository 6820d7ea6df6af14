"""How much an error of every single number of a weight matters: diagonal Fisher information."""

from typing import final

import torch
from torch import Tensor

from mpq.network.layer import weighted
from mpq.network.modules import weight_of
from mpq.network.weight_layout import layout_of
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.example_gradients import ExampleGradients, sum_of_squares
from mpq.sensitivity.passes.labels import fisher_gradient, labelled_passes
from mpq.sensitivity.passes.moment_mixing import SecondMoments, sharing_a_weight


def number_information(on: Estimation, seed: int = 0) -> SecondMoments:
    r"""Of every number of all weights, as second moments that are diagonal and each row's own.

    .. math:: F_i = \mathrm{mean}_n (g^W_{n i})^2

    with the gradients of each example's log-likelihood, for labels drawn from the network. Takes a
    forward and a backward pass, and the memory of all weights. Layers that share a weight have the
    sum of theirs.

    Args:
        on: The network and the examples.
        seed: Of drawn labels.

    Returns:
        ``[O, K, 1]`` of every layer, as ``SecondMoments`` of ``O`` groups of one row, in blocks of
        one input. Layers that no example reaches have 0.

    Raises:
        GradientError: If the network cannot be differentiated.
    """
    found, examples = _Squares(on), 0
    for batch in labelled_passes(on, found, fisher_gradient, "sampled", seed):
        found.gradients.flush()
        examples += batch.size
    values: dict[str, Tensor] = {}
    for layers in sharing_a_weight(weighted(on.network.layers)):
        squares = sum((found.sums[x.name] for x in layers[1:]), start=found.sums[layers[0].name])
        layer_module = on.network.layer_module(layers[0].name)
        rows = layout_of(layer_module).to_rows(squares.view_as(weight_of(layer_module)))
        values |= dict.fromkeys((x.name for x in layers), (rows / examples)[:, :, None].cpu())
    return SecondMoments(values, {}, {})


@final
class _Squares:
    """Sums over examples, while backward passes run."""

    reads_inputs = False

    def __init__(self, on: Estimation) -> None:
        self.gradients = ExampleGradients(self._add)
        # On each layer's device, so that no pass waits for a transfer.
        self.sums = {
            layer.name: torch.zeros_like(on.network.weight(layer.name), dtype=torch.float32).ravel()
            for layer in weighted(on.network.layers)
        }

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``; not called."""

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        if tap.name in self.sums:
            self.gradients.read(tap, x, g)

    def _add(self, tap: Tap, examples: slice, gradients: Tensor) -> None:
        self.sums[tap.name] += sum_of_squares(examples, gradients)

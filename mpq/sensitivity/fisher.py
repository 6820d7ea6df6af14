"""Diagonal Fisher information: squared gradients as the curvature of every single number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq._support.progress import track
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator, loss_table
from mpq.sensitivity.passes.backward_pass import Tap, read_gradients
from mpq.sensitivity.passes.example_gradients import ExampleGradients
from mpq.sensitivity.passes.labels import check_labels, fisher_gradient


@final
@dataclass(frozen=True)
class DiagonalFisher(SensitivityEstimator):
    r"""Squared rounding errors, each times the Fisher information of its number.

    .. math:: s_{\ell b} = \tfrac12 \sum_i F_{\ell i} \, (Q_b(W_\ell) - W_\ell)_i^2
        + \tfrac12 \, \mathrm{mean}_n \sum_i (g^x_{n \ell i})^2
            (Q_b(x_{n \ell}) - x_{n \ell})_i^2,
        \quad F_{\ell i} = \mathrm{mean}_n (g^W_{n \ell i})^2

    with ``g`` the gradients of each example's log-likelihood. The second-order Taylor term of the
    KL divergence, provided rounding errors of different numbers do not interact; in nats per
    example. SqueezeLLM (Kim et al. 2023, arXiv:2306.07629) weighs the errors of its codebooks so;
    LQ-LoRA (Guo et al. 2023, arXiv:2311.12023) those of its bit allocation. Departs from them in
    pricing inputs as well, in the factor one half, and in the labels: theirs are the data's (the
    empirical Fisher information), ours by default drawn from the network itself, which is the
    curvature of the divergence and needs no targets.

    Layers that share a parameter are priced each with its own share of the gradient. Memory: one
    number per weight, and see ``ExampleGradients``.

    Args:
        labels: ``sampled`` or ``targets``; see ``fisher_gradient``.
        seed: Of drawn labels.

    Raises:
        UnknownNameError: If ``labels`` is neither.
    """

    name: ClassVar[str] = "fisher"
    summary: ClassVar[str] = "diagonal Fisher x squared error (SqueezeLLM), 1 forward + 1 backward"

    labels: str = "sampled"
    seed: int = 0

    def __post_init__(self) -> None:
        check_labels(self.labels)

    def estimate(
        self,
        network: Network,
        data: Calibration,
        quantizer: Quantizer,
        candidates: Sequence[Precision],
    ) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``.

        Raises:
            DataError: If targets are wanted and there are none.
        """
        generator = torch.Generator().manual_seed(self.seed)
        found, examples = _Fisher(network, quantizer, candidates), 0
        for batch in track(network.batches(data), "Fisher information", data.num_batches):
            probe = fisher_gradient(network, batch, self.labels, generator)
            read_gradients(network, batch, found, probe)
            found.gradients.flush()
            examples += batch.size
        values = 0.5 * (found.of_weights() + found.of_inputs()) / examples
        return Sensitivity(loss_table(network, candidates, values, self.name))


class _Fisher:
    """Sums over examples, while backward passes run."""

    def __init__(
        self, network: Network, quantizer: Quantizer, candidates: Sequence[Precision]
    ) -> None:
        self.network = network
        self.quantizer = quantizer
        self.candidates = candidates
        self.formats = tuple(dict.fromkeys(candidate.activation for candidate in candidates))
        self.gradients = ExampleGradients(self._square)
        self.diagonal: dict[str, Tensor] = {}  # layer to [D]
        self.inputs = {layer.name: np.zeros(len(self.formats)) for layer in network.layers}

    @property
    def reads_inputs(self) -> bool:
        """Where an activation is rounded."""
        return any(not tensor_format.is_exact for tensor_format in self.formats)

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        for column, tensor_format in enumerate(self.formats):
            if not tensor_format.is_exact:
                rounded = self.quantizer.activation(tap.name, tap.layer_module, x, tensor_format)
                product = (rounded.float() - x.float()) * g.float()
                self.inputs[tap.name][column] += float(product.square().sum(dtype=torch.float64))

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        self.gradients.read(tap, x, g)

    def _square(self, tap: Tap, examples: slice, gradients: Tensor) -> None:
        times = (examples.stop - examples.start) / len(gradients)  # one row may stand for many
        squares = gradients.square().sum(dim=0) * times
        held = self.diagonal.get(tap.name)
        self.diagonal[tap.name] = squares if held is None else held.add_(squares)

    def of_weights(self) -> Any:
        """``[L, B]`` sums of squared errors times squared gradients."""
        values = np.zeros((len(self.network.layers), len(self.candidates)))
        for row, layer in enumerate(self.network.layers):
            if layer.name not in self.diagonal:  # the output does not depend on it
                continue
            weight, layer_module = (
                self.network.weight(layer.name),
                self.network.layer_module(layer.name),
            )
            diagonal = self.diagonal[layer.name].double()
            for column, candidate in enumerate(self.candidates):
                rounded = self.quantizer.weight(layer.name, layer_module, candidate.weight)
                error = (rounded.double() - weight.double()).square().flatten()
                values[row, column] = float(diagonal @ error)
        return values

    def of_inputs(self) -> Any:
        """``[L, B]``, likewise."""
        sums = np.stack([self.inputs[layer.name] for layer in self.network.layers])
        return sums[:, [self.formats.index(candidate.activation) for candidate in self.candidates]]

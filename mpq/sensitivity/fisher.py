"""Diagonal Fisher information: squared gradients as the curvature of every single number."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq._support.pages import is_streaming
from mpq.network.mapped import release
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.example_gradients import ExampleGradients
from mpq.sensitivity.passes.labels import check_labels, fisher_gradient, labelled_passes
from mpq.sensitivity.passes.weight_changes import WeightChanges


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
    number per weight, and see ``ExampleGradients``. Of a network that is streamed none is kept:
    weights are rounded in every batch instead, and products added up.

    Args:
        labels: ``sampled`` or ``targets``; see ``fisher_gradient``.
        seed: Seed of drawn labels.

    Raises:
        UnknownNameError: If ``labels`` is neither.
    """

    name: ClassVar[str] = "fisher"
    summary: ClassVar[str] = "diagonal Fisher x squared error (SqueezeLLM), 1 forward + 1 backward"

    labels: str = "sampled"
    seed: int = 0

    def __post_init__(self) -> None:
        check_labels(self.labels)

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``.

        Raises:
            DataError: If targets are wanted and there are none.
        """
        found, examples = _Fisher(on), 0
        for batch in labelled_passes(on, found, fisher_gradient, self.labels, self.seed):
            found.gradients.flush()
            examples += batch.size
        values = 0.5 * (found.of_weights() + found.of_inputs()) / examples
        return Sensitivity(on.table(values, self.name))


class _Fisher:
    """Sums over examples, while backward passes run."""

    def __init__(self, on: Estimation) -> None:
        self.on = on
        self.gradients = ExampleGradients(self._square)
        self.diagonal: dict[str, Tensor] = {}  # layer to [D]
        self.products: dict[str, Array] = {}  # layer to [F], where no diagonals are kept
        self.inputs = {name: np.zeros(len(on.inputs.formats)) for name in on.names}

    @property
    def reads_inputs(self) -> bool:
        """Where an activation is rounded."""
        return self.on.inputs.is_rounding

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        for column, tensor_format in self.on.inputs.rounding:
            rounded = self.on.rounded_input(tap.name, x, tensor_format)
            product = (rounded.float() - x.float()) * g.float()
            self.inputs[tap.name][column] += float(product.square().sum(dtype=torch.float64))

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        self.gradients.read(tap, x, g)

    def _square(self, tap: Tap, examples: slice, gradients: Tensor) -> None:
        times = (examples.stop - examples.start) / len(gradients)  # one row may stand for many
        squares = gradients.square().sum(dim=0) * times
        if is_streaming():
            found = self._products(tap.name, squares)
            self.products[tap.name] = self.products.get(tap.name, 0.0) + found
            return
        # Added in place: one more tensor of the weight's size at every step would be wasted.
        held = self.diagonal.get(tap.name)
        self.diagonal[tap.name] = squares if held is None else held.add_(squares)

    def of_weights(self) -> Array:
        """``[L, B]`` sums of squared errors times squared gradients."""
        on = self.on
        values = np.zeros((len(on.names), len(on.weights.formats)))
        for row, name in enumerate(on.names):
            # In neither: the output does not depend on it.
            if name in self.products:
                values[row] = self.products[name]
            elif name in self.diagonal:
                values[row] = self._products(name, self.diagonal[name])
        return on.weights.by_candidate(values)

    def _products(self, name: str, squares: Tensor) -> Array:
        """``[F]`` sums of squared errors of a layer, each times what ``[D]`` says of its number."""
        changes = WeightChanges.of_original(self.on, name)
        found: Array = changes.squares(squares).cpu().numpy()
        release([changes.original])
        return found

    def of_inputs(self) -> Array:
        """``[L, B]`` sums of squared products of error and gradient of the inputs."""
        return self.on.inputs.by_candidate(np.stack(list(self.inputs.values())))

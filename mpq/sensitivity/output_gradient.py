"""Output gradient: the change of a layer's output, weighted with its squared gradient."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.labels import check_labels, fisher_gradient, labelled_passes
from mpq.sensitivity.passes.layer_response import response, response_changes


@final
@dataclass(frozen=True)
class OutputGradient(SensitivityEstimator):
    r"""Squared change of a layer's output, each number times its squared gradient.

    .. math:: s_{\ell b} = \tfrac12 \, \mathrm{mean}_n \sum_i
        \Bigl(\frac{\partial L_n}{\partial y_{n \ell i}}\Bigr)^2
        \bigl(y^{(b)}_{n \ell} - y_{n \ell}\bigr)_i^2

    with :math:`y^{(b)}` the layer's output for its weight and input in the format, and ``L`` the
    cross-entropy. The second-order Taylor term in the layer's output with the diagonal of the
    Fisher information in place of the Hessian: changes of different outputs do not interact. In
    nats per example. The gradient score of ``auto_quantize`` in NVIDIA's Model Optimizer
    (``AutoQuantizeGradientSearcher``; documentation of ``modelopt.torch.quantization.algorithms``),
    which sums over batches, drops the half, takes the gradient of the batch's mean loss for the
    data's labels, and does not let a wider format cost more than a narrower one. Here gradients
    are each example's, and labels by default drawn from the network. A bias cancels.

    Takes one forward and one backward pass, and every layer alone once per candidate.

    Args:
        labels: ``sampled`` or ``targets``; see ``fisher_gradient``.
        seed: Seed of drawn labels.

    Raises:
        UnknownNameError: If ``labels`` is neither.
    """

    name: ClassVar[str] = "output-gradient"
    summary: ClassVar[str] = "gradient x change of each layer's output (ModelOpt auto_quantize)"

    labels: str = "sampled"
    seed: int = 0

    def __post_init__(self) -> None:
        check_labels(self.labels)

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``.

        Raises:
            DataError: If targets are wanted and there are none.
        """
        found = _Scores(on)
        passes = labelled_passes(on, found, fisher_gradient, self.labels, self.seed)
        examples = sum(batch.size for batch in passes)
        values = 0.5 * np.stack(list(found.sums.values())) / examples  # [L, B]
        return Sensitivity(on.table(values, self.name))


class _Scores:
    """Sums over examples, while backward passes run."""

    reads_inputs = False

    def __init__(self, on: Estimation) -> None:
        self.on = on
        self.sums = {name: np.zeros(len(on.candidates)) for name in on.names}

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``; not called."""

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        original = response(tap.layer_module, x, None, tap.call)
        for column, change in response_changes(self.on, tap.name, x, original, tap.call):
            # Squares of all numbers are added up anyhow, so that no split by example is needed.
            product = change * g
            self.sums[tap.name][column] += float(product.square().sum(dtype=torch.float64))

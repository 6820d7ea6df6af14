"""Output gradient: the change of a layer's output, weighted with its squared gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

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
from mpq.sensitivity.passes.labels import check_labels, fisher_gradient
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

    Takes one forward and one backward pass, and every layer alone once per choice.

    Args:
        labels: ``sampled`` or ``targets``; see ``fisher_gradient``.
        seed: Of drawn labels.

    Raises:
        UnknownNameError: If ``labels`` is neither.
    """

    name: ClassVar[str] = "output-gradient"
    summary: ClassVar[str] = "gradient x change of each layer's output (ModelOpt auto_quantize)"

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
        found, examples = _Scores(network, quantizer, candidates), 0
        for batch in track(network.batches(data), "output gradient", data.num_batches):
            probe = fisher_gradient(network, batch, self.labels, generator)
            read_gradients(network, batch, found, probe)
            examples += batch.size
        values = 0.5 * np.stack(list(found.sums.values())) / examples  # [L, B]
        return Sensitivity(loss_table(network, candidates, values, self.name))


class _Scores:
    """Sums over examples, while backward passes run."""

    reads_inputs = False

    def __init__(
        self, network: Network, quantizer: Quantizer, candidates: Sequence[Precision]
    ) -> None:
        self.quantizer = quantizer
        self.candidates = candidates
        self.sums = {layer.name: np.zeros(len(candidates)) for layer in network.layers}

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``; not called."""

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        original = response(tap.layer_module, x)
        changes = response_changes(
            self.quantizer, tap.name, tap.layer_module, x, original, self.candidates
        )
        for column, change in changes:
            product = change * g
            self.sums[tap.name][column] += float(product.square().sum(dtype=torch.float64))

"""First order: how far rounding moves along each example's gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq._support.progress import track
from mpq.network.examples import Batch, Calibration
from mpq.network.metric import KLDivergence
from mpq.network.network import Network
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator, loss_table
from mpq.sensitivity.passes.backward_pass import Tap, read_gradients
from mpq.sensitivity.passes.example_gradients import ExampleGradients
from mpq.sensitivity.passes.labels import check_labels, loss_gradient


@final
@dataclass(frozen=True)
class FirstOrder(SensitivityEstimator):
    r"""Absolute first-order change of each example's loss.

    .. math:: s_{\ell b} = \mathrm{mean}_n \Bigl( \sum_i \bigl| g^W_{n \ell i} \Delta^W_{\ell b i}
        \bigr| + \sum_i \bigl| g^x_{n \ell i} \Delta^x_{n \ell b i} \bigr| \Bigr)

    with ``g`` the gradients of each example's mean cross-entropy and :math:`\Delta` the rounding
    errors of the weight and of the input. DeltaLoss of AutoRound (SignRoundV2, Cheng et al. 2025,
    arXiv:2512.04746, whose code takes the absolute value of every single product, as here). With
    ``elementwise=false`` errors may cancel, as they do in the loss:

    .. math:: s_{\ell b} = \mathrm{mean}_n \bigl| \langle g^W_{n \ell}, \Delta^W_{\ell b} \rangle
        + \langle g^x_{n \ell}, \Delta^x_{n \ell b} \rangle \bigr|

    Departs from AutoRound in taking gradients at the original network instead of the quantized
    one, of each example instead of a batch, and by default for labels drawn from the network, which
    needs no targets: the mean of such gradients is 0, their mean absolute value is not.

    The unit is nats, but of cross-entropy: linear in the error where the KL divergence is
    quadratic, so that it ranks cells of one table but is no estimate of the divergence. (For a
    metric without classes: ``relative``; only ``sampled``.)

    Args:
        labels: ``sampled`` or ``targets``; see ``loss_gradient``.
        elementwise: Whether the absolute value is that of every product, or of their sum.
        seed: Of drawn labels.

    Raises:
        UnknownNameError: If ``labels`` is neither.
    """

    name: ClassVar[str] = "first-order"
    summary: ClassVar[str] = "|gradient x error|, AutoRound's DeltaLoss, 1 forward + 1 backward"

    labels: str = "sampled"
    elementwise: bool = True
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
        found = _Products(network, quantizer, candidates, self.elementwise)
        total, examples = np.zeros((len(network.layers), len(candidates))), 0
        for batch in track(network.batches(data), "first order", data.num_batches):
            found.start(batch)
            probe = loss_gradient(network, batch, self.labels, generator)
            read_gradients(network, batch, found, probe)
            total += found.finish()
            examples += batch.size
        unit = "nats" if isinstance(network.metric, KLDivergence) else "relative"
        return Sensitivity(loss_table(network, candidates, total / examples, self.name, unit))


class _Products:
    """Products of gradients and errors of one batch, while its backward pass runs."""

    def __init__(
        self,
        network: Network,
        quantizer: Quantizer,
        candidates: Sequence[Precision],
        elementwise: bool,
    ) -> None:
        self.network = network
        self.quantizer = quantizer
        self.elementwise = elementwise
        self.weight_formats = tuple(dict.fromkeys(candidate.weight for candidate in candidates))
        self.input_formats = tuple(dict.fromkeys(candidate.activation for candidate in candidates))
        self.weight_column = [
            self.weight_formats.index(candidate.weight) for candidate in candidates
        ]
        self.input_column = [
            self.input_formats.index(candidate.activation) for candidate in candidates
        ]
        self.gradients = ExampleGradients(self._read_weight)
        self.errors: tuple[str, Tensor] | None = None  # of the layer read last
        self.by_weight: dict[str, Tensor] = {}  # layer to [N, weight formats]
        self.by_input: dict[str, Tensor] = {}  # layer to [N, input formats]

    def start(self, batch: Batch) -> None:
        """Nothing is known of this batch yet."""
        for layer in self.network.layers:
            self.by_weight[layer.name] = torch.zeros(batch.size, len(self.weight_formats))
            self.by_input[layer.name] = torch.zeros(batch.size, len(self.input_formats))

    def finish(self) -> Any:
        """``[L, B]`` absolute changes, summed over the batch."""
        self.gradients.flush()
        changes = [
            self.by_weight[layer.name][:, self.weight_column]
            + self.by_input[layer.name][:, self.input_column]
            for layer in self.network.layers
        ]
        return np.stack([change.double().abs().sum(dim=0).numpy() for change in changes])

    @property
    def reads_inputs(self) -> bool:
        """Where an activation is rounded."""
        return any(not tensor_format.is_exact for tensor_format in self.input_formats)

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        for column, tensor_format in enumerate(self.input_formats):
            if not tensor_format.is_exact:
                rounded = self.quantizer.activation(tap.name, tap.layer_module, x, tensor_format)
                product = (rounded.float() - x.float()) * g.float()
                product = product.abs() if self.elementwise else product
                self.by_input[tap.name][:, column] += _sums(tap, product).cpu()

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        self.gradients.read(tap, x, g)

    def _read_weight(self, tap: Tap, examples: slice, gradients: Tensor) -> None:
        gradients = gradients.abs() if self.elementwise else gradients
        self.by_weight[tap.name][examples] += (gradients @ self._weight_errors(tap.name)).cpu()

    def _weight_errors(self, name: str) -> Tensor:
        """``[D, weight formats]``: what each format does to the weight; one layer's are kept."""
        if self.errors is not None and self.errors[0] == name:
            return self.errors[1]
        weight, layer_module = self.network.weight(name), self.network.layer_module(name)
        errors = [
            (
                self.quantizer.weight(name, layer_module, tensor_format).float() - weight.float()
            ).flatten()
            for tensor_format in self.weight_formats
        ]
        stacked = torch.stack([e.abs() if self.elementwise else e for e in errors], dim=1)
        self.errors = (name, stacked)
        return stacked


def _sums(tap: Tap, product: Tensor) -> Tensor:
    """``[N]``, or ``[1]`` where examples share the tensor; see ``ExampleGradients``."""
    split = tap.by_example(product)
    if split is None:
        return product.sum()[None] / sqrt(tap.num_examples)
    return split.flatten(1).sum(dim=1)

"""First order: how far rounding moves along each example's gradient."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.network.modules import weight_of
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.estimation import Estimation, Formats
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.example_gradients import ExampleGradients
from mpq.sensitivity.passes.labels import check_labels, labelled_passes, loss_gradient
from mpq.sensitivity.passes.one_device import on_one_device


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
        seed: Seed of drawn labels.

    Raises:
        UnknownNameError: If ``labels`` is neither.
    """

    name: ClassVar[str] = "first-order"
    summary: ClassVar[str] = "|gradient x error|, AutoRound's DeltaLoss, 1 forward + 1 backward"
    prices_caches: ClassVar[bool] = True

    labels: str = "sampled"
    elementwise: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_labels(self.labels)

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``.

        Raises:
            DataError: If targets are wanted and there are none.
        """
        found, total, examples = _Products(on, self.elementwise), np.zeros(on.shape), 0
        for batch in labelled_passes(on, found, loss_gradient, self.labels, self.seed):
            total += found.finish()
            examples += batch.size
        unit = "nats" if on.network.metric.is_classification else "relative"
        return Sensitivity(on.table(total / examples, self.name, unit))


class _Products:
    """Products of gradients and errors of one batch, while its backward pass runs."""

    def __init__(self, on: Estimation, elementwise: bool) -> None:
        self.on = on
        self.elementwise = elementwise
        self.gradients = ExampleGradients(self._read_weight)
        self.errors: tuple[str, Tensor] | None = None  # of the layer read last
        self.by_weight: dict[str, Tensor] = {}  # layer to [N, weight formats], of one batch
        self.by_input: dict[str, Tensor] = {}  # layer to [N, input formats], of one batch

    def finish(self) -> Array:
        """``[L, B]`` absolute changes, summed over the batch that is over."""
        self.gradients.flush()
        # The absolute value comes last: errors of weight and input may cancel within an example.
        # (By element, it is taken of every product before, and nothing changes here.)
        changes = [self._change(name).double().abs().sum(dim=0) for name in self.on.names]
        self.by_weight.clear()
        self.by_input.clear()
        return np.asarray(on_one_device(changes).cpu().numpy())

    def _change(self, name: str) -> Tensor:
        """``[N, B]``, or one row of zeros for a layer that the output does not depend on."""
        both = (self.on.weights, self.by_weight), (self.on.inputs, self.by_input)
        none = self.on.network.weight(name).new_zeros(1, 1, dtype=torch.float32)
        of_weight, of_input = (
            formats.by_candidate(sums.get(name, none.expand(1, len(formats.formats))))
            for formats, sums in both
        )
        return of_weight + of_input

    @property
    def reads_inputs(self) -> bool:
        """Where an activation is rounded."""
        return self.on.inputs.is_rounding

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        found = _held(self.by_input, tap, self.on.inputs)
        for column, tensor_format in self.on.inputs.rounding:
            rounded = self.on.rounded_input(tap.name, x, tensor_format)
            # In float32: in bfloat16 the difference of two close numbers has no digits left.
            product = (rounded.float() - x.float()) * g.float()
            product = product.abs() if self.elementwise else product
            found[:, column] += _sums(tap, product).to(found.device)

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        self.gradients.read(tap, x, g)

    def _read_weight(self, tap: Tap, examples: slice, gradients: Tensor) -> None:
        # |g| times |error|, summed, is the sum of |g error|: one matrix product serves all formats,
        # without a number for each example, weight and format.
        gradients = gradients.abs() if self.elementwise else gradients
        found = _held(self.by_weight, tap, self.on.weights)
        found[examples] += gradients @ self._weight_errors(tap.name)

    def _weight_errors(self, name: str) -> Tensor:
        """``[D, weight formats]``: what each format does to the weight; one layer's are kept."""
        # A layer's steps follow each other, so that one layer's errors are enough to keep; those of
        # all would take the network's size once per format.
        if self.errors is not None and self.errors[0] == name:
            return self.errors[1]
        weight = self.on.network.weight(name).float()
        errors = [
            (self.on.rounded_weight(name, f).float() - weight).flatten()
            for f in self.on.weights.formats
        ]
        stacked = torch.stack([e.abs() if self.elementwise else e for e in errors], dim=1)
        self.errors = (name, stacked)
        return stacked


def _held(sums: dict[str, Tensor], tap: Tap, formats: Formats) -> Tensor:
    """A layer's sums ``[N, F]``, zeros at first; on its device, where no pass waits for them."""
    shape, device = (tap.num_examples, len(formats.formats)), weight_of(tap.layer_module).device
    return sums.setdefault(tap.name, torch.zeros(shape, dtype=torch.float32, device=device))


def _sums(tap: Tap, product: Tensor) -> Tensor:
    """``[N]``, or ``[1]`` where examples share the tensor; see ``ExampleGradients``."""
    split = tap.by_example(product)
    if split is None:
        return product.sum()[None] / sqrt(tap.num_examples)
    return split.flatten(1).sum(dim=1)

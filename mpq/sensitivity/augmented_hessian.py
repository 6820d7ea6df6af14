"""Augmented Hessian: a tensor's own curvature, and what it does together with all the others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.problem.cost_table import INPUTS, WEIGHTS
from mpq.quantization.tensor_format import TensorFormat
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.curvature.hessian_products import (
    Objective,
    SecondOrder,
    Variable,
    objective,
    product,
    second_order,
)
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.hessian_trace import HessianTrace
from mpq.sensitivity.passes.one_device import on_one_device


@final
@dataclass(frozen=True)
class AugmentedHessian(SensitivityEstimator):
    r"""Trace times squared error, plus the terms between a tensor and all other tensors.

    .. math:: s_{tb} = \tfrac12 \frac{\mathrm{Tr}\,H_{tt}}{n_t} \lVert \Delta_{tb} \rVert^2
        + \tfrac12 \Bigl[ \Delta_{tb}^T \sum_{u \ne t} H_{tu} \Delta_{ub} \Bigr]_+, \quad
        s_{\ell b} = s_{W_\ell b} + s_{x_\ell b}

    over tensors ``t``: weights and inputs of layers, each by itself, where all others have the same
    candidate ``b``. In nats per example.

    Schaefer et al. (2023, arXiv:2306.04879) find that a layer's own trace does not order layers
    well, and add what layers do together; how they do is not known to us. Here it is the second
    order of a Taylor series: one product with the whole Hessian gives all sums over ``u`` at once,
    and one with a tensor's own block takes that back, so that it takes a product for every tensor
    and format of it, and one for every candidate. What the others take back (a negative sum) is not
    counted on.

    A product is a second backward pass, through the graph of the first: several forward passes. Of
    a tensor's own block only layers behind it take part, so that a product for every tensor, in
    one format, takes about as long as a quarter as many with all weights. Together: two for each
    probe, ``L / 4`` for every format of weights and of inputs, and one for every candidate; over
    a thousand forward passes in networks of 40 layers, most of them for 50 probes and own blocks.
    Products of several formats in one pass (``is_grads_batched``) take no less.

    Args:
        num_probes: For the traces, as in ``HessianTrace``.
        matrix: Whose traces, as in ``HessianTrace``.
        loss: ``divergence`` or ``cross-entropy`` of the targets.
        seed: Seed of the probes' random signs.
    """

    name: ClassVar[str] = "augmented-hessian"
    summary: ClassVar[str] = "trace x squared error + terms between layers (Augmenting Hessians)"

    num_probes: int = 0
    matrix: str = "gauss-newton"
    loss: str = "divergence"
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self._own  # which checks the options

    @property
    def _own(self) -> HessianTrace:
        return HessianTrace(self.num_probes, self.matrix, self.loss, seed=self.seed)

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``.

        Raises:
            ModelError: If the network's output depends on no layer.
            DataError: If the cross-entropy is asked for and there are no targets.
        """
        own = self._own.estimate(on).table.values
        between = terms_between(on, objective(on.network, self.loss))
        values = own + 0.5 * sum((x.clip(min=0) for x in between.values()), np.zeros(on.shape))
        return Sensitivity(on.table(values, self.name))


def terms_between(on: Estimation, loss: Objective) -> Mapping[str, Array]:
    r"""``[L, B]`` each of :math:`\mathrm{mean}_n \Delta_{tb}^T \sum_{u \ne t} H_{tu} \Delta_{ub}`.

    Args:
        on: Network, examples and candidates.
        loss: Whose Hessian it is.

    Returns:
        By ``WEIGHTS`` and ``INPUTS``, as found: may be negative.
    """
    sums, examples = {what: np.zeros(on.shape) for what in (WEIGHTS, INPUTS)}, 0
    for batch in on.batches("Hessian between layers"):
        with second_order(on.network, batch, loss, on.inputs.is_rounding) as found:
            together, alone = _together(on, found), _alone(on, found)
        for what, formats in (WEIGHTS, on.weights), (INPUTS, on.inputs):
            sums[what] += together[what] - formats.by_candidate(alone[what])
        examples += batch.size
    return {what: values / examples for what, values in sums.items()}


def _together(on: Estimation, found: SecondOrder) -> Mapping[str, Array]:
    r"""``[L, B]`` of :math:`\Delta_{tb}^T \sum_u H_{tu} \Delta_{ub}`, summed over one batch."""
    sums = {what: np.zeros(on.shape) for what in (WEIGHTS, INPUTS)}
    for column in on.tried:
        candidate = on.candidates[column]
        parts = [*_parts(on, found, WEIGHTS, candidate.weight),
                 *_parts(on, found, INPUTS, candidate.activation)]  # fmt: skip
        for part, value in _forms(parts, [parts]):
            sums[part.what][part.row, column] += value
    return sums


def _alone(on: Estimation, found: SecondOrder) -> Mapping[str, Array]:
    r"""``[L, F]`` of :math:`\Delta_t^T H_{tt} \Delta_t`, a product each, summed over one batch."""
    kinds = {WEIGHTS: on.weights, INPUTS: on.inputs}
    sums = {what: np.zeros((on.shape[0], len(x.formats))) for what, x in kinds.items()}
    for what, formats in kinds.items():
        for index, tensor_format in formats.rounding:
            parts = list(_parts(on, found, what, tensor_format))
            for part, value in _forms(parts, [[part] for part in parts]):
                sums[what][part.row, index] += value
    return sums


@final
@dataclass(frozen=True, eq=False)
class _Part:
    """A tensor in one batch, a weight or all that a layer reads, and its error in a format."""

    row: int
    what: str
    variables: Sequence[Variable]
    changes: Sequence[Tensor]


def _forms(parts: Sequence[_Part], groups: Sequence[Sequence[_Part]]) -> list[tuple[_Part, float]]:
    """Every tensor's error times its share of the product that its group has with the Hessian."""
    forms = []
    for group in groups:
        variables = [variable for part in group for variable in part.variables]
        shares = iter(product(variables, [change for part in group for change in part.changes]))
        for part in group:
            # In float64, because terms of both signs cancel.
            along = [(change, next(shares)) for change in part.changes]
            forms.append(torch.stack([(c.double() * h.double()).sum() for c, h in along]).sum())
    # All at once: a number at a time would wait for the device at each.
    values = on_one_device(forms).cpu().tolist() if forms else []
    return list(zip(parts, values, strict=True))


def _parts(
    on: Estimation, found: SecondOrder, what: str, tensor_format: TensorFormat
) -> Iterator[_Part]:
    if tensor_format.is_exact:
        return
    for row, name in enumerate(on.names):
        if what == WEIGHTS and name in found.weights:
            error = on.rounded_weight(name, tensor_format) - on.network.weight(name)
            yield _Part(row, what, [found.weights[name]], [error])
        if what == INPUTS and (calls := found.inputs.get(name, ())):
            read = [call.tensor.detach() for call in calls]
            errors = [on.rounded_input(name, x, tensor_format) - x for x in read]
            yield _Part(row, what, calls, errors)

"""Augmented Hessian: a tensor's own curvature, and what it does together with all the others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.problem.cost_table import INPUTS, WEIGHTS
from mpq.quantization.precision import Precision
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
    and candidate, and one more for the candidate. What the others take back (a negative sum) is not
    counted on.

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
            for column in on.tried:
                for part, value in _between(on, found, on.candidates[column]):
                    sums[part.what][part.row, column] += value
        examples += batch.size
    return {what: values / examples for what, values in sums.items()}


@final
@dataclass(frozen=True, eq=False)
class _Part:
    """A tensor in one batch, a weight or all that a layer reads, and its error at a candidate."""

    row: int
    what: str
    variables: Sequence[Variable]
    changes: Sequence[Tensor]


def _between(
    on: Estimation, found: SecondOrder, candidate: Precision
) -> Iterator[tuple[_Part, float]]:
    """Every tensor that the candidate rounds, with its sum over one batch."""
    parts = list(_parts(on, found, candidate))
    if not parts:
        return
    variables = [variable for part in parts for variable in part.variables]
    joint = iter(product(variables, [change for part in parts for change in part.changes]))
    forms = []
    for part in parts:
        alone = product(part.variables, part.changes)
        # In float64, because the two nearly cancel where layers have little to do with each other.
        forms.append(torch.stack([
            (change.double() * (next(joint).double() - h.double())).sum()
            for change, h in zip(part.changes, alone, strict=True)
        ]).sum())  # fmt: skip
    # All at once: a number at a time would wait for the device at each.
    yield from zip(parts, on_one_device(forms).cpu().tolist(), strict=True)


def _parts(on: Estimation, found: SecondOrder, candidate: Precision) -> Iterator[_Part]:
    for row, name in enumerate(on.names):
        if name in found.weights and not candidate.weight.is_exact:
            rounded = on.rounded_weight(name, candidate.weight)
            yield _Part(row, WEIGHTS, [found.weights[name]], [rounded - on.network.weight(name)])
        calls = found.inputs.get(name, ())
        if calls and not candidate.activation.is_exact:
            read = [call.tensor.detach() for call in calls]
            errors = [on.rounded_input(name, x, candidate.activation) - x for x in read]
            yield _Part(row, INPUTS, calls, errors)

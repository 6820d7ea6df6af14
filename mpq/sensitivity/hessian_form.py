"""Hessian form: the second-order change of the loss, for every layer and precision."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from torch import Tensor

from mpq._support.arrays import Array
from mpq.quantization.precision import Precision
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.curvature.hessian_products import (
    LOSSES,
    Objective,
    SecondOrder,
    Variable,
    check_option,
    objective,
    product,
    second_order,
)
from mpq.sensitivity.estimation import Estimation


@final
@dataclass(frozen=True)
class HessianForm(SensitivityEstimator):
    r"""Second-order Taylor term of what rounding one layer does, without a model of the error.

    .. math:: s_{\ell b} = \tfrac12 \, \mathrm{mean}_n \,
            \Delta_{n \ell b}^T H_{n \ell} \Delta_{n \ell b}, \quad
        \Delta_{n \ell b} = (Q_b(W_\ell) - W_\ell,\; Q_b(x_{n \ell}) - x_{n \ell})

    in nats per example, where ``H`` is the Hessian of the loss in the layer's weight and input
    jointly: their errors add up or cancel as they do. Exact, by one product with the Hessian for
    each cell, so ``L * B`` of them; ``sketch`` estimates the same numbers from one backward pass.
    With the divergence from the original network, whose gradient is 0, this is all of the loss to
    second order. With the cross-entropy of the targets the first-order term, the gradient times
    the change, is left out, and a cell that is negative counts as 0.

    References: the diagonal of the quadratic form in CLADO, Deng et al. (2023), arXiv:2307.05657,
    and in Schaefer et al. (2023), Augmenting Hessians with inter-layer dependencies,
    arXiv:2306.04879, whose off-diagonal blocks this leaves out.

    Args:
        loss: ``divergence`` or ``cross-entropy`` of the targets.
    """

    name: ClassVar[str] = "hessian-form"
    summary: ClassVar[str] = "exact second-order change of the loss, L x B Hessian products"
    prices_caches: ClassVar[bool] = True

    loss: str = "divergence"

    def __post_init__(self) -> None:
        check_option("loss", self.loss, LOSSES)

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``.

        Raises:
            ModelError: If the network's output depends on no layer.
            DataError: If the cross-entropy is asked for and there are no targets.
        """
        forms = quadratic_forms(on, objective(on.network, self.loss))
        # Clipped after the mean over all data: batch by batch, noise would only be counted upwards.
        return Sensitivity(on.table(0.5 * forms.clip(min=0), self.name))


def quadratic_forms(on: Estimation, loss: Objective) -> Array:
    r"""``[L, B]`` of :math:`\mathrm{mean}_n \Delta^T H \Delta`, as found: may be negative."""
    total, examples = np.zeros(on.shape), 0
    for batch in on.batches("Hessian forms"):
        with second_order(on.network, batch, loss, on.inputs.is_rounding) as found:
            for row, name in enumerate(on.names):
                for column in on.tried:
                    changes = _changes(on, name, on.candidates[column], found)
                    total[row, column] += _form(list(changes))
        examples += batch.size
    return total / examples


def _changes(
    on: Estimation, name: str, candidate: Precision, found: SecondOrder
) -> Iterator[tuple[Variable, Tensor]]:
    """What a precision changes of one layer in one batch."""
    # What a format leaves as it is needs no product.
    if name in found.weights and not candidate.weight.is_exact:
        rounded = on.rounded_weight(name, candidate.weight)
        yield found.weights[name], rounded - on.network.weight(name)
    if not candidate.activation.is_exact:
        for call in found.inputs[name]:
            x = call.tensor.detach()
            yield call, on.rounded_input(name, x, candidate.activation) - x


def _form(changes: list[tuple[Variable, Tensor]]) -> float:
    vectors = [change for _, change in changes]
    products = product([variable for variable, _ in changes], vectors)
    pairs = zip(vectors, products, strict=True)
    # In float64, because terms of both signs cancel in v^T H v.
    return sum(float((v.double() * h.double()).sum()) for v, h in pairs)

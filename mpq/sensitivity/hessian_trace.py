"""Hessian trace: mean curvature of a layer times the squared error of rounding."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch

from mpq.errors import InputError
from mpq.problem.cost_table import INPUTS, WEIGHTS
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.curvature.block_traces import Traces, hutchinson_traces, until_within
from mpq.sensitivity.curvature.gauss_newton import gauss_newton_traces
from mpq.sensitivity.curvature.hessian_products import LOSSES, check_option, objective
from mpq.sensitivity.curvature.pyhessian_backend import BACKENDS, pyhessian_traces, refuse_inputs
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.rounding_errors import channel_errors, input_errors

_MATRICES = ("gauss-newton", "hessian")
_FEW, _MANY = 2, 64
"""Probes by default: of gradient norms, which have hardly any noise, and of Hutchinson's."""


@final
@dataclass(frozen=True)
class HessianTrace(SensitivityEstimator):
    r"""Mean curvature of a layer's weight and input, times the squared error of rounding them.

    .. math:: s_{\ell b} = \tfrac12 \frac{\mathrm{Tr} H_{W_\ell}}{n_\ell}
            \lVert Q_b(W_\ell) - W_\ell \rVert^2
        + \tfrac12 \, \mathrm{mean}_n \frac{\mathrm{Tr} H_{x_{n \ell}}}{m_\ell}
            \; \mathrm{mean}_n \lVert Q_b(x_{n \ell}) - x_{n \ell} \rVert^2

    The second-order Taylor term, provided layers do not interact and rounding errors have no
    preferred direction; in nats per example. Departs from the papers in three ways, each of which
    an option takes back. The loss is the divergence from the original network: its gradient is 0
    and no labels are needed (``loss="cross-entropy"`` takes the papers'). Its Hessian *is* the
    Gauss-Newton matrix, whose traces are squared gradient norms, of which two backward passes
    give all layers' to a few percent and none is negative (``gauss_newton_traces``;
    ``matrix="hessian"`` draws Hutchinson's estimate as the papers do, which is as
    unbiased for a hundred times the work: ``hutchinson_traces``). The factor one half is kept.

    A trace that Hutchinson's estimate finds negative, or that is, counts as 0 in the table:
    ``block_traces`` gives it as it was found. The standard error is that of the traces, given the
    examples.

    References: Dong et al. (2020), HAWQ-V2, arXiv:1911.03852 (traces; activations: section 3.3);
    Yao et al. (2021), HAWQ-V3, arXiv:2011.10680 (times the squared error); Yao et al. (2020),
    PyHessian, arXiv:1912.07145 (``backend="pyhessian"``: weights only).

    Args:
        num_probes: Backward passes, or products with the Hessian (twice as many where inputs are
            rounded, and for each layer with ``pyhessian``); the most if there is a tolerance.
            0: 2 for the Gauss-Newton matrix without a tolerance, 64 otherwise.
        matrix: ``gauss-newton`` or ``hessian``.
        loss: ``divergence`` or ``cross-entropy`` of the targets. Both have the same Gauss-Newton
            matrix, for which no target is read.
        backend: ``mpq``, or ``pyhessian`` for the Hessian.
        tolerance: Stop at this relative standard error of every layer; 0: draw all probes.
        seed: Seed of the probes' random signs.
        inputs: Whether rounded inputs are priced; HAWQ-V3 prices weights alone.
    """

    name: ClassVar[str] = "hessian-trace"
    summary: ClassVar[str] = "HAWQ-V2/V3: curvature trace x squared error, 2 backward passes"
    prices_channels: ClassVar[bool] = True

    num_probes: int = 0
    matrix: str = "gauss-newton"
    loss: str = "divergence"
    backend: str = "mpq"
    tolerance: float = 0.0
    seed: int = 0
    inputs: bool = True

    def __post_init__(self) -> None:
        if self.num_probes < 0:
            raise InputError(
                f"hessian-trace needs num_probes >= 1, or 0 for as many as the matrix needs; got "
                f"{self.num_probes}"
            )
        if not self.tolerance >= 0:
            raise InputError(f"hessian-trace needs tolerance >= 0; got {self.tolerance}")
        check_option("matrix", self.matrix, _MATRICES)
        check_option("loss", self.loss, LOSSES)
        check_option("backend", self.backend, BACKENDS)
        if self.backend == "pyhessian" and self.matrix != "hessian":
            raise InputError("backend='pyhessian' knows the Hessian only; add matrix='hessian'")

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``.

        Raises:
            ModelError: If the network's output depends on no layer.
            DataError: If the Hessian of the cross-entropy is asked for and there are no targets.
            InputError: If ``pyhessian`` is to price inputs.
            MissingDependencyError: If ``pyhessian`` is not installed.
        """
        with_inputs = self.inputs and on.inputs.is_rounding
        traces = block_traces(on, self, with_inputs)
        sizes = np.array([layer.num_weights for layer in on.network.layers])
        # An error without a preferred direction has 1/n of its squared length along each
        # eigenvector: it meets the mean eigenvalue, the trace over n.
        by_channel = channel_errors(on)
        errors = np.stack([found.sum(axis=0) for found in by_channel.values()])
        weight = 0.5 * errors / sizes[:, None]  # [L, B], per unit of trace
        of_input = input_errors(on) if with_inputs else np.zeros(on.shape)  # [L, B]
        values = (
            traces.weight.clip(min=0)[:, None] * weight
            + traces.input.clip(min=0)[:, None] * 0.5 * of_input
        )
        # Both come from the same probes; standard errors add up at most.
        error = traces.weight_error[:, None] * weight + traces.input_error[:, None] * 0.5 * of_input
        # One draw leaves errors of nan, and a table is all finite or not given.
        is_known = bool(np.isfinite(traces.weight_error + traces.input_error).all())
        rates = dict(zip(on.names, 0.5 * traces.weight.clip(min=0) / sizes, strict=True))
        scores = {WEIGHTS: traces.weight / sizes}
        if with_inputs:
            scores[INPUTS] = traces.input
        return Sensitivity(
            on.table(values, self.name, scores=scores),
            standard_error=on.table(error, self.name) if is_known else None,
            channels={n: rates[n] * x for n, x in by_channel.items()} if on.divides else {},
        )


def block_traces(on: Estimation, how: HessianTrace, with_inputs: bool = False) -> Traces:
    """The traces of every layer's blocks, as they were found: Hutchinson's may be negative.

    Args:
        on: ``L`` layers and the examples, with targets if the Hessian of their cross-entropy is
            asked for.
        how: Matrix, loss, backend, probes, tolerance and seed.
        with_inputs: Whether traces of inputs are found, too.
    """
    if how.backend == "pyhessian":
        refuse_inputs(with_inputs)
    # One generator for all rounds: what later rounds draw is independent of the earlier ones.
    generator = torch.Generator().manual_seed(how.seed)
    is_hessian = how.matrix == "hessian"
    default = _MANY if is_hessian or how.tolerance > 0 else _FEW
    # A standard error from very few draws is small by chance too often to stop at it.
    first = 8 if is_hessian else _FEW

    def draw(num_probes: int) -> Traces:
        if not is_hessian:
            return gauss_newton_traces(on, num_probes, generator, with_inputs)
        loss = objective(on.network, how.loss)
        if how.backend == "pyhessian":
            return pyhessian_traces(on, loss, num_probes, generator)
        return hutchinson_traces(on, loss, num_probes, generator, with_inputs)

    return until_within(draw, how.num_probes or default, how.tolerance, first)

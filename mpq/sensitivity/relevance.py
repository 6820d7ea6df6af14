"""Relevance: how much of the answer each layer's input accounts for."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq.errors import InputError
from mpq.network.examples import Batch
from mpq.network.network import Network
from mpq.network.outputs import position_weights
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.importance import importance_table
from mpq.sensitivity.passes.backward_pass import GradientReader, Tap, read_gradients
from mpq.sensitivity.passes.layer_response import response
from mpq.sensitivity.passes.relevance_rules import propagating

_RULES = ("lrp", "gradient")


@final
@dataclass(frozen=True)
class Relevance(SensitivityEstimator):
    r"""A layer's share of the relevance, times the relative squared error of rounding it.

    .. math:: c_\ell = \mathrm{mean}_n \sum_i | R_{n \ell i} |, \quad
        s_{\ell b} = \frac{c_\ell}{\sum_k c_k} \, e_{\ell b}

    for the relevance ``R`` of the numbers that a layer reads (an embedding: of those it gives),
    propagated back from the largest logit by layer-wise relevance propagation, and the relative
    squared error ``e`` of rounding weight and input (``importance_table``). For sequences the mean
    over positions of each position's largest logit is explained; where the metric knows no
    classes, the length of the output. One forward and one backward pass.

    ``c`` is the layer contribution of LRP-QViT, which gives the layers of higher rank more bits.
    We depart from it in the product with an error, which makes a table of it, and in the rules,
    which are AttnLRP's. The unit is ``relative``, not nats: a large contribution need not be a
    sensitive one.

    References: Ranjan and Savakis (2024), LRP-QViT, arXiv:2401.11243; Achtibat et al. (2024),
    AttnLRP, arXiv:2402.05602. The rules: ``mpq.sensitivity.passes.relevance_rules``.

    Args:
        rule: ``lrp``, or ``gradient`` for input times gradient (``R = x g``), which is the same for
            ReLU networks, but for ``epsilon``.
        epsilon: Stabiliser of LRP-epsilon's denominators; above 0.
    """

    name: ClassVar[str] = "relevance"
    summary: ClassVar[str] = "LRP-QViT: share of the relevance x relative error, 1 backward pass"

    rule: str = "lrp"
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.rule not in _RULES:
            raise InputError(f"relevance: rule is {' or '.join(_RULES)}; got {self.rule!r}")
        if not 0 < self.epsilon < float("inf"):
            raise InputError(f"relevance needs epsilon above 0; got {self.epsilon}")

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``; the unit is ``relative``."""
        contributions = _Contributions(on.names)
        is_lrp = self.rule == "lrp"
        for batch in on.batches("relevance"):
            with propagating(on.network.module, self.epsilon) if is_lrp else nullcontext():
                explain(on.network, batch, contributions)
        return Sensitivity(importance_table(on, contributions.shares(), self.name))


def explain(network: Network, batch: Batch, reader: GradientReader) -> None:
    """One forward and one backward pass from what the network answers; a reader gets ``R / x``."""

    def start(outputs: Tensor) -> Tensor:
        weights = position_weights(batch, outputs).unsqueeze(-1)  # [N, P, 1]
        return (answer(network, outputs) * weights).to(outputs.dtype)

    read_gradients(network, batch, reader, start)


def answer(network: Network, outputs: Tensor) -> Tensor:
    """``[N, P, C]``: the gradient of each position's largest logit, or of the output's length."""
    if network.metric.is_classification:
        return torch.zeros_like(outputs).scatter_(-1, outputs.argmax(-1, keepdim=True), 1.0)
    return torch.nn.functional.normalize(outputs, dim=-1)


class _Contributions:
    """Adds up absolute relevance, layer by layer."""

    reads_inputs = True

    def __init__(self, names: Sequence[str]) -> None:
        self._sums = dict.fromkeys(names, 0.0)

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        self._sums[tap.name] += float((x.float() * g.float()).abs().sum(dtype=torch.float64))

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """An embedding reads ids, which have no relevance; its output has."""
        if tap.layer.kind == "embedding":
            self.read_input(tap, response(tap.layer_module, x, None, tap.call), g)

    def shares(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """``[L]``, adding up to 1; zeros if nothing is relevant."""
        sums = np.array(list(self._sums.values()))
        return sums / sums.sum() if sums.sum() > 0 else sums

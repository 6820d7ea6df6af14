"""Layer output error: how far a format moves a layer's own output."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.forward_pass import read_layers
from mpq.sensitivity.passes.layer_response import response, response_changes


@final
@dataclass(frozen=True)
class LayerOutput(SensitivityEstimator):
    r"""Squared error of a layer's output, over the output's squared norm.

    .. math:: s_{\ell b} = \frac{\mathrm{mean}_n \lVert y^{(b)}_{n \ell} - y_{n \ell} \rVert^2}
        {\mathrm{mean}_n \lVert y_{n \ell} \rVert^2}

    with :math:`y^{(b)}` the output for weight and input in the format. Where only the weight is
    rounded the numerator is :math:`\mathrm{tr}(\Delta W \, X^T X \, \Delta W^T)` per example, the
    second moment :math:`X^T X` of the inputs being the Hessian of the layer's squared error: the
    proxy of GPTQ (Frantar et al. 2022, arXiv:2210.17323), by which BAQ allocates bits (Zhang et al.
    2025, arXiv:2506.05664), and, with only its trace, of ``hessian_input_activation`` in NNCF. It
    is computed from outputs, which gives the same number without a matrix of inputs by inputs for
    every layer, and prices a rounded input together with the weight.

    The unit is ``relative``: how much a layer's error matters to the network is not known. The
    division makes layers comparable and is not in the papers; without it (``relative=false``, in
    squared units of each layer's output) errors are theirs.

    Takes one forward pass, and every layer alone once per candidate.

    Args:
        relative: Whether errors are divided by the output's squared norm.
    """

    name: ClassVar[str] = "layer-output"
    summary: ClassVar[str] = "squared error of each layer's own output (GPTQ's Hessian proxy)"
    prices_caches: ClassVar[bool] = True

    relative: bool = True

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``."""
        found = _Errors(on)
        examples = read_layers(on, found.read, "layer outputs")
        errors = np.stack([sums.cpu().numpy() for sums in found.errors.values()])  # [L, B]
        powers = np.array([float(power) for power in found.powers.values()])[:, None]
        # Both are sums over the same examples, so that their number cancels in the ratio.
        values = _ratio(errors, powers) if self.relative else errors / examples
        unit = "relative" if self.relative else "squared_output"
        return Sensitivity(on.table(values, self.name, unit))


class _Errors:
    """Sums over examples of squared changes and of squared outputs."""

    def __init__(self, on: Estimation) -> None:
        self.on = on
        # On each layer's device, so that no pass waits for a transfer.
        shape, weights = len(on.candidates), {name: on.network.weight(name) for name in on.names}
        self.errors = {n: w.new_zeros(shape, dtype=torch.float64) for n, w in weights.items()}
        self.powers = {n: w.new_zeros((), dtype=torch.float64) for n, w in weights.items()}

    def read(self, tap: Tap, x: Tensor, _: Tensor) -> None:
        """See ``LayerReader``."""
        # Not the output of the pass: it has the network's dtype, and the change of that dtype would
        # count as an error of the format.
        original = response(tap.layer_module, x, None, tap.call)
        self.powers[tap.name] += _squared_norm(original)
        for column, change in response_changes(self.on, tap.name, x, original, tap.call):
            self.errors[tap.name][column] += _squared_norm(change)


def _squared_norm(tensor: Tensor) -> Tensor:
    return tensor.square().sum(dtype=torch.float64)


def _ratio(errors: Any, powers: Any) -> Any:
    """0 for a layer whose output is 0, as it then is in every format."""
    return np.divide(errors, powers, out=np.zeros_like(errors), where=powers > 0)

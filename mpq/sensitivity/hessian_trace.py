"""Hessian trace: mean curvature of a layer times the squared error of rounding."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from mpq.calibration import Batch, Calibration
from mpq.errors import InputError
from mpq.model import Network, hooks, weight_of
from mpq.outputs import position_weights
from mpq.precision import Precision
from mpq.progress import track
from mpq.quantization import Quantizer
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator, loss_table


@final
@dataclass(frozen=True)
class HessianTrace(SensitivityEstimator):
    r"""Mean curvature of a layer's weight and input, times the squared error of rounding them.

    .. math:: s_{\ell b} = \tfrac12 \frac{\mathrm{Tr} H_{W_\ell}}{n_\ell}
            \lVert Q_b(W_\ell) - W_\ell \rVert^2
        + \tfrac12 \, \mathrm{mean}_n \frac{\mathrm{Tr} H_{x_{n \ell}}}{m_\ell}
            \; \mathrm{mean}_n \lVert Q_b(x_{n \ell}) - x_{n \ell} \rVert^2

    The second-order Taylor term, provided layers do not interact and rounding errors have no
    preferred direction. Departs from the papers in three ways. The loss is the KL divergence from
    the original network: its gradient is 0, no labels are needed, the unit is nats per example, and
    its Hessian *is* the Gauss-Newton matrix. So the trace is :math:`E \lVert g \rVert^2` for the
    gradient ``g`` of :math:`\langle u, f \rangle` (``mpq.divergence.fisher_probe``): one backward
    pass per probe serves every layer, never gives a negative trace, and has none of the noise that
    cross terms between layers bring into Hutchinson's estimator. The factor one half is kept.

    References: Dong et al. (2020), HAWQ-V2, arXiv:1911.03852 (traces; activations: section 3.3);
    Yao et al. (2021), HAWQ-V3, arXiv:2011.10680 (times the squared error).

    Args:
        num_probes: Random sign vectors per batch.
        seed: Of the signs.
    """

    name: ClassVar[str] = "hessian-trace"
    summary: ClassVar[str] = (
        "HAWQ-V2/V3: curvature trace x squared error, num_probes backward passes"
    )

    num_probes: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_probes < 1:
            raise InputError(f"hessian-trace needs num_probes >= 1; got {self.num_probes}")

    def estimate(
        self,
        network: Network,
        data: Calibration,
        quantizer: Quantizer,
        choices: Sequence[Precision],
    ) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``."""
        generator = torch.Generator().manual_seed(self.seed)
        is_input_rounded = any(not choice.activation.is_exact for choice in choices)
        found = _Curvature(network, quantizer, choices, is_input_rounded)
        for batch in track(network.batches(data), "Hessian trace", data.num_batches):
            found.add(batch, self.num_probes, generator)
        values = found.of_weights(network, quantizer, choices)
        if is_input_rounded:
            values += found.of_inputs(choices)
        return Sensitivity(loss_table(network, choices, values, self.name))


class _Curvature:
    """Sums over examples of block traces and of the inputs' squared errors."""

    def __init__(
        self,
        network: Network,
        quantizer: Quantizer,
        choices: Sequence[Precision],
        is_input_rounded: bool,
    ) -> None:
        self.network = network
        self.quantizer = quantizer
        self.names = [layer.name for layer in network.layers]
        self.formats = tuple(dict.fromkeys(choice.activation for choice in choices))
        self.is_input_rounded = is_input_rounded
        self.weight_traces = np.zeros(len(self.names))
        self.input_traces = np.zeros(len(self.names))  # each divided by its elements per example
        self.input_errors = np.zeros((len(self.names), len(self.formats)))
        self.examples = 0

    def add(self, batch: Batch, num_probes: int, generator: torch.Generator) -> None:
        """Adds the traces of one batch."""
        inputs: dict[str, list[Tensor]] = {name: [] for name in self.names}
        with self._differentiable(inputs), torch.enable_grad():
            outputs = self.network.outputs(batch)
            shares = position_weights(batch, outputs)
            weights = self._distinct_weights()
            variables = [*weights.values(), *(x for name in self.names for x in inputs[name])]
            for _ in range(num_probes):
                probe = self.network.metric.probe(outputs.detach(), shares, generator)
                gradients = torch.autograd.grad(
                    outputs, variables, probe, retain_graph=True, materialize_grads=True
                )
                squares = [float(g.double().square().sum()) for g in gradients]
                self._add_traces(squares, list(weights), inputs, batch.size, num_probes)
        self.examples += batch.size
        if self.is_input_rounded:
            self._add_errors(inputs)

    def _distinct_weights(self) -> dict[int, nn.Parameter]:
        return {id(w): w for w in (weight_of(self.network.site(name)) for name in self.names)}

    def _add_traces(
        self,
        traces: list[float],
        weight_ids: list[int],
        inputs: dict[str, list[Tensor]],
        batch_size: int,
        num_probes: int,
    ) -> None:
        of_weight = dict(zip(weight_ids, traces[: len(weight_ids)], strict=True))
        rest = iter(traces[len(weight_ids) :])
        for row, layer in enumerate(self.network.layers):
            if layer.weight_of is None:  # a shared parameter counts once
                weight = weight_of(self.network.site(layer.name))
                self.weight_traces[row] += of_weight[id(weight)] / num_probes
            elements = sum(x.numel() for x in inputs[layer.name]) / batch_size
            for _ in inputs[layer.name]:
                self.input_traces[row] += next(rest) / num_probes / elements

    def _add_errors(self, inputs: dict[str, list[Tensor]]) -> None:
        for row, name in enumerate(self.names):
            site = self.network.site(name)
            for column, tensor_format in enumerate(self.formats):
                for x in inputs[name]:
                    x = x.detach()
                    change = self.quantizer.activation(name, site, x, tensor_format) - x
                    self.input_errors[row, column] += float(change.double().square().sum())

    def of_weights(
        self, network: Network, quantizer: Quantizer, choices: Sequence[Precision]
    ) -> Any:
        """``[L, B]`` share of the weights in nats."""
        values = np.zeros((len(self.names), len(choices)))
        for row, name in enumerate(self.names):
            weight, site = network.weight(name), network.site(name)
            mean_trace = self.weight_traces[row] / self.examples / weight.numel()
            for column, choice in enumerate(choices):
                change = (quantizer.weight(name, site, choice.weight) - weight).double()
                values[row, column] = 0.5 * mean_trace * float(change.square().sum())
        return values

    def of_inputs(self, choices: Sequence[Precision]) -> Any:
        """``[L, B]`` share of the inputs in nats."""
        errors = self.input_errors / self.examples  # [L, formats], per example
        shares = 0.5 * (self.input_traces / self.examples)[:, None] * errors
        return shares[:, [self.formats.index(choice.activation) for choice in choices]]

    @contextmanager
    def _differentiable(self, inputs: dict[str, list[Tensor]]) -> Iterator[None]:
        """Weights and layer inputs are variables; inputs are collected."""
        handles = []
        weights = self._distinct_weights().values()
        for name in self.names:
            site = self.network.site(name)
            if self.is_input_rounded:
                handles.append(site.register_forward_pre_hook(_keep(inputs[name])))
        try:
            for weight in weights:
                weight.requires_grad_(True)
            with hooks(handles):
                yield
        finally:
            for weight in weights:
                weight.requires_grad_(False)


def _keep(kept: list[Tensor]) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        if not x.is_floating_point():
            return args
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        kept.append(x)
        return (x, *args[1:])

    return hook

"""Output sketch: one backward pass that prices every layer at every precision, together."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq.calibration import Batch, Calibration
from mpq.errors import InputError
from mpq.interactions import Interactions
from mpq.model import Network, weight_of
from mpq.outputs import position_weights
from mpq.precision import Precision, TensorFormat
from mpq.progress import track
from mpq.quantization import Quantizer
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator, loss_table
from mpq.sensitivity.gradients import Tap, read_gradients
from mpq.sensitivity.per_example import weight_gradients

_WORK_ELEMENTS = 2**22
"""Numbers (16 MiB in float32) that one step over examples may spread out: per-example gradients,
or what a convolution's kernel meets. Larger buffers are slower: they are new memory every time."""


@final
@dataclass(frozen=True)
class OutputSketch(SensitivityEstimator):
    r"""Second-order change of the output, projected on random signs per example.

    .. math::
        R_{n \ell b} = \langle g^{W}_{n \ell}, Q_b(W_\ell) - W_\ell \rangle
            + \langle g^{x}_{n \ell}, Q_b(x_{n \ell}) - x_{n \ell} \rangle, \quad
        s_{\ell b} = \tfrac12 \, \mathrm{mean}_n R_{n \ell b}^2

    where ``g`` are the gradients of :math:`\langle u_n, f_n \rangle` for the logits ``f`` and a
    probe ``u`` with :math:`E[u u^T]` the Fisher information of the softmax
    (``mpq.divergence.fisher_probe``). So ``s`` estimates, without bias, the KL divergence to second
    order in the change of the logits and first order in the change of the layer, in nats per
    example. For sequences, signs are drawn per position and positions are averaged. One forward
    and one backward pass price all layers at all precisions.

    A layer that all examples of a batch share (a relative position bias), or of which each reads a
    varying share (an expert), is sketched once per batch instead of once per example; its
    interactions with other layers then come out too small, by the root of the batch size.

    With interactions, :math:`\tfrac12 \mathrm{mean}_n (\sum_\ell R_{n \ell z_\ell})^2` prices an
    assignment ``z``: errors of different layers add up or cancel.

    Our own; the Gauss-Newton matrix behind it is that of Martens (2020), arXiv:1412.1193, and its
    unbiased low-rank sketch by random signs is Hutchinson's (1990, doi:10.1080/03610919008812866).

    Args:
        num_probes: Backward passes per batch, ``K``; more examples serve better than more probes.
        interactions: Whether the factor ``R [N K, L, B]`` is returned as well.
        seed: Of the signs.
    """

    name: ClassVar[str] = "sketch"
    summary: ClassVar[str] = "output sketch: KL to second order, 1 forward + 1 backward (default)"

    num_probes: int = 1
    interactions: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_probes < 1:
            raise InputError(f"sketch needs num_probes >= 1; got {self.num_probes}")

    def estimate(
        self,
        network: Network,
        data: Calibration,
        quantizer: Quantizer,
        choices: Sequence[Precision],
    ) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``."""
        generator = torch.Generator().manual_seed(self.seed)
        sketch = _Sketch(network, quantizer, choices)
        rows = [
            sketch.batch(batch, generator)
            for batch in track(network.batches(data), "output sketch", data.num_batches)
            for _ in range(self.num_probes)
        ]
        factor = np.concatenate(rows)  # [S, L, B]
        table = loss_table(network, choices, 0.5 * np.mean(factor**2, axis=0), self.name)
        return Sensitivity(table, Interactions(factor) if self.interactions else None)


class _Sketch:
    """Collects ``R`` while a backward pass runs."""

    def __init__(
        self, network: Network, quantizer: Quantizer, choices: Sequence[Precision]
    ) -> None:
        self.network = network
        self.quantizer = quantizer
        self.weight_formats = tuple(dict.fromkeys(choice.weight for choice in choices))
        self.input_formats = tuple(dict.fromkeys(choice.activation for choice in choices))
        self.weight_column = [self.weight_formats.index(choice.weight) for choice in choices]
        self.input_column = [self.input_formats.index(choice.activation) for choice in choices]
        self.changes = {
            layer.name: self._weight_changes(layer.name)
            for layer in track(network.layers, "rounded weights")
        }
        self.by_weight: dict[str, Tensor] = {}  # layer to [N, weight formats]
        self.by_input: dict[str, Tensor] = {}  # layer to [N, input formats]

    def _weight_changes(self, name: str) -> Tensor:
        """``[D, weight formats]``: what each format does to the weight."""
        weight, site = self.network.weight(name), self.network.site(name)
        changes = [self.quantizer.weight(name, site, f) - weight for f in self.weight_formats]
        return torch.stack([change.flatten() for change in changes], dim=1).float()

    def batch(self, batch: Batch, generator: torch.Generator) -> Any:
        """``[N, L, B]`` of one batch and one probe, float64."""
        layers = self.network.layers
        for layer in layers:
            self.by_weight[layer.name] = torch.zeros(batch.size, len(self.weight_formats))
            self.by_input[layer.name] = torch.zeros(batch.size, len(self.input_formats))

        def probe(outputs: Tensor) -> Tensor:
            weights = position_weights(batch, outputs)
            return self.network.metric.probe(outputs, weights, generator)

        read_gradients(self.network, batch, self, probe)
        rows = [
            self.by_weight[layer.name][:, self.weight_column]
            + self.by_input[layer.name][:, self.input_column]
            for layer in layers
        ]
        return torch.stack(rows, dim=1).double().numpy()

    @property
    def reads_inputs(self) -> bool:
        """Where an activation is rounded."""
        return any(not f.is_exact for f in self.input_formats)

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        found = self.by_input[tap.name]
        for column, tensor_format in enumerate(self.input_formats):
            if not tensor_format.is_exact:
                found[:, column] += self._input_share(tap, x, g, tensor_format)

    def _input_share(self, tap: Tap, x: Tensor, g: Tensor, tensor_format: TensorFormat) -> Tensor:
        change = self.quantizer.activation(tap.name, tap.site, x, tensor_format) - x
        product = (change * g).float()
        split = tap.by_example(product)
        if split is None:
            return product.sum().cpu() / sqrt(tap.num_examples)
        return split.flatten(1).sum(dim=1).cpu()

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        found = self.by_weight[tap.name]
        inputs, outputs = tap.by_example(x), tap.by_example(g)
        if inputs is None or outputs is None:
            # Signs of different examples are independent, so that the square of the sum over the
            # batch is, in the mean, the sum of the squares: spread evenly, it counts as such.
            found += self._weight_shares(tap, x[None], g[None]) / sqrt(tap.num_examples)
            return
        met = inputs[0].numel() * prod(weight_of(tap.site).shape[2:])
        step = max(1, _WORK_ELEMENTS // max(met, len(self.changes[tap.name])))
        for start in range(0, tap.num_examples, step):
            part = slice(start, start + step)
            found[part] += self._weight_shares(tap, inputs[part], outputs[part])

    def _weight_shares(self, tap: Tap, x: Tensor, g: Tensor) -> Tensor:
        """``[N, weight formats]`` for the inputs and output gradients of ``N`` examples."""
        gradients = weight_gradients(tap.site, x, g.float())  # [N, D]
        return (gradients @ self.changes[tap.name]).cpu()

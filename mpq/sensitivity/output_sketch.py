"""Output sketch: one backward pass that prices every layer at every precision, together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from mpq.calibration import Batch, Calibration
from mpq.divergence import fisher_probe
from mpq.errors import InputError, ModelError
from mpq.interactions import Interactions
from mpq.model import Network, hooks, weight_of
from mpq.outputs import position_weights
from mpq.precision import Precision, TensorFormat
from mpq.progress import track
from mpq.quantization import Quantizer
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator, loss_table
from mpq.sensitivity.per_example import by_example, weight_gradients

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
        with self._collecting(batch.size), torch.enable_grad():
            logits = self.network.logits(batch)
            if not logits.requires_grad:
                raise ModelError("the output does not depend on any quantizable layer")
            probe = fisher_probe(logits, position_weights(batch, logits), generator)
            logits.backward(probe)
        rows = [
            self.by_weight[layer.name][:, self.weight_column]
            + self.by_input[layer.name][:, self.input_column]
            for layer in layers
        ]
        return torch.stack(rows, dim=1).double().numpy()

    @contextmanager
    def _collecting(self, size: int) -> Iterator[None]:
        handles = []
        for layer in self.network.layers:
            site = self.network.site(layer.name)
            tap = _Tap(self, layer.name, site, size, layer.batch_axis)
            handles += [
                site.register_forward_pre_hook(tap.before),
                site.register_forward_hook(tap.after),
            ]
        with hooks(handles):
            yield


@dataclass
class _Tap:
    """What happens at one layer: remember the input, use the gradients as they come."""

    sketch: _Sketch
    name: str
    site: nn.Module
    size: int
    batch_axis: int

    def before(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        if not x.is_floating_point():
            return args
        # A node of its own, so that the gradient is this layer's share only: others may read x.
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        if any(not f.is_exact for f in self.sketch.input_formats):
            x.register_hook(partial(self.use_input_gradient, x.detach()))
        return (x, *args[1:])

    def after(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not output.requires_grad:  # an embedding; the clone may be changed in place
            output = output.detach().requires_grad_().clone()
        if len(output) == 1 < self.size:  # position ids: one row for all, read by each example
            output = output.expand(self.size, *output.shape[1:])
            args = (args[0].expand(self.size, *args[0].shape[1:]), *args[1:])
        x, version = args[0].detach(), args[0]._version

        def use(g: Tensor) -> None:
            if x._version != version:
                raise ModelError(
                    f"the input of layer {self.name!r} is changed in place after the layer read "
                    "it, so that its gradient is lost; make that operation not in place"
                )
            self.use_output_gradient(x, g)

        output.register_hook(use)
        return output

    def by_example(self, tensor: Tensor) -> Tensor | None:
        return by_example(tensor, self.size, self.batch_axis)

    def use_input_gradient(self, x: Tensor, g: Tensor) -> None:
        found = self.sketch.by_input[self.name]
        for column, tensor_format in enumerate(self.sketch.input_formats):
            if not tensor_format.is_exact:
                found[:, column] += self._input_share(x, g, tensor_format)

    def _input_share(self, x: Tensor, g: Tensor, tensor_format: TensorFormat) -> Tensor:
        change = self.sketch.quantizer.activation(self.name, self.site, x, tensor_format) - x
        product = (change * g).float()
        split = self.by_example(product)
        if split is None:
            return product.sum().cpu() / sqrt(self.size)
        return split.flatten(1).sum(dim=1).cpu()

    def use_output_gradient(self, x: Tensor, g: Tensor) -> None:
        found = self.sketch.by_weight[self.name]
        inputs, outputs = self.by_example(x), self.by_example(g.detach())
        if inputs is None or outputs is None:
            # Signs of different examples are independent, so that the square of the sum over the
            # batch is, in the mean, the sum of the squares: spread evenly, it counts as such.
            found += self._weight_shares(x[None], g.detach()[None]) / sqrt(self.size)
            return
        met = inputs[0].numel() * prod(weight_of(self.site).shape[2:])
        step = max(1, _WORK_ELEMENTS // max(met, len(self.sketch.changes[self.name])))
        for start in range(0, self.size, step):
            part = slice(start, start + step)
            found[part] += self._weight_shares(inputs[part], outputs[part])

    def _weight_shares(self, x: Tensor, g: Tensor) -> Tensor:
        """``[N, weight formats]`` for the inputs and output gradients of ``N`` examples."""
        gradients = weight_gradients(self.site, x, g.float())  # [N, D]
        return (gradients @ self.sketch.changes[self.name]).cpu()

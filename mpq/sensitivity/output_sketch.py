"""Output sketch: one backward pass that prices every layer at every precision, together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, sqrt
from typing import ClassVar, final

import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.errors import InputError
from mpq.network.examples import Batch
from mpq.network.network import Network
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import quantized
from mpq.quantization.tensor_format import TensorFormat
from mpq.sensitivity._base import DivisibleEstimator, RefinableEstimator, Sensitivity
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap, read_gradients
from mpq.sensitivity.passes.channel_model import ChannelModel, channel_losses
from mpq.sensitivity.passes.channel_prices import ChannelPrices
from mpq.sensitivity.passes.channel_products import ChannelProducts
from mpq.sensitivity.passes.checkpoint import Resumable, left_batches
from mpq.sensitivity.passes.factor_rows import FactorRows
from mpq.sensitivity.passes.one_device import on_one_device
from mpq.sensitivity.passes.probes import TEMPERATURE, Probes
from mpq.sensitivity.passes.slopes import Slopes
from mpq.sensitivity.passes.step_squares import StepSquares
from mpq.sensitivity.passes.units import OF_OUTPUTS
from mpq.sensitivity.passes.weight_changes import PassProducts, WeightChanges, add_products
from mpq.sensitivity.passes.weight_gradients import CallGradients

_CACHED_ELEMENTS = 2**18
"""Numbers (1 MiB in float32) of an input that are rounded at once: nine passes over them stay in
a core's cache, where passes over a whole batch wait for memory."""
_HELD_BYTES = 2**27
"""Gradients of layers' outputs that wait for those of further probes."""
_GROUP, _MIN_ROWS = 4, 256
"""Examples are sketched in groups of four, whose probes have independent signs, where so many rows
remain: a convolution's weight gradient of a group costs less than those of each example."""
_FEW = 32
"""Rows below which more probes are drawn: a mean of squares of so few numbers is a matter of luck
(of one graph, a single number), and passes over few examples are quick."""


@final
@dataclass(frozen=True)
class OutputSketch(RefinableEstimator, DivisibleEstimator):
    r"""Second-order change of the output, projected on random signs per example.

    .. math::
        R_{n \ell b} = \langle g^{W}_{n \ell}, Q_b(W_\ell) - W_\ell \rangle
            + \langle g^{x}_{n \ell}, Q_b(x_{n \ell}) - x_{n \ell} \rangle, \quad
        s_{\ell b} = \tfrac12 \, \mathrm{mean}_n R_{n \ell b}^2

    where ``g`` are the gradients of :math:`\langle u_n, f_n \rangle` for the logits ``f`` and a
    probe ``u`` with :math:`E[u u^T]` the Fisher information of the softmax
    (``mpq.network.divergence.fisher_probe``). So ``s`` estimates the KL divergence (without bias
    where the temperature is 1, else with another weight of examples and classes, see below) to
    second order in the change of the logits and first order in the change of the layer, in nats
    per example. For sequences, signs are drawn per position and positions are averaged. One forward
    and one backward pass price all layers at all precisions.

    A layer that all examples of a batch share (a relative position bias), or of which each reads a
    varying share (an expert), is sketched once per batch instead of once per example; its
    interactions with other layers then come out too small, by the root of the batch size.

    Interactions price an assignment ``z`` as a whole: errors of different layers add up or cancel
    in :math:`\tfrac12 \mathrm{mean}_n (\sum_\ell R_{n \ell z_\ell})^2`. What few examples say of
    pairs of layers is noisy, and is shrunk by an amount in closed form (``FactorRows.shrinkage``).

    Where codes of weights were made to fit the calibration examples, what errors of different
    channels and layers do together on these examples is what they were fitted to. With
    ``channels`` the price is a geometric mean of ``s`` and of ``c``, the sum over output channels
    each by itself (``ChannelPrices``), :math:`s^{1 - a} c^a`, and there are no interactions unless
    a shrinkage is given. On some networks that is better (docs/rounding.md); without ``channels``
    ``c`` is returned beside ``s``, as ``by_channels``.

    A network that is sure of its calibration examples gives gradients from few of them: the
    probabilities behind the probe are softened by a temperature (``KLDivergence``); the table keeps
    the scale of the plain divergence at the output.

    ``estimate_at`` expands the loss around an incumbent assignment ``f'``, with gradients that pass
    straight through rounded activations: the loss that it has, the slope
    :math:`\langle \nabla_{f'} D(f, f'), J \Delta \rangle` from a second backward pass, softened and
    scaled as the probes are, and the curvature from probes at ``f'``. (A slope from the residual
    :math:`u_n^T (f' - f)` times each row would save that pass, but has the noise of the signs.)

    Our own; the Gauss-Newton matrix behind it is that of Martens (2020), arXiv:1412.1193, and its
    unbiased low-rank sketch by random signs is Hutchinson's (1990, doi:10.1080/03610919008812866).

    Args:
        num_probes: Backward passes per batch, ``K``; more examples serve better than more probes.
            0: one, and with few examples as many as give 32 rows.
        temperature: Divides the logits that the probe's probabilities are of.
        interactions: Whether the factor ``R`` is returned as well as the additive table.
        shrinkage: Share of the interactions that is left out, from 0 to 1; ``None``: in closed
            form, and all of it where prices are by channels.
        channels: The share ``a`` that channels by themselves have in a price, from 0 to 1.
        seed: Seed of the probes' random signs.
    """

    name: ClassVar[str] = "sketch"
    summary: ClassVar[str] = "output sketch with interactions, 1 forward + 1 backward"
    prices_channels: ClassVar[bool] = True
    prices_caches: ClassVar[bool] = True

    num_probes: int = 0
    temperature: float = TEMPERATURE
    interactions: bool = True
    shrinkage: float | None = None
    channels: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_probes < 0:
            raise InputError(
                "sketch needs num_probes >= 1, or 0 for as many as the examples need; got "
                f"{self.num_probes}"
            )
        if not self.temperature > 0:
            raise InputError(f"a temperature is positive; got {self.temperature}")
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise InputError(f"sketch needs a shrinkage from 0 to 1; got {self.shrinkage}")
        if not 0 <= self.channels <= 1:
            raise InputError(f"sketch needs channels from 0 to 1, a share; got {self.channels}")

    def for_examples(self, num_examples: int) -> "OutputSketch":
        """See ``SensitivityEstimator.for_examples``: with as many probes."""
        return replace(self, num_probes=self.num_probes or max(1, ceil(_FEW / num_examples)))

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``."""
        return self.estimate_at(on, {})

    def collect(self, on: Estimation) -> None:
        """See ``DivisibleEstimator.collect``."""
        self._collected(on, {})

    def estimate_at(self, on: Estimation, incumbent: Mapping[str, Precision]) -> Sensitivity:
        """See ``RefinableEstimator.estimate_at``."""
        rows, channels, probes, slopes, model, squares = self._collected(on, incumbent)
        # Lengths of probes have been added up over all batches only here.
        rows.scale = probes.scale
        share = self.channels
        if share and any(on.units(name) != OF_OUTPUTS for name in on.names):
            raise InputError(
                f"prices by channels (sketch:channels={share}) are not of {on.split}: leave "
                "channels, or --split, out"
            )
        of_channels = channels.table(probes.scale, on.weights.columns)
        alone = rows.table ** (1 - share) * of_channels**share
        slope = slopes.table(probes.scale) / on.data.num_examples
        has_pairs = self.interactions and (share == 0 or self.shrinkage is not None)
        pairs = rows.interactions(self.shrinkage) if has_pairs else None
        table = on.table(alone + slope, self.name)
        parts = {} if model is None else channel_losses(on, channels, probes.scale, model)
        steps = None if squares is None else squares.shares()
        if share or incumbent or not on.quantizer.stored:
            return Sensitivity(table, pairs, channels=parts, steps=steps)
        other = on.table(of_channels, self.name)
        return Sensitivity(table, pairs, by_channels=other, channels=parts, steps=steps)

    def _collected(
        self, on: Estimation, incumbent: Mapping[str, Precision]
    ) -> tuple[FactorRows, ChannelPrices, Probes, Slopes, ChannelModel | None, StepSquares | None]:
        """What the batches give."""
        metric, num_examples = on.network.metric, on.data.num_examples
        probes = Probes(metric, self.temperature, self.seed)
        slopes = Slopes(metric, self.temperature, on.shape)
        model = ChannelModel(on.network.layers) if on.divides and not incumbent else None
        rows, sketch = FactorRows(*on.shape), _Sketch(on, incumbent, model)
        running = None if incumbent else on.quantizer.steps
        squares = None if running is None else StepSquares(running, on.shape)
        # Of a group nobody knows the step.
        is_grouped = num_examples >= _GROUP * _MIN_ROWS and squares is None
        group = _GROUP if is_grouped else 1
        num_probes = self.for_examples(num_examples).num_probes
        counts = [num_units(on, name) for name in on.names]
        channels = ChannelPrices(counts, len(on.weights.formats), len(on.candidates))
        parts: dict[str, Resumable] = {
            "rows": rows, "channels": channels, "probes": probes, "slopes": slopes,
        }  # fmt: skip
        parts |= {} if model is None else {"model": model}
        parts |= {} if squares is None else {"squares": squares}
        own = partial(left_batches, parts=parts, division=on.division)
        for batch in on.batches("output sketch", own):
            original = _original(on.network, batch) if incumbent else None
            drawn = [partial(probes.draw, batch, original, number) for number in range(num_probes)]
            passes = sketch.passes(batch, drawn, group)
            if squares is not None:
                squares.add([found.rows for found in passes])
            for found in passes:
                rows.add(found.rows, batch.size)
                channels.add(found.by_weight.values(), found.input_squares, batch)
            if original is not None:
                slope = partial(slopes.draw, batch, original)
                # A slope is linear in the change, so that the batch as one group gives its sum.
                (found,) = sketch.passes(batch, [slope], batch.size)
                slopes.values += found.rows[0]
        return rows, channels, probes, slopes, model, squares


def num_units(on: Estimation, name: str) -> int:
    """Parts of a layer's weight that are priced by themselves."""
    layer = on.network.layers[on.names.index(name)]
    units = on.units(name)
    return units.count(layer.num_channels, layer.num_weights // max(layer.num_channels, 1))


def _original(network: Network, batch: Batch) -> Tensor:
    with torch.no_grad():
        return network.outputs(batch)


@final
@dataclass(frozen=True, eq=False)
class _Pass:
    """What one backward pass says of a batch.

    Args:
        on: The formats of weights and inputs.
        by_weight: Layer to its products.
        by_input: Layer to ``[N, input formats]``.
        group: Consecutive examples in one of the ``S`` groups.
    """

    on: Estimation
    by_weight: dict[str, ChannelProducts]
    by_input: dict[str, Tensor]
    group: int

    @classmethod
    def empty(cls, on: Estimation, num_examples: int, group: int) -> "_Pass":
        """Before anything is read. On each layer's device, so that no pass waits for a transfer."""
        devices = {name: on.network.weight(name).device for name in on.names}
        weights, inputs = len(on.weights.formats), len(on.inputs.formats)
        count = ceil(num_examples / group)
        return cls(
            on,
            {
                name: ChannelProducts(count, num_units(on, name), weights, devices[name])
                for name in on.names
            },
            {
                n: torch.zeros(num_examples, inputs, device=device, dtype=torch.float32)
                for n, device in devices.items()
            },
            group,
        )

    @property
    def rows(self) -> Array:
        """``[S, L, B]``; a row ``S`` is a group of examples."""
        found = self.by_weight.values()
        of_weights = self.on.weights.by_candidate(on_one_device([x.whole for x in found]))
        of_inputs = self.on.inputs.by_candidate(self._of_inputs)
        return (of_weights + of_inputs).transpose(0, 1).cpu().double().numpy()

    @property
    def input_squares(self) -> Array:
        """``[L, B]``."""
        found = self._of_inputs.square().sum(dim=1)
        return self.on.inputs.by_candidate(found).cpu().double().numpy()

    @property
    def _of_inputs(self) -> Tensor:
        """``[L, S, input formats]`` sums over groups."""
        values = on_one_device(self.by_input.values())
        if self.group == 1:
            return values
        return torch.stack([part.sum(dim=1) for part in values.split(self.group, dim=1)], dim=1)


class _Sketch:
    """Collects ``R`` while backward passes run.

    Gradients of several passes wait for each other, so that a weight is rounded for all of them at
    once; where they take more than ``_HELD_BYTES``, for those that wait.
    """

    def __init__(
        self, on: Estimation, incumbent: Mapping[str, Precision], model: ChannelModel | None
    ) -> None:
        self.on = on
        self.incumbent = incumbent
        self.model = model
        # Within ``quantized`` a layer holds another weight; changes are those of the original.
        self.weights = {name: on.network.weight(name) for name in on.names}
        self._passes: list[_Pass] = []
        self._waiting: dict[str, dict[int, list[CallGradients]]] = {}  # layer, pass to its calls
        self._held_bytes: dict[str, int] = {}
        self._is_last = True

    def _weight_changes(self, name: str) -> WeightChanges:
        """What each format does to the incumbent's weight."""
        on, layer_module = self.on, self.on.network.layer_module(name)
        weight, held = self.weights[name], self._held(name).weight
        formats, units = on.weights.formats, on.units(name)
        return WeightChanges(name, layer_module, weight, held, formats, on.quantizer, units)

    def _held(self, name: str) -> Precision:
        return self.incumbent.get(name, ORIGINAL)

    def passes(
        self, batch: Batch, probes: Sequence[Callable[[Tensor], Tensor]], group: int
    ) -> list[_Pass]:
        """A forward pass of a batch, and a backward pass for each probe."""
        self._passes = []

        def begun(probe: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
            self._end_pass()
            self._passes.append(_Pass.empty(self.on, batch.size, group))
            self._is_last = len(self._passes) == len(probes)
            return probe(outputs)

        with quantized(self.on.network, self.incumbent, self.on.quantizer):
            read_gradients(self.on.network, batch, self, *(partial(begun, p) for p in probes))
            for name in list(self._waiting):
                self._multiply(name)
        return self._passes

    def _end_pass(self) -> None:
        """Layers that are called several times are whole only now."""
        if sum(self._held_bytes.values()) > _HELD_BYTES:
            for layer in self.on.network.layers:
                if layer.calls > 1 and layer.name in self._waiting:
                    self._multiply(layer.name)

    def _multiply(self, name: str) -> None:
        """The gradients of a layer that wait, with what formats do to its weight."""
        waiting = self._waiting.pop(name)
        del self._held_bytes[name]
        passes = [PassProducts(self._passes[i].by_weight[name], c) for i, c in waiting.items()]
        with torch.no_grad():
            add_products(passes, self._weight_changes(name), self._passes[-1].group)

    @property
    def reads_inputs(self) -> bool:
        """Where an activation is rounded."""
        # Leaving a format that the incumbent rounds inputs to is a change as well.
        held = (precision.activation for precision in self.incumbent.values())
        return self.on.inputs.is_rounding or any(not f.is_exact for f in held)

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        if not x.numel():
            return  # an expert that is sent nothing
        found = self._passes[-1].by_input[tap.name]
        for column, tensor_format in enumerate(self.on.inputs.formats):
            if tensor_format != self._held(tap.name).activation:
                share = self._input_share(tap, x, g, tensor_format)
                found[:, column] += share.to(found.device)

    def _input_share(self, tap: Tap, x: Tensor, g: Tensor, tensor_format: TensorFormat) -> Tensor:
        """``[N]`` for one format."""
        rows = len(x) // tap.num_examples
        # What is below cuts examples off at the front, so that their rows must be consecutive.
        if tap.layer.batch_axis or len(x) % tap.num_examples:
            product = (self._input_change(tap, x, tensor_format) * g).float()
            split = tap.by_example(product)
            if split is None:  # once in every row, as in ``read_output``
                group = self._passes[-1].group
                is_first = torch.arange(tap.num_examples, device=x.device) % group == 0
                return product.sum() * is_first / sqrt(ceil(tap.num_examples / group))
            return split.flatten(1).sum(dim=1)
        # Rounding piece by piece gives the same: no scale that is found in the data spans examples.
        step = max(1, _CACHED_ELEMENTS * tap.num_examples // x.numel())
        # Unless their ranges are by step, which are known of the whole batch.
        step = step if self.on.quantizer.steps is None else tap.num_examples
        found = []
        for some, gradients in zip(x.split(step * rows), g.split(step * rows), strict=True):
            change = self._input_change(tap, some, tensor_format)
            pair = (part.float().reshape(len(some) // rows, -1) for part in (change, gradients))
            found.append(torch.linalg.vecdot(*pair))
        return torch.cat(found)

    def _input_change(self, tap: Tap, x: Tensor, tensor_format: TensorFormat) -> Tensor:
        held = self.on.rounded_input(tap.name, x, self._held(tap.name).activation)
        return self.on.rounded_input(tap.name, x, tensor_format) - held

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        if not x.numel():
            return
        if self.model is not None:
            self.model.add(tap, x, g)
        gradients = tap.weight_gradients(x, g.float())
        calls = self._waiting.setdefault(tap.name, {}).setdefault(len(self._passes) - 1, [])
        calls.append(gradients)
        size = g.numel() * torch.float32.itemsize
        self._held_bytes[tap.name] = self._held_bytes.get(tap.name, 0) + size
        # A recurrent layer is read in every step, and its calls of a pass are multiplied together.
        is_full = self._is_last or sum(self._held_bytes.values()) > _HELD_BYTES
        if is_full and tap.layer.calls == 1:
            self._multiply(tap.name)

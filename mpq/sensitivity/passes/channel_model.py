"""What channels lose by a model of few numbers, which tempers what few examples say of each."""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq._support.progress import track
from mpq.network.layer import Layer
from mpq.network.weight_layout import layout_of
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.channel_prices import ChannelPrices
from mpq.sensitivity.passes.checkpoint import State
from mpq.sensitivity.passes.weight_changes import WeightChanges


@final
class ChannelModel:
    r"""Squared gradients of a layer's outputs, and squared inputs, each channel by itself.

    .. math:: m_{o f} = \sum_n g_{n o}^2 \; \sum_k \sum_n x_{n k}^2 \, (Q_f(W) - W)_{o k}^2

    is what output channel ``o`` loses in format ``f``, up to a factor of the layer, if gradients,
    inputs and errors have nothing to do with each other: the factored Fisher information of Martens
    and Grosse (2015), arXiv:1503.05671, with the diagonals of both factors. Positions of a sequence
    or an image count as examples.

    Known of linear layers and convolutions that compute what torch's do.

    Args:
        layers: ``L`` layers.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = {layer.name: layer for layer in layers if _is_known(layer)}
        self._outputs = dict[str, Tensor]()
        self._inputs = dict[str, Tensor]()

    def add(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """A call of a layer: what it read, and the gradient of its output."""
        layer = self._layers.get(tap.name)
        if layer is None:
            return
        axis = -1 if layer.kind == "linear" else -layer_rank(layer) - 1
        for sums, tensor in ((self._outputs, g), (self._inputs, x)):
            squares = tensor.detach().movedim(axis, 0).flatten(1).float().square()
            found = squares.sum(dim=1, dtype=torch.float64)
            known = sums.get(tap.name)
            sums[tap.name] = found if known is None else known.to(found.device) + found

    def losses(self, changes: WeightChanges) -> Array | None:
        """``[O, F]`` of a layer's weight; ``None`` where the model is not known."""
        layer = self._layers.get(changes.name)
        if layer is None or layer.name not in self._outputs:
            return None
        # Also where they were restored, on the CPU.
        sums = (x[layer.name].to(changes.rows.device) for x in (self._outputs, self._inputs))
        return changes.squares(_counts(layer, changes, *sums)).cpu().numpy()

    @property
    def state(self) -> State:
        """See ``Resumable``."""
        both = (("outputs", self._outputs), ("inputs", self._inputs))
        found = {f"{kind} {n}": x.cpu().numpy() for kind, part in both for n, x in part.items()}
        return found or {"none": np.zeros(0)}

    def restore(self, state: State) -> None:
        """See ``Resumable``."""
        for key, sums in state.items():
            kind, _, name = key.partition(" ")
            if kind != "none":
                part = self._outputs if kind == "outputs" else self._inputs
                part[name] = torch.from_numpy(np.array(sums))


def _is_known(layer: Layer) -> bool:
    is_kind = layer.kind in ("linear", "conv1d", "conv2d", "conv3d")
    return is_kind and not layer.has_own_forward


def layer_rank(layer: Layer) -> int:
    """Axes of a convolution's kernel."""
    return len(layer.weight_shape) - 2


def _counts(layer: Layer, changes: WeightChanges, outputs: Tensor, inputs: Tensor) -> Tensor:
    """``[D]`` in the weight's own layout: what each squared change counts."""
    num_channels, length = changes.rows.shape
    # A channel of a grouped convolution reads the inputs of its group.
    by_group = inputs.view(layer.groups, -1)
    kernel = length // by_group.shape[1]
    read = by_group.repeat_interleave(num_channels // layer.groups, dim=0)
    rows = outputs[:, None] * read.repeat_interleave(kernel, dim=1)
    layout = layout_of(changes.layer_module)
    return layout.from_rows(rows, tuple(changes.original.shape)).flatten()


def tempered(own: Array, variance: Array, model: Array) -> Array:
    r"""Channels' own prices, drawn towards the model as far as they are noisy.

    Both are the true price times an error, so that their logarithms' best mean (up to constants,
    which sums over channels give) has the other one's variance as its weight:

    .. math:: \log p = \frac{v_m \log a + v_a \log m}{v_m + v_a}, \quad
        v_m = \mathrm{Var}(\log a - \log m) - v_a

    with the layer's mean variance of ``own`` as :math:`v_a`: the empirical Bayes estimate of Efron
    and Morris (1973), doi:10.1080/01621459.1973.10481350. The sum over channels stays, format by
    format.

    Args:
        own: ``[O, F]`` prices.
        variance: ``[O, F]`` of each, relative to its square.
        model: ``[O, F]``.
    """
    is_known = (own > 0) & (model > 0)
    if is_known.sum() < 2:
        return own
    logs = np.log(own, where=is_known, out=np.zeros_like(own))
    others = np.log(model, where=is_known, out=np.zeros_like(own))
    of_own = float(variance[is_known].mean())
    of_model = max(float(np.var((logs - others)[is_known])) - of_own, 0.0)
    if of_own + of_model == 0.0:
        return own
    share = of_own / (of_own + of_model)
    # A sum of the model's own, so that formats are drawn to it by their shares alone.
    level = np.where(is_known, logs - others, 0.0).sum(axis=0) / np.maximum(is_known.sum(axis=0), 1)
    mixed = np.where(is_known, np.exp((1 - share) * logs + share * (others + level)), own)
    sums = mixed.sum(axis=0)
    factors = np.divide(own.sum(axis=0), sums, out=np.ones_like(sums), where=sums > 0)
    return np.asarray(mixed * factors)


def channel_losses(
    on: Estimation, prices: ChannelPrices, scale: float, model: ChannelModel
) -> dict[str, Array]:
    """Layer name to ``[O, B]``, what each channel loses.

    Args:
        on: Network and candidates.
        prices: Of the examples.
        scale: Of the probes.
        model: Of the same examples.
    """
    found = dict[str, Array]()
    layers = zip(on.names, prices.by_channel(scale), prices.variances, strict=True)
    for name, own, variance in track(list(layers), "channels"):
        losses = model.losses(WeightChanges.of_original(on, name))
        tried = own if losses is None else tempered(own, variance, losses)
        found[name] = on.weights.by_candidate(tried)
    return found

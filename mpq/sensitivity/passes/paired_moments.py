"""Second moments of what a layer reads in a quantized network, and with what it reads in float."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from mpq.network.layer import Layer
from mpq.network.modules import weight_of
from mpq.network.network import Network
from mpq.network.weight_layout import layout_of
from mpq.rounding.diagonal_blocks import moment_shape
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.forward_pass import read_first
from mpq.sensitivity.passes.gram import Gram, add_crossed
from mpq.sensitivity.passes.input_columns import input_columns
from mpq.sensitivity.passes.looking import Looking
from mpq.sensitivity.passes.moment_mixing import mixing_factors
from mpq.sensitivity.passes.operator_calls import operator_call
from mpq.sensitivity.passes.second_moments import POSITIONS


@final
@dataclass(frozen=True, eq=False)
class PairedMoments:
    """Of one layer, both float32 on the CPU, in the units of ``second_moments``.

    Args:
        moment: ``[G, K, k]``: quantized inputs by quantized inputs, symmetric.
        crossed: ``[G, K, k]``: float inputs by quantized inputs.
    """

    moment: Tensor
    crossed: Tensor

    @property
    def is_finite(self) -> bool:
        """Whether rounding can use them."""
        return bool(self.moment.isfinite().all() and self.crossed.isfinite().all())


def paired_moments(
    on: Estimation,
    quantized: Network,
    layers: Sequence[Layer],
    weights: Mapping[str, Sequence[Tensor]],
    *,
    guidance: float = 0.5,
    positions: int = POSITIONS,
) -> Mapping[str, PairedMoments]:
    r"""Moments of some layers, from two passes over the examples that stop at the last of them.

    .. math:: H = E[x_q x_q^T], \quad C = E[x x_q^T]

    with ``x`` what a row of the weight meets in the float network and ``x_q`` what it meets at the
    same position of the same example in the quantized one, its input quantized. Both are mixed of
    a plain part and one guided by the loss as in ``second_moments``, with the same weights of rows
    and the same factors: those that give both parts of ``H`` equal traces.

    Takes ``16 K k`` bytes for each group of each layer while it collects, and one batch of inputs.

    Args:
        on: The float network and the examples.
        quantized: A copy of the network, quantized as far as these layers' inputs.
        layers: That one pass calls once, in the order of their calls.
        weights: Layer to ``row_weights``; a layer that is not in it has the plain moments.
        guidance: Share of the guided part.
        positions: As in ``second_moments``.

    Returns:
        Of the layers that read inputs of one shape in both networks, in every batch.
    """
    looking = Looking.of(on, positions)
    sums = {x.name: _Sums(on.network.layer_module(x.name), x) for x in layers}
    first = 0
    for index, batch in enumerate(on.batches("inputs of the quantized network")):
        float_inputs, calls = _Inputs(), _Inputs()
        read_first(on.network, batch, sums.keys(), float_inputs.keep)
        read_first(quantized, batch, sums.keys(), calls.keep)
        for name in _unlike(sums.keys(), float_inputs, calls):
            del sums[name]
        for name, found in sums.items():
            tap, x_q, output = calls.found[name]
            known = weights[name][index] if name in weights else None
            found.add(looking, tap, (float_inputs.found[name][1], x_q, output), first, known)
        first += batch.size
    return {name: found.mixed(guidance, first) for name, found in sums.items()}


class _Inputs:
    """What layers read in one pass."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[Tap, Tensor, Tensor]] = {}

    def keep(self, tap: Tap, x: Tensor, output: Tensor) -> None:
        """A ``LayerReader``."""
        call = operator_call(tap, x)
        if call is not None:
            # A network may change its tensors in place after the layer has read them.
            self.found[tap.name] = call[0], call[1].clone(), output


def _unlike(names: Collection[str], one: _Inputs, other: _Inputs) -> list[str]:
    """Layers that only one of the networks calls, or with another shape."""

    def shape(inputs: _Inputs, name: str) -> torch.Size | None:
        return inputs.found[name][1].shape if name in inputs.found else None

    return [n for n in names if shape(one, n) is None or shape(one, n) != shape(other, n)]


class _Sums:
    """Of one layer, call by call."""

    def __init__(self, layer_module: nn.Module, layer: Layer) -> None:
        weight = weight_of(layer_module)
        inputs = layout_of(layer_module).to_rows(weight).shape[1]
        shape = moment_shape(layer.groups, inputs)
        self._plain, self._guided = (Gram(shape, weight.device) for _ in range(2))
        self._crossed, self._guided_crossed = (
            torch.zeros(shape, device=weight.device, dtype=torch.float32) for _ in range(2)
        )

    def add(
        self,
        looking: Looking,
        tap: Tap,
        call: tuple[Tensor, Tensor, Tensor],
        first: int,
        known: Tensor | None,
    ) -> None:
        """One call: float and quantized input, output; weights ``[p, G]`` of its positions."""
        x, x_q, output = call
        seen, start = looking.seen(tap, x_q, output, first), 0
        float_columns, columns = (
            input_columns(tap.layer_module, each, output, seen.lattice) for each in (x, x_q)
        )
        for (_, met), (_, met_q) in zip(float_columns, columns, strict=True):
            self._plain.add(met_q, seen.times)
            add_crossed(self._crossed, met, met_q, seen.times)
            if known is not None:
                some = known[start : start + met.shape[-1]].t().unsqueeze(1)  # [G, 1, p]
                start += met.shape[-1]
                root = some.sqrt()
                self._guided.add(met_q * root, seen.lattice.every)
                add_crossed(self._guided_crossed, met, met_q * some, seen.lattice.every)

    def mixed(self, guidance: float, num_examples: int) -> PairedMoments:
        """Means over examples, plain and guided in one."""
        plain, guided = self._plain.matrix(), self._guided.matrix()
        share, factor = (
            f[:, None, None] / num_examples for f in mixing_factors(plain, guided, guidance)
        )
        moment = share * plain + factor * guided
        crossed = share * self._crossed + factor * self._guided_crossed
        return PairedMoments(moment.cpu(), crossed.cpu())

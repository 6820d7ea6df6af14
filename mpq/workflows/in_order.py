"""Weights rounded in the order of calls, each for the network that is quantized so far."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Final, final

import torch
from torch import Tensor, nn

from mpq._support.progress import track
from mpq.errors import GradientError
from mpq.network.layer import Layer
from mpq.network.modules import share_parameters
from mpq.network.network import Network
from mpq.network.weight_layout import layout_of
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import install
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import weight_grid
from mpq.quantization.stored import StoredWeight
from mpq.quantization.tensor_format import TensorFormat
from mpq.rounding import WeightRounding
from mpq.rounding.moved_target import DAMPING, moved_target
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes.paired_moments import PairedMoments, paired_moments
from mpq.sensitivity.passes.row_weights import row_weights
from mpq.sensitivity.passes.second_moments import POSITIONS
from mpq.workflows.codes_cache import CodesCache
from mpq.workflows.codes_keys import ToRound, ToRoundTogether
from mpq.workflows.own_codes import Cells

STEP: Final = 0.5
"""How far a target is moved."""
UNLIKE: Final = (
    "what it reads has another shape in the quantized network than in the float one, or is not "
    "finite there"
)


@final
@dataclass(frozen=True, eq=False)
class InOrder:
    """Rounds the weights of one assignment in the order in which layers are called.

    Every layer is given the second moment of the inputs that it meets in the network as it is
    quantized so far, weights and inputs, and a target that is moved to make good what the layers
    before it broke (``moved_target``).

    Layers that read one tensor are looked at together. Takes, for each of these, two forward
    passes over the examples that stop there, and once a forward and a backward pass; in memory a
    copy of the weights, all ``row_weights``, and ``paired_moments`` of layers that read one tensor.

    Args:
        on: The network, the examples, and the quantizer with the codes that there are.
        precisions: Layer name to precision, of all layers.
        rounding: How codes are found.
        seed: Of the probes that guide the moments.
        step: See ``moved_target``.
        damping: See ``moved_target``.
        kept: Where codes are looked up and kept; ``None``: nowhere.
    """

    on: Estimation
    precisions: Mapping[str, Precision]
    rounding: WeightRounding
    seed: int = 0
    step: float = STEP
    damping: float = DAMPING
    kept: CodesCache | None = None

    def codes(self) -> tuple[Cells, Mapping[str, str]]:
        """The new codes; and the layers whose codes stay as they are, with the reason."""
        network, left = self.on.network, dict(self.left)
        weights = self._weights([layer.name for layer in self.layers])
        # The float network is read beside it, so that no weight has to be put there and back.
        twin = replace(network, module=share_parameters(network.module))
        found: dict[tuple[str, TensorFormat], StoredWeight] = {}
        done = 0
        for stage in track(list(_stages(self.layers)), "rounding in order"):
            end = 1 + network.layers.index(stage[-1])
            self._install(twin, network.layers[done:end])
            done = end
            moments = paired_moments(self.on, twin, stage, weights)
            for layer in stage:
                moment = moments.get(layer.name)
                if moment is None or not moment.is_finite:
                    left[layer.name] = UNLIKE
                else:
                    codes = found[self._cell(layer.name)] = self._rounded(layer.name, moment)
                    self._put(twin, layer.name, codes)
        return found, left

    @cached_property
    def left(self) -> Mapping[str, str]:
        """Layers whose codes stay whatever the examples say, and why."""
        network = self.on.network
        uses = Counter(layer.weight_of or layer.name for layer in network.layers)
        found = {}
        for layer in filter(self._is_coded, network.layers):
            if uses[layer.weight_of or layer.name] > 1:
                found[layer.name] = "shares its weight with another layer"
            elif layer.calls > 1:
                found[layer.name] = f"a pass calls it {layer.calls} times"
            elif layer.name in network.reach.partly:
                found[layer.name] = "a part of the examples reaches it"
            elif layer.name in network.reach.also_used:
                found[layer.name] = "functions read its weight besides its calls"
        return found

    @property
    def layers(self) -> list[Layer]:
        """Those that are rounded, in the order of their calls."""
        found = filter(self._is_coded, self.on.network.layers)
        return [layer for layer in found if layer.name not in self.left]

    def _cell(self, name: str) -> tuple[str, TensorFormat]:
        return name, self.precisions[name].weight

    def _is_coded(self, layer: Layer) -> bool:
        """Whether its weight was rounded with regard to data."""
        return self._cell(layer.name) in self.on.quantizer.stored

    def _weights(self, names: Sequence[str]) -> Mapping[str, Sequence[Tensor]]:
        try:
            return row_weights(self.on, names, POSITIONS, self.seed)
        except GradientError:
            return {}  # plain moments, as those of the first codes, of which the result tells

    def _install(self, twin: Network, layers: Sequence[Layer]) -> None:
        precisions = {layer.name: self.precisions[layer.name] for layer in layers}
        install(twin.module, precisions, self.on.quantizer)

    def _put(self, twin: Network, name: str, codes: StoredWeight) -> None:
        tensor_format = self.precisions[name].weight
        quantizer = replace(self.on.quantizer, stored={(name, tensor_format): codes})
        layer_module, original = twin.layer_module(name), self.on.network.weight(name)
        weight = quantizer.weight(name, layer_module, tensor_format, original)
        layer_module.weight = nn.Parameter(weight, requires_grad=False)

    def _rounded(self, name: str, moments: PairedMoments) -> StoredWeight:
        quantizer, tensor_format = self.on.quantizer, self.precisions[name].weight
        weight, layout = self.on.network.weight(name), layout_of(self.on.network.layer_module(name))
        rows = layout.to_rows(weight).float().cpu()
        target = moved_target(
            rows, moments.moment, moments.crossed, step=self.step, damping=self.damping
        )
        method = RANGE_METHODS.build(quantizer.weight_range)
        with torch.no_grad():
            # Not the quantizer's grid, which is that of the weight as it came.
            grid = weight_grid(target, tensor_format, method, quantizer.numerics)
        asked = ToRound(
            rows, target, moments.moment, [tensor_format], [grid], quantizer.numerics,
            self.rounding, quantizer.weight_range,
        )  # fmt: skip
        alone = ToRoundTogether([asked])
        ((found,),) = alone.codes() if self.kept is None else self.kept.codes(alone)
        return found


def _stages(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Layers that follow each other and read one tensor; they do not feed each other."""
    return (list(stage) for _, stage in groupby(layers, lambda x: x.input_of or x.name))

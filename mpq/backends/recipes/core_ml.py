"""Core ML Tools: ``op_name_configs`` with an entry per weight."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from mpq.backends.recipes._base import Recipe, commented
from mpq.errors import PrecisionError, UnknownNameError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.tensor_format import Granularity

GRANULARITIES = {
    Granularity.TENSOR: "per_tensor",
    Granularity.CHANNEL: "per_channel",
    Granularity.GROUP: "per_block",
}
SOURCES = {"trace": "", "export": "p_"}
"""How a network was given to ``ct.convert``, and what its constants' names begin with."""


@final
@dataclass(frozen=True)
class CoreMl(Recipe):
    """``linear_quantize_weights(program, OptimizationConfig.from_yaml(file))``.

    Args:
        source: What was converted: ``export`` (torch.export) or ``trace`` (torch.jit.trace). The
            constants of the two are called differently, and a name that is not there is passed
            over without a word: count the constants afterwards.

    Raises:
        UnknownNameError: If there is no such source.
    """

    name: ClassVar[str] = "coreml"
    summary: ClassVar[str] = "a recipe for Core ML Tools: op_name_configs, YAML; not our codes"
    file: ClassVar[str] = "coreml.yaml"

    source: str = "export"

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UnknownNameError("source of coreml", self.source, SOURCES)

    def refusal(self, layer: AssignedLayer) -> str:
        """See ``Recipe.refusal``."""
        weight = layer.precision.weight
        if layer.kind not in ("linear", "conv1d", "conv2d", "conv3d") or layer.is_transposed:
            return f"a {layer.kind} layer like this was not tried"
        if not layer.precision.activation.is_exact:
            return "the recipe is of weights alone"
        if weight.number.is_float or weight.number.bits not in (4, 8):
            return f"it quantizes linearly to int4 and int8, and not to {weight.number.name}"
        if weight.group_size and layer.kind != "linear":
            return "its blocks are those of linear layers"
        if weight.group_size and layer.weight_shape[1] % weight.group_size:
            return f"{layer.weight_shape[1]} inputs are no whole blocks of {weight.group_size}"
        return ""

    def text(self, layers: Sequence[AssignedLayer], note: str) -> str:
        """See ``Recipe.text``.

        Raises:
            PrecisionError: If two layers' weights have one name in the program.
        """
        named: dict[str, AssignedLayer] = {}
        for layer in layers:
            other = named.setdefault(self._constant(layer.name), layer)
            if other is not layer:
                raise PrecisionError(
                    f"coreml: layers {other.name!r} and {layer.name!r} are both called "
                    f"{self._constant(layer.name)!r} in its program: rename a module"
                )
        entries = {name: _entry(layer) for name, layer in named.items()}
        config = {"config_type": "OpLinearQuantizerConfig", "op_name_configs": entries}
        lines = [f"{key}: {json.dumps(value, indent=1)}\n" for key, value in config.items()]
        return commented(note) + "".join(lines)

    def _constant(self, layer: str) -> str:
        name = SOURCES[self.source] + re.sub(r"[^A-Za-z0-9_]", "_", f"{layer}.weight")
        # Names of a program begin with no digit.
        return f"_{name}" if name[0].isdigit() else name


def _entry(layer: AssignedLayer) -> dict[str, Any]:
    weight = layer.precision.weight
    found: dict[str, Any] = {
        "mode": "linear_symmetric" if weight.symmetric else "linear",
        "dtype": f"{'' if weight.symmetric else 'u'}int{weight.number.bits}",
        "granularity": GRANULARITIES[weight.granularity],
        # Else weights of fewer than 2,048 numbers are left out without a word.
        "weight_threshold": 0,
    }
    return found | ({"block_size": weight.group_size} if weight.group_size else {})

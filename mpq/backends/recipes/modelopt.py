"""NVIDIA ModelOpt: ``quant_cfg`` with an entry per layer."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from mpq.backends.recipes._base import Recipe, commented
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.tensor_format import Granularity, TensorFormat

KINDS = ("linear", "conv1d", "conv2d", "conv3d")


@final
@dataclass(frozen=True)
class ModelOpt(Recipe):
    """``mtq.quantize(model, yaml.safe_load(file), forward_loop)``: YAML, as keys are integers.

    ModelOpt's ranges are narrow, -7 to 7 for 4 bits, with a scale of amax/7.
    """

    name: ClassVar[str] = "modelopt"
    summary: ClassVar[str] = "a recipe for NVIDIA ModelOpt: quant_cfg by layer, YAML; not our codes"
    file: ClassVar[str] = "modelopt.yaml"

    def refusal(self, layer: AssignedLayer) -> str:
        """See ``Recipe.refusal``."""
        weight, read = layer.precision.weight, layer.precision.activation
        if layer.kind not in KINDS or layer.is_transposed:
            return f"it inserts no quantizers into a {layer.kind} layer like this"
        if not weight.is_exact and _bits(weight) is None:
            return f"it has no {weight.number.name} weights"
        if not read.is_exact and _bits(read) is None:
            return f"it has no {read.number.name} inputs"
        if not (weight.symmetric and read.symmetric):
            return "its scales are symmetric: a8s, a8sd"
        if weight.group_size and layer.kind != "linear":
            return "its blocks are those of linear layers"
        return ""

    def text(self, layers: Sequence[AssignedLayer], note: str) -> str:
        """See ``Recipe.text``."""
        entries: list[Mapping[str, Any]] = [{"quantizer_name": "*", "enable": False}]
        for layer in layers:
            formats = {"weight": layer.precision.weight, "input": layer.precision.activation}
            entries += [
                {
                    "quantizer_name": f"{_literal(layer.name)}.{what}_quantizer",
                    "cfg": _attributes(tensor_format),
                    "enable": True,
                }
                for what, tensor_format in formats.items()
                if not tensor_format.is_exact
            ]
        # Flow style is JSON, but for the key, which has to be an integer.
        lines = [f"- {json.dumps(entry)}\n".replace('"-1": ', "-1: ") for entry in entries]
        return f"{commented(note)}quant_cfg:\n{''.join(lines)}algorithm: max\n"


def _literal(name: str) -> str:
    """A name as a pattern of ``fnmatch`` that matches nothing else, which ModelOpt takes it for."""
    return re.sub(r"[*?[]", r"[\g<0>]", name)


def _bits(tensor_format: TensorFormat) -> int | list[int] | None:
    """``num_bits``: of a float one, bits of the exponent and of the mantissa."""
    number = tensor_format.number
    if number.is_float:
        return {"fp8_e4m3": [4, 3], "fp8_e5m2": [5, 2]}.get(number.name)
    return number.bits if number.bits in (4, 8) else None


def _attributes(tensor_format: TensorFormat) -> dict[str, Any]:
    bits: dict[str, Any] = {"num_bits": _bits(tensor_format)}
    if tensor_format.granularity is Granularity.GROUP:
        return bits | {"block_sizes": {"-1": tensor_format.group_size}}
    if tensor_format.granularity is Granularity.TOKEN:
        return bits | {"type": "dynamic", "block_sizes": {"-1": None}}
    return bits | {"axis": 0 if tensor_format.granularity is Granularity.CHANNEL else None}

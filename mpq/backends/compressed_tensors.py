"""compressed-tensors: the checkpoints of vLLM, SGLang and transformers."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor, nn

from mpq.backends.half_precision import SCALE_DTYPES
from mpq.backends.hugging_face import (
    FolderTarget,
    LoadedModule,
    config_of,
    load_module,
    other_tensors,
    require,
    write_folder,
)
from mpq.backends.runtime import Loaded
from mpq.backends.target import LayerShape, Shipped, not_linear, rows_of
from mpq.backends.vllm import fused
from mpq.errors import MissingDependencyError, ModelError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.codes import Codes, packed
from mpq.quantization.microscaling import (
    block_scale_bits,
    element_bits,
    fits_tensor_scale,
    no_whole_blocks,
    tensor_scale,
)
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Granularity, Precision, TensorFormat
from mpq.quantization.rounding import static_grid

DENSE_SINCE: Final = (0, 20)
"""The release that was tried: it packs 3, 5, 6 and 7 bits densely; earlier ones padded them."""
MICROSCALING: Final = {
    "mxfp4": "mxfp4-pack-quantized",
    "mxfp8": "mxfp8-quantized",
    "nvfp4": "nvfp4-pack-quantized",
}
"""What the tool calls the layouts of number formats that have their own blocks."""
_STRATEGIES: Final = {
    Granularity.TENSOR: "tensor",
    Granularity.CHANNEL: "channel",
    Granularity.GROUP: "group",
    Granularity.TOKEN: "token",
}


@final
@dataclass(frozen=True)
class CompressedTensors(FolderTarget):
    """A folder of Hugging Face whose layers are grouped by scheme (``config_groups``).

    Weights with zero points are refused: transformers 5.24 loads them only with
    ``CompressedTensorsConfig(dequantize=True)``, which takes one scheme for the whole network and
    leaves the rounding of inputs out.

    Args:
        dtype: Of the network's parameters; scales of weights are stored in half precision where
            these are.
    """

    name: ClassVar[str] = "compressed-tensors"
    summary: ClassVar[str] = "checkpoints of vLLM, SGLang and transformers: a folder"
    extra: ClassVar[str] = "compressed-tensors"
    packages: ClassVar[tuple[str, ...]] = ("transformers", "compressed_tensors")
    readers: ClassVar[str] = "vLLM, SGLang, transformers"
    holds: ClassVar[str] = (
        "linear layers: w2 to w8 per tensor, channel or group, with inputs in floating point or "
        "a8, a8s, a8d, a8sd; fp8 with inputs a32, fp8 and fp8 dynamic; in networks in bf16 mxfp4, "
        "mxfp8 and nvfp4; all else as it came"
    )
    candidates: ClassVar[tuple[str, ...]] = (
        "w3", "w3g128", "w4", "w4g128", "w5", "w6", "w8",
    )  # fmt: skip
    numerics: ClassVar[Numerics] = Numerics(
        symmetric_dynamic="amax/127.5", input_rounding="quotient"
    )
    notes: ClassVar[tuple[str, ...]] = (
        "w3, w5, w6 and w7 are packed densely: compressed-tensors 0.20 or newer reads that.",
        "transformers on a processor unpacks to float32: this proves the file and not a kernel.",
        "vLLM (not run here): layers that it fuses, q/k/v and gate/up, share a scheme: "
        "the target ties them; kernels for 4 and 8 bits are everywhere, for other widths in recent "
        "releases only; int8 inputs need weights per channel. `mpq export --serve vllm` prints "
        "the list for an assignment.",
    )

    def ties(self, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """See ``Target.ties``: what vLLM makes one matrix of."""
        return fused(names)

    def refusal(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.refusal``."""
        return (
            not_linear(layer, self.name)
            or self._weight_refusal(layer, precision.weight)
            or self._input_refusal(precision)
        )

    def _weight_refusal(self, layer: LayerShape, weight: TensorFormat) -> str:
        _, num_inputs = rows_of(layer)
        number = weight.number
        if number.name in MICROSCALING:
            if self.dtype != torch.bfloat16:
                return (
                    f"transformers decodes {number.name} to bf16 and multiplies by nothing else: "
                    "load the network with dtype=torch.bfloat16"
                )
            return no_whole_blocks(weight, num_inputs)
        if number.is_float and (
            number.name != "fp8_e4m3" or weight.granularity is Granularity.GROUP
        ):
            return f"it holds no weights of {number.name} like these: fp8 per tensor or channel"
        if number.bits > 8:
            return f"it holds integers of 2 to 8 bits, and no {number.name}"
        if not weight.symmetric:
            return "its reader in transformers loads no mix of weights with zero points"
        if weight.group_size and num_inputs % weight.group_size:
            return f"{num_inputs} inputs are no whole groups of {weight.group_size}"
        return ""

    def _input_refusal(self, precision: Precision) -> str:
        read, number = precision.activation, precision.activation.number
        if read.is_exact:
            return ""
        if precision.weight.number.name in MICROSCALING:
            return f"weights in {precision.weight.number.name} have inputs in floating point"
        if number.name == "int8":
            is_float = precision.weight.number.is_float
            return "fp8 weights have inputs in fp8 or floating point" if is_float else ""
        if number.name == "fp8_e4m3":
            is_int = not precision.weight.number.is_float
            return "integer weights have inputs in int8 or floating point" if is_int else ""
        return f"it rounds no inputs to {number.name}: a8 or fp8"

    def stored_bits(self, layer: LayerShape, precision: Precision) -> int:
        """See ``Target.stored_bits``; rows are whole words of 32 bits."""
        weight = precision.weight
        if weight.number.name in MICROSCALING:
            return super().stored_bits(layer, precision)
        num_channels, num_inputs = rows_of(layer)
        per_row = -(-num_inputs * weight.number.bits // 32) * 32
        if _layout(precision) != "pack-quantized":
            per_row = num_inputs * 8
        exact = (
            super().stored_bits(layer, precision) - num_channels * num_inputs * weight.number.bits
        )
        shape = 2 * 64 if _layout(precision) == "pack-quantized" else 0
        return num_channels * per_row + exact + shape + _input_bits(precision)

    def write(self, shipped: Shipped, folder: Path) -> None:
        """See ``Target.write``."""
        config = config_of(shipped.model, self.name)
        tensors: dict[str, Tensor] = {}
        groups: dict[Precision, list[str]] = defaultdict(list)
        wholes = _tensor_scales(shipped)
        for layer in shipped.quantized:
            groups[layer.precision].append(layer.name)
            codes = shipped.codes(layer)
            own = _tensors(layer, codes, self.arithmetic, wholes.get(layer.name, 1.0))
            tensors |= {f"{layer.name}.{key}": value for key, value in own.items()}
        replaced = {f"{layer.name}.weight" for layer in shipped.quantized}
        rest = dict(other_tensors(shipped.model, replaced))
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": _format([_layout(precision) for precision in groups]),
            "ignore": _ignored(shipped, {name for names in groups.values() for name in names}),
            "config_groups": {
                f"group_{i}": _scheme(precision, names)
                for i, (precision, names) in enumerate(groups.items())
            },
        }
        write_folder(folder, shipped.model, config, {**rest, **tensors})

    def load(self, folder: Path) -> Loaded:
        """See ``Target.load``."""
        require("transformers", self.extra)
        require("compressed_tensors", self.extra)
        _require_dense()
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.utils import get_direct_state_dict

        module = load_module(folder)
        kinds: dict[str, str] = {}
        weights: dict[str, Tensor] = {}
        for name, part in module.named_modules():
            scheme = getattr(part, "quantization_scheme", None)
            if scheme is not None and getattr(scheme, "weights", None) is not None:
                kinds[name] = f"{type(part).__name__} {scheme.format.value}"
                # On tensors and not on the module, which the tool unpacks when it first runs.
                tool = BaseCompressor.get_value_from_registry(scheme.format.value)
                weights[name] = tool.decompress(get_direct_state_dict(part), scheme)["weight"]
                if scheme.format.value in MICROSCALING.values():
                    # Decoded to bf16, whatever the network: and the check runs in float32.
                    tool.decompress_module(part, leave_decompressed=False)
                    part.weight = nn.Parameter(weights[name].float(), requires_grad=False)
        return LoadedModule(module, weights, kinds, ("compressed-tensors",))


def _layout(precision: Precision) -> str:
    """How the tool calls the layout of one layer's tensors."""
    if precision.weight.number.name in MICROSCALING:
        return MICROSCALING[precision.weight.number.name]
    if precision.weight.number.is_float:
        return "float-quantized"
    is_int8 = precision.weight.number.bits == 8 and not precision.activation.is_exact
    return "int-quantized" if is_int8 else "pack-quantized"


def _format(layouts: list[str]) -> str:
    return layouts[0] if len(set(layouts)) == 1 else "mixed-precision"


def _scheme(precision: Precision, names: list[str]) -> dict[str, Any]:
    """One of the ``config_groups``: the layers of one precision, by their whole names."""
    read = precision.activation
    return {
        "targets": names,
        "weights": _arguments(precision.weight, dynamic=False),
        "input_activations": None
        if read.is_exact
        else _arguments(read, dynamic=read.granularity is Granularity.TOKEN),
        "format": _layout(precision),
    }


def _arguments(tensor_format: TensorFormat, dynamic: bool) -> dict[str, Any]:
    number = tensor_format.number
    found = {
        "num_bits": number.bits,
        "type": "float" if number.is_float else "int",
        "symmetric": tensor_format.symmetric,
        "strategy": _STRATEGIES[tensor_format.granularity],
        "group_size": tensor_format.group_size,
        "dynamic": dynamic,
    }
    if number.has_tensor_scale:
        return found | {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}
    return found | ({"scale_dtype": "torch.uint8"} if number.is_microscaling else {})


def _tensor_scales(shipped: Shipped) -> dict[str, float]:
    """The scale of every whole weight in nvfp4, by layer; one for the layers that vLLM fuses.

    It takes the largest of those that it finds in a fused layer for all of it, without a word.

    Raises:
        ModelError: If fused layers are too far apart for one: names them.
    """
    codes = {
        x.name: shipped.codes(x)
        for x in shipped.quantized
        if x.precision.weight.number.has_tensor_scale
    }
    found = {name: tensor_scale(each) for name, each in codes.items()}
    for names in fused(codes):
        smallest = min(found[name] for name in names)
        for name in names:
            if not fits_tensor_scale(codes[name], smallest):
                raise ModelError(
                    f"compressed-tensors: {', '.join(names)} are fused by readers and share a "
                    f"scale, below which those of {name!r} are no fp8 numbers: give these another "
                    "precision than nvfp4"
                )
        found |= dict.fromkeys(names, smallest)
    return found


def _tensors(
    layer: AssignedLayer, codes: Codes, numerics: Numerics, whole: float
) -> dict[str, Tensor]:
    """One layer's tensors, by their names within its module."""
    precision = layer.precision
    if precision.weight.number.name in MICROSCALING:
        return _block_tensors(codes, whole)
    is_whole = precision.weight.granularity is Granularity.TENSOR
    scale = codes.scale[:1, 0] if is_whole else codes.scale
    is_group = precision.weight.granularity is Granularity.GROUP
    stored = SCALE_DTYPES[numerics.group_scale if is_group else numerics.scale]
    found: dict[str, Tensor] = {"weight_scale": scale.to(stored)}
    layout = _layout(precision)
    if layout == "float-quantized":
        found["weight"] = codes.codes.to(torch.float8_e4m3fn)
    elif layout == "int-quantized":
        found["weight"] = codes.integers().to(torch.int8)
    else:
        bits = precision.weight.number.bits
        found["weight_packed"] = packed(codes.unsigned(), bits).view(torch.int32)
        found["weight_shape"] = torch.tensor([len(codes.codes), codes.num_inputs])
    return found | _input_tensors(layer)


def _block_tensors(codes: Codes, whole: float) -> dict[str, Tensor]:
    """The same of a microscaling format."""
    number = codes.tensor_format.number
    stream = packed(element_bits(codes), number.bits)
    if number.name == "mxfp8":
        return {"weight": stream.view(torch.float8_e4m3fn), "weight_scale": block_scale_bits(codes)}
    if not number.has_tensor_scale:
        return {"weight_packed": stream, "weight_scale": block_scale_bits(codes)}
    return {
        "weight_packed": stream,
        "weight_scale": block_scale_bits(codes, whole).view(torch.float8_e4m3fn),
        # The tool divides by it: by a power of two, which is exact in bf16, in which it decodes.
        "weight_global_scale": torch.tensor([whole]),
    }


def _input_tensors(layer: AssignedLayer) -> dict[str, Tensor]:
    """Scale and zero point of a static input."""
    read, ends = layer.precision.activation, layer.activation_range
    if ends is None:
        return {}
    grid = static_grid(read, ends, torch.device("cpu"))
    found: dict[str, Tensor] = {"input_scale": grid.scale.clone()}
    if not read.symmetric:
        # Codes are signed there, and from 0 on here.
        found["input_zero_point"] = (grid.zero_point - 128).to(torch.int8)
    return found


def _input_bits(precision: Precision) -> int:
    if precision.activation.granularity is not Granularity.TENSOR:
        return 0
    return 32 if precision.activation.symmetric else 40


def _ignored(shipped: Shipped, quantized: set[str]) -> list[str]:
    """Linear layers that stay as they are, by name, as vLLM wants to be told."""
    modules = shipped.model.named_modules()
    return [name for name, m in modules if isinstance(m, nn.Linear) and name not in quantized]


def _require_dense() -> None:
    from importlib.metadata import version

    found = version("compressed-tensors")
    if tuple(map(int, found.split(".")[:2])) < DENSE_SINCE:
        since = ".".join(map(str, DENSE_SINCE))
        raise MissingDependencyError(
            f"compressed-tensors {found} packs 3, 5, 6 and 7 bits otherwise: "
            f"pip install 'compressed-tensors>={since}'"
        )

"""compressed-tensors: the checkpoints of vLLM, SGLang and transformers."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Final, final

import torch
from torch import Tensor, nn

from mpq.backends._base import HELD
from mpq.backends.compressed_tensors_cache import (
    NAMES,
    cache_refusal,
    cache_scheme,
    cache_tensors,
    cache_ties,
    caches_of,
    round_caches,
)
from mpq.backends.compressed_tensors_layout import (
    MICROSCALING,
    decoded_in_parts,
    expert_tensors,
    input_bits,
    layer_tensors,
    layout_of,
    scheme_of,
    tensor_scales,
)
from mpq.backends.decoded import DecodedWeight
from mpq.backends.file_size import FileSize
from mpq.backends.fused_experts import (
    CHECKPOINT_NAMES,
    ExpertMatrix,
    expert_matrices,
    expert_parameters,
    in_checkpoint,
    is_expert,
    num_matrices,
)
from mpq.backends.half_precision import HALF
from mpq.backends.hugging_face import (
    FolderTarget,
    LoadedModule,
    config_of,
    load_module,
    other_tensors,
    require,
    write_folder,
)
from mpq.backends.numbers_refusal import numbers_refusal
from mpq.backends.runtime import Loaded
from mpq.backends.safetensors_size import safetensors_size, unchanged
from mpq.backends.target import LayerShape, Shipped, not_linear, rows_of
from mpq.backends.vllm import fused
from mpq.errors import MissingDependencyError
from mpq.network.mapped import release
from mpq.network.tensor_entries import outside_memory
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.codes import Codes
from mpq.quantization.microscaling import no_whole_blocks
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.tensor_format import Granularity, TensorFormat

DENSE_SINCE: Final = "0.20"
"""The release that was tried: it packs 3, 5, 6 and 7 bits densely; earlier ones padded them."""


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
    caches: ClassVar[str] = HELD
    packages: ClassVar[tuple[str, ...]] = ("transformers", "compressed_tensors")
    readers: ClassVar[str] = "vLLM, SGLang, transformers"
    holds: ClassVar[str] = (
        "linear layers: w2 to w8 per tensor, channel or group, with inputs in floating point or "
        "a8, a8s, a8d, a8sd; fp8 with inputs a32, fp8 and fp8 dynamic; in networks in bf16 mxfp4, "
        "mxfp8 and nvfp4; experts that transformers fuses, all in one precision w2 to w8, of "
        "networks in float32; a key-value cache in a8s or afp8 as a whole; all else as it came"
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
        "Fused experts lie in the file one by one, with scales in float32; transformers 5.24 "
        "decodes them as it loads, all by one scheme.",
        "vLLM (not run here): layers that it fuses, q/k/v and gate/up, share a scheme: "
        "the target ties them; kernels for 4 and 8 bits are everywhere, for other widths in recent "
        "releases only; int8 inputs need weights per channel. `mpq export --serve vllm` prints "
        "the list for an assignment.",
    )

    def ties(self, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """See ``Target.ties``: what vLLM makes one matrix of, and all fused experts.

        Of these transformers 5.24 decodes the whole network's in one scheme.
        """
        experts = tuple(name for name in names if is_expert(name))
        return (*fused(names), *((experts,) if len(experts) > 1 else ()), *cache_ties(names))

    def refusal(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.refusal``."""
        return (
            not_linear(layer, self.name)
            or self._weight_refusal(layer, precision.weight)
            or self._input_refusal(precision)
            or (self._expert_refusal(precision) if is_expert(layer.name) else "")
        )

    def why_not(
        self, layer: LayerShape, precision: Precision, modules: Mapping[str, nn.Module] | None
    ) -> str:
        """See ``Target.why_not``: an expert of fused ones has no module, and still a place."""
        if modules is None or layer.name in modules or not is_expert(layer.name):
            return super().why_not(layer, precision, modules)
        if layer.name not in expert_matrices(modules[""]):
            return "transformers loads its experts from one tensor, and no quantized ones"
        return numbers_refusal(precision, self.arithmetic) or self.refusal(layer, precision)

    def cache_refusal(self, precision: Precision) -> str:
        """See ``Backend.cache_refusal``."""
        return cache_refusal(precision)

    def _expert_refusal(self, precision: Precision) -> str:
        if self.dtype != torch.float32:
            return (
                "transformers decodes fused experts to the dtype of their scales: search and "
                "export model.float()"
            )
        is_alone = precision.weight.is_scaled_integer and precision.activation.is_exact
        return "" if is_alone else "fused experts are integers of 2 to 8 bits, with inputs in a32"

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
            return (
                f"it holds no weights of {number.name} like these: integers of 2 to 8 bits, fp8 "
                "per tensor or channel, and microscaling formats"
            )
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
        if layout_of(precision) != "pack-quantized":
            per_row = num_inputs * 8
        exact = (
            super().stored_bits(layer, precision) - num_channels * num_inputs * weight.number.bits
        )
        shape = 2 * 64 if layout_of(precision) == "pack-quantized" else 0
        if is_expert(layer.name):
            return num_channels * per_row + self._expert_bits(layer, precision, shape)
        return num_channels * per_row + exact + shape + input_bits(precision)

    def _expert_bits(self, layer: LayerShape, precision: Precision, shape: int) -> int:
        """Bits beside the codes of an expert: scales in float32, and its matrices' shapes."""
        num_channels, num_inputs = rows_of(layer)
        weight, count = precision.weight, num_matrices(layer.name)
        num_scales = weight.num_scales(num_channels * num_inputs, num_channels)
        is_whole = weight.granularity is Granularity.TENSOR
        return 32 * (count if is_whole else num_scales) + count * shape

    def stored_kind(self, layer: LayerShape, precision: Precision) -> str:  # noqa: ARG002
        """See ``Target.stored_kind``."""
        return f"{layout_of(precision)}, {precision.weight.number.bits} bits"

    def write(self, shipped: Shipped, folder: Path) -> None:
        """See ``Target.write``."""
        _require_tools(self.extra)
        config = config_of(shipped.model, self.name)
        experts = expert_matrices(shipped.model)
        tensors: dict[str, Tensor] = {}
        groups: dict[tuple[Precision, bool], list[str]] = defaultdict(list)
        wholes = tensor_scales(shipped)
        replaced: set[str] = set()
        for layer in shipped.quantized:
            codes, matrices = shipped.codes(layer), experts.get(layer.name, ())
            if matrices:
                groups[layer.precision, True] = [CHECKPOINT_NAMES]
                replaced.add(layer.name.rpartition(".")[0])
            else:
                groups[layer.precision, False].append(layer.name)
                replaced.add(f"{layer.name}.weight")
            own = self._tensors(layer, codes, matrices, wholes.get(layer.name, 1.0))
            tensors |= outside_memory(own)
        caches = caches_of(shipped)
        tensors |= cache_tensors(caches, self.dtype)
        rest = dict(other_tensors(shipped.model, replaced))
        if any(is_fused for _, is_fused in groups):
            rest = in_checkpoint(shipped.model, rest)
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": _format([layout_of(precision) for precision, _ in groups]),
            "ignore": _ignored(shipped, {name for names in groups.values() for name in names}),
            "config_groups": {
                f"group_{i}": scheme_of(precision, names)
                for i, ((precision, _), names) in enumerate(groups.items())
            },
            **cache_scheme(caches),
        }
        write_folder(folder, shipped.model, config, {**rest, **tensors})

    def file_size(
        self,
        model: nn.Module,
        module: nn.Module,  # noqa: ARG002
        names: Collection[str],
    ) -> FileSize:
        """See ``SaysFileSize.file_size``."""
        experts = expert_matrices(model)

        def written(layer: AssignedLayer, codes: Codes) -> Mapping[str, Tensor]:
            return self._tensors(layer, codes, experts.get(layer.name, ()), 1.0)

        # Where an expert is quantized, all names are the checkpoint's.
        renamed = partial(in_checkpoint, model) if experts else unchanged
        return safetensors_size(model, names, written, renamed=renamed)

    def _tensors(
        self, layer: AssignedLayer, codes: Codes, matrices: Sequence[ExpertMatrix], whole: float
    ) -> dict[str, Tensor]:
        """One layer's tensors, by their names in the file."""
        if matrices:
            return expert_tensors(layer, codes, matrices)
        own = layer_tensors(layer, codes, self.arithmetic, whole)
        return {f"{layer.name}.{key}": value for key, value in own.items()}

    def decoded(self, folder: Path) -> Iterator[DecodedWeight]:
        """See ``DecodesApart.decoded``."""
        _require_tools(self.extra)
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme
        from safetensors import safe_open

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with safe_open(folder / "model.safetensors", "pt") as file:
            keys: dict[str, list[str]] = defaultdict(list)
            for key in file.keys():  # noqa: SIM118
                keys[key.rpartition(".")[0]].append(key)
            for group in config["quantization_config"]["config_groups"].values():
                scheme = QuantizationScheme.model_validate(group)
                tool = BaseCompressor.get_value_from_registry(group["format"])
                kind = f"{group['format']}, {group['weights']['num_bits']} bits"
                for name in group["targets"]:
                    own = {key: file.get_tensor(key) for key in keys[name]}
                    # As it loads a network in float32: scales in half precision are exact in it.
                    tensors = {
                        key.rpartition(".")[2]: tensor.float() if tensor.dtype in HALF else tensor
                        for key, tensor in own.items()
                    }
                    decode = partial(tool.decompress, scheme=scheme)
                    yield DecodedWeight(name, decoded_in_parts(decode, tensors), kind)
                    release(own.values())

    def load(self, folder: Path) -> Loaded:
        """See ``Target.load``."""
        _require_tools(self.extra)
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.utils import get_direct_state_dict

        module = load_module(folder, ignored=NAMES)
        round_caches(module, folder)
        kinds: dict[str, str] = {}
        weights: dict[str, Tensor] = {}
        for name, part in module.named_modules():
            scheme = getattr(part, "quantization_scheme", None)
            if scheme is not None and getattr(scheme, "weights", None) is not None:
                layout = f"{scheme.format.value}, {scheme.weights.num_bits} bits"
                kinds[name] = f"{type(part).__name__} {layout}"
                # On tensors and not on the module, which the tool unpacks when it first runs.
                tool = BaseCompressor.get_value_from_registry(scheme.format.value)
                weights[name] = tool.decompress(get_direct_state_dict(part), scheme)["weight"]
                if scheme.format.value in MICROSCALING.values():
                    # Decoded to bf16, whatever the network: and the check runs in float32.
                    tool.decompress_module(part, leave_decompressed=False)
                    part.weight = nn.Parameter(weights[name].float(), requires_grad=False)
        stored = _expert_layout(folder)
        for name, parameter in expert_parameters(dict(module.named_modules())).items():
            if stored:
                # Decoded and stacked while it was loaded, by the one scheme that there is for them.
                own = {f"{name}.{i}": weight.detach() for i, weight in enumerate(parameter)}
                weights |= own
                kinds |= dict.fromkeys(own, f"experts {stored}")
        return LoadedModule(module, weights, kinds, ("compressed-tensors",))


def _expert_layout(folder: Path) -> str:
    """What the configuration says that fused experts are stored as; empty: not quantized."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for group in config["quantization_config"]["config_groups"].values():
        if group["targets"] == [CHECKPOINT_NAMES]:
            return f"{group['format']}, {group['weights']['num_bits']} bits"
    return ""


def _format(layouts: list[str]) -> str:
    return layouts[0] if len(set(layouts)) == 1 else "mixed-precision"


def _ignored(shipped: Shipped, quantized: set[str]) -> list[str]:
    """Linear layers that stay as they are, by name, as vLLM wants to be told."""
    modules = shipped.model.named_modules()
    return [name for name, m in modules if isinstance(m, nn.Linear) and name not in quantized]


def _require_tools(extra: str) -> None:
    """Asked before anything is written: an older release reads dense layouts as other numbers."""
    require("transformers", extra)
    require("compressed_tensors", extra)
    from packaging.version import Version

    found = version("compressed-tensors")
    if Version(found) < Version(DENSE_SINCE):
        raise MissingDependencyError(
            f"compressed-tensors {found} packs 3, 5, 6 and 7 bits otherwise: "
            f"pip install 'compressed-tensors>={DENSE_SINCE}'"
        )

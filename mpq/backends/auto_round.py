"""AutoRound and GPTQ: checkpoints with ``qweight``, ``qzeros`` and ``scales``."""

import copy
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor, nn

from mpq.backends.file_size import FileSize
from mpq.backends.hugging_face import (
    LoadedModule,
    check_linear_alone,
    config_of,
    load_module,
    other_tensors,
    require,
    write_folder,
)
from mpq.backends.runtime import Loaded
from mpq.backends.safetensors_size import safetensors_size
from mpq.backends.target import LayerShape, Shipped, Target, not_linear, rows_of
from mpq.errors import ModelError, UnknownNameError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.codes import Codes, packed
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision

GROUP_SIZES: Final = (32, 64, 128)
CONTAINERS: Final = {2: 2, 3: 3, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
"""Bits of a code, and of the place it is stored in."""
METHODS: Final = ("auto-round", "gptq")
WHOLE: Final = 32
"""Inputs and outputs of a layer are whole words of packed codes and zero points."""
ROWS_AT_ONCE: Final = 1024


@final
@dataclass(frozen=True)
class AutoRound(Target):
    """A folder of Hugging Face whose layers have an entry each; the tools compute in fp16.

    The codes of a column of ``[K, O]`` are one stream of bits, as are the zero points of a group. A
    configuration says what each layer has twice: as AutoRound's ``extra_config`` and as GPTQModel's
    ``dynamic``. Which of them a tool looks for depends on ``quant_method``.

    Args:
        method: ``quant_method`` of the configuration: ``auto-round``, or ``gptq`` for tools that
            read no other.

    Raises:
        UnknownNameError: If there is no such method.
    """

    name: ClassVar[str] = "auto-round"
    summary: ClassVar[str] = "checkpoints of AutoRound and GPTQ: a folder; method=auto-round, gptq"
    extra: ClassVar[str] = "auto-round"
    packages: ClassVar[tuple[str, ...]] = ("transformers", "auto_round")
    readers: ClassVar[str] = "AutoRound in transformers, vLLM, SGLang; GPTQModel"
    holds: ClassVar[str] = (
        "linear layers: w2 to w8, w2z to w8z, per tensor, channel or in groups of 32, 64 or 128, "
        "rows and columns of whole 32; inputs in floating point; all else as it came"
    )
    candidates: ClassVar[tuple[str, ...]] = (
        "w2g32", "w3g64", "w3g128", "w4g32", "w4g128", "w4", "w8g128", "w8",
    )  # fmt: skip
    numerics: ClassVar[Numerics] = Numerics(scale="fp16")
    # In the kernels of the processor the same numbers are added up in another order.
    tolerance: ClassVar[float] = 0.02
    notes: ClassVar[tuple[str, ...]] = (
        "The tool computes in fp16, and so does the simulation that it is compared with here: what "
        "is not quantized is rounded to fp16 as it is loaded, which the search did not do.",
        "Scales are stored in fp16, also those of channels; w5, w6 and w7 in 8 bits.",
        "With zero points the layout is auto_round:gptqmodel, which AutoRound reads; without, it "
        "is auto_round:auto_gptq, which vLLM and SGLang (not run here) read, too.",
        "auto-round:method=gptq writes quant_method gptq, g_idx and symmetric weights only; "
        "AutoRound runs it here, and so does GPTQModel in an environment of its own (it wants a "
        "tokenizer beside it). transformers with optimum ignores `dynamic` and refuses mixed files "
        "by their shapes.",
    )

    method: str = "auto-round"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UnknownNameError("method of auto-round", self.method, METHODS)

    def check_network(self, model: nn.Module) -> None:
        """See ``Target.check_network``."""
        config_of(model, self.name)

    def refusal(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.refusal``."""
        weight, number = precision.weight, precision.weight.number
        if why := not_linear(layer, self.name):
            return why
        if not precision.activation.is_exact:
            return "it rounds no inputs"
        if number.is_float or number.bits not in CONTAINERS:
            return f"it holds integers of 2 to 8 bits, and no {number.name}"
        if self.method == "gptq" and not weight.symmetric:
            return "zero points of GPTQ's first layout are stored less one, which loses the 0"
        if weight.group_size and weight.group_size not in GROUP_SIZES:
            return f"its groups are of 32, 64 or 128, and not {weight.group_size}"
        num_channels, num_inputs = rows_of(layer)
        for what, count in (("outputs", num_channels), ("inputs", num_inputs)):
            if count % WHOLE:
                return f"{count} {what} are no whole words of {WHOLE}"
        if weight.group_size and num_inputs % weight.group_size:
            return f"{num_inputs} inputs are no whole groups of {weight.group_size}"
        return ""

    def stored_bits(self, layer: LayerShape, precision: Precision) -> int:
        """See ``Target.stored_bits``."""
        num_channels, num_inputs = rows_of(layer)
        bits = CONTAINERS[precision.weight.number.bits]
        num_groups = num_inputs // (precision.weight.group_size or num_inputs)
        places = 32 * num_inputs if self.method == "gptq" else 0
        return num_channels * (num_inputs * bits + num_groups * (bits + 16)) + places

    def stored_kind(self, layer: LayerShape, precision: Precision) -> str:  # noqa: ARG002
        """See ``Target.stored_kind``."""
        return f"{CONTAINERS[precision.weight.number.bits]} bits"

    def adapt(self, simulated: nn.Module, model: nn.Module) -> None:  # noqa: ARG002
        """See ``Target.adapt``: parameters in fp16, in which the tool computes."""
        made: dict[int, nn.Parameter] = {}
        for part in simulated.modules():
            for name, parameter in part.named_parameters(recurse=False):
                # New ones, because many of them are the user's; shared ones stay shared.
                half = nn.Parameter(parameter.detach().half(), requires_grad=False)
                part.register_parameter(name, made.setdefault(id(parameter), half))

    def write(self, shipped: Shipped, folder: Path) -> None:
        """See ``Target.write``."""
        config = config_of(shipped.model, self.name) | {"dtype": "float16"}
        check_linear_alone(shipped, self.name)
        is_raw = any(not layer.precision.weight.symmetric for layer in shipped.quantized)
        tensors: dict[str, Tensor] = {}
        for layer in shipped.quantized:
            tensors |= self._named(layer, shipped.codes(layer), is_raw)
        replaced = {f"{layer.name}.weight" for layer in shipped.quantized}
        rest = dict(other_tensors(shipped.model, replaced))
        _check_half(rest)
        if tensors:
            config["quantization_config"] = _quantization(shipped, self.method, is_raw)
        write_folder(folder, shipped.model, config, {**rest, **tensors})

    def file_size(
        self,
        model: nn.Module,
        module: nn.Module,  # noqa: ARG002
        names: Collection[str],
    ) -> FileSize:
        """See ``SaysFileSize.file_size``."""
        # Zero points take as many bits in both layouts.
        return safetensors_size(model, names, partial(self._named, is_raw=True))

    def _named(self, layer: AssignedLayer, codes: Codes, is_raw: bool) -> dict[str, Tensor]:
        """One layer's tensors, by their names in the file."""
        own = _tensors(codes, layer.precision, is_raw)
        if self.method == "gptq":
            own["g_idx"] = _places(layer)
        return {f"{layer.name}.{key}": value for key, value in own.items()}

    def load(self, folder: Path) -> Loaded:
        """See ``Target.load``."""
        for package in self.packages:
            require(package, self.extra)
        options: dict[str, Any] = {"dtype": torch.float16}
        if self.method == "gptq":
            from transformers import AutoRoundConfig

            options["quantization_config"] = AutoRoundConfig()
        module = load_module(folder, options, ignored=r".*\.g_idx")
        found = {name: m for name, m in module.named_modules() if hasattr(m, "qweight")}
        kinds = {name: _kind(part) for name, part in found.items()}
        weights = {name: _decoded(part) for name, part in found.items()}
        return LoadedModule(module, weights, kinds, ("auto-round",))


def _tensors(codes: Codes, precision: Precision, is_raw: bool) -> dict[str, Tensor]:
    """One layer's tensors, by their names within its module.

    Args:
        codes: ``[O, K]``.
        precision: The layer's.
        is_raw: Zero points as they are; else less one, as GPTQ's first layout has them.
    """
    bits = CONTAINERS[precision.weight.number.bits]
    shift = 0
    if precision.weight.symmetric:
        # The middle of the place, which readers of symmetric weights take for the zero point.
        shift = 2 ** (bits - 1) - 2 ** (precision.weight.number.bits - 1)
    points = (codes.unsigned_zero_points() + shift).t()  # [G, O]
    stored = points if is_raw else points - 1
    return {
        "qweight": packed(codes.unsigned() + shift, bits).view(torch.int32).t(),
        "qzeros": packed(stored, bits).view(torch.int32),
        "scales": codes.scale.t().half(),
    }


def _places(layer: AssignedLayer) -> Tensor:
    """Which group each input belongs to."""
    _, num_inputs = rows_of(layer)
    group = layer.precision.weight.group_size or num_inputs
    return (torch.arange(num_inputs) // group).to(torch.int32)


def _check_half(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.half().isfinite().all()):
            raise ModelError(
                f"auto-round: {name!r} has numbers beyond fp16, in which the tool computes"
            )


def _scheme(precision: Precision) -> dict[str, Any]:
    return {
        "bits": CONTAINERS[precision.weight.number.bits],
        "group_size": precision.weight.group_size or -1,
        "sym": precision.weight.symmetric,
    }


def _quantization(shipped: Shipped, method: str, is_raw: bool) -> dict[str, Any]:
    """``quantization_config``: every linear layer by its name, also those that stay."""
    schemes = {layer.name: _scheme(layer.precision) for layer in shipped.quantized}
    common = Counter(tuple(scheme.items()) for scheme in schemes.values()).most_common(1)[0][0]
    names = [name for name, m in shipped.model.named_modules() if isinstance(m, nn.Linear)]
    stays = {"bits": 16, "data_type": "float"}
    extra = {n: {**schemes[n], "data_type": "int"} if n in schemes else stays for n in names}
    dynamic: dict[str, Mapping[str, Any]] = {}
    for name in names:
        sign = "+" if name in schemes else "-"
        dynamic[f"{sign}:^{re.escape(name)}$"] = schemes.get(name, {})
    return {
        "quant_method": method,
        **dict(common),
        "data_type": "int",
        "packing_format": "auto_round:gptqmodel" if is_raw else "auto_round:auto_gptq",
        "checkpoint_format": "gptq_v2" if is_raw else "gptq",
        "desc_act": False,
        "lm_head": "lm_head" in schemes,
        "extra_config": extra,
        "dynamic": dynamic,
    }


def _kind(part: nn.Module) -> str:
    file = type(part).__module__.rpartition(".")[2]
    return f"{type(part).__name__} of {file}, {part.bits} bits"


def _decoded(part: nn.Module) -> Tensor:
    """``[O, K]`` float32: what a layer of the tool's makes of unit vectors."""
    # Scales in float32, so that their products with codes are not rounded to fp16.
    exact: Any = copy.deepcopy(part).float()
    exact.bias = None
    inputs = torch.eye(exact.infeatures).split(ROWS_AT_ONCE)
    with torch.no_grad():
        return torch.cat([exact(rows) for rows in inputs]).t()

"""torchao: layers on the simulation's own codes, in memory and as folders for transformers."""

import copy
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor, nn

from mpq.backends.file_size import FileSize
from mpq.backends.hugging_face import (
    FolderTarget,
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
from mpq.backends.simulate import prepared, quantizer_of
from mpq.backends.target import LayerShape, Shipped, not_linear, rows_of
from mpq.errors import MissingDependencyError, PrecisionError
from mpq.network.modules import weight_of
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.codes import Codes
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.tensor_format import Granularity

KERNELS = {
    ORIGINAL: "float",
    Precision.parse("w8a32"): "int8 weights",
    Precision.parse("w8a8d"): "int8",
}
"""Precisions that there is a kernel for, and which."""

TENSOR_NAMES: Final = "tensor_names"
"""What the tool calls the list of all tensors in a file's header."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What its kernels compute in."""


@final
@dataclass(frozen=True)
class TorchAo(FolderTarget):
    """Linear layers whose weights are tensors of torchao's, with mpq's codes and scales in them.

    In memory, ``quantize`` makes layers with int8 kernels: w8a32 and w8a8d, whose inputs the kernel
    rounds symmetrically, about an int8 step from the simulation. A folder holds 2 to 8 bits as
    ``IntxUnpackedToInt8Tensor``, which computes in floating point, as the simulation does.

    Args:
        dtype: Of the network's parameters, in which a folder stores scales.
    """

    name: ClassVar[str] = "torchao"
    summary: ClassVar[str] = "torch with torchao's int8 linear layers: w8a32, w8a8d; a folder"
    makes_networks: ClassVar[bool] = True
    extra: ClassVar[str] = "torchao"
    packages: ClassVar[tuple[str, ...]] = ("transformers", "torchao")
    readers: ClassVar[str] = "transformers"
    holds: ClassVar[str] = (
        "linear layers: w2 to w8, w2z to w8z, per tensor, channel or group, with inputs in "
        "floating point or a8d; all else as it came"
    )
    candidates: ClassVar[tuple[str, ...]] = ("w3g32", "w4", "w4g32", "w5g32", "w6", "w8")
    # A folder of float32 has all scales in float32.
    numerics: ClassVar[Numerics] = Numerics(group_scale="fp32")
    notes: ClassVar[tuple[str, ...]] = (
        "An exchange format: it stores one byte per code, so that 2 to 7 bits take as much as 8.",
        "transformers decodes to floating point as it runs: this proves the file and no kernel.",
    )

    def refusal(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.refusal``."""
        weight, read = precision.weight, precision.activation
        _, num_inputs = rows_of(layer)
        if why := not_linear(layer, self.name):
            return why
        if not weight.is_scaled_integer or not 2 <= weight.number.bits <= 8:
            return f"it holds integers of 2 to 8 bits, and no {weight.number.name}"
        if weight.group_size and num_inputs % weight.group_size:
            return f"{num_inputs} inputs are no whole groups of {weight.group_size}"
        is_a8d = read == Precision.parse("w8a8d").activation
        return "" if read.is_exact or is_a8d else "it rounds inputs to a8d or not at all"

    def stored_bits(self, layer: LayerShape, precision: Precision) -> int:
        """See ``Target.stored_bits``; a byte for every code and zero point, whatever their bits."""
        num_channels, num_inputs = rows_of(layer)
        group = precision.weight.group_size or num_inputs
        per_group = 8 * self.dtype.itemsize + 8
        return num_channels * (num_inputs * 8 + num_inputs // group * per_group)

    def stored_kind(self, layer: LayerShape, precision: Precision) -> str:  # noqa: ARG002
        """See ``Target.stored_kind``."""
        return f"of int{precision.weight.number.bits}"

    def write(self, shipped: Shipped, folder: Path) -> None:
        """See ``Target.write``."""
        config = config_of(shipped.model, self.name)
        torchao = quantization()
        require("transformers", self.extra)
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
        from transformers import TorchAoConfig

        check_linear_alone(shipped, self.name)
        tensors: dict[str, Tensor] = {
            f"{layer.name}.weight": _unpacked(shipped.codes(layer), layer.precision, self.dtype)
            for layer in shipped.quantized
        }
        schemes = {layer.name: scheme(layer.precision) for layer in shipped.quantized}
        rest = dict(other_tensors(shipped.model, set(tensors)))
        flat, told = flatten_tensor_state_dict({**rest, **tensors})
        if schemes:
            chosen = TorchAoConfig(
                torchao.FqnToConfig(schemes),
                # Else transformers leaves the last layer out, which is one by name as all are.
                include_input_output_embeddings=True,
            )
            config["quantization_config"] = chosen.to_dict()
        write_folder(folder, shipped.model, config, flat, told)

    def file_size(
        self,
        model: nn.Module,
        module: nn.Module,  # noqa: ARG002
        names: Collection[str],
    ) -> FileSize:
        """See ``SaysFileSize.file_size``: what the tool says of every tensor, too."""
        quantization()
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

        def written(layer: AssignedLayer, codes: Codes) -> Mapping[str, Tensor]:
            return {f"{layer.name}.weight": _unpacked(codes, layer.precision, self.dtype)}

        def laid(tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
            flat, told = flatten_tensor_state_dict(tensors)
            return flat, {name: told[name] for name in tensors}

        # Beside these a list of all, which has the same names whatever is quantized.
        listed = json.dumps(list(dict(other_tensors(model, set()))))
        return safetensors_size(model, names, written, laid, metadata={TENSOR_NAMES: listed})

    def load(self, folder: Path) -> Loaded:
        """See ``Target.load``."""
        require("transformers", self.extra)
        quantization()
        module = load_module(folder)
        kinds: dict[str, str] = {}
        weights: dict[str, Tensor] = {}
        for name, part in module.named_modules():
            weight = getattr(part, "weight", None)
            if hasattr(weight, "qdata"):
                assert isinstance(weight, Tensor)
                # The loader leaves these in the file's dtype, and all else is in float32.
                part.weight = nn.Parameter(weight := weight.to(torch.float32), requires_grad=False)
                told = str(getattr(weight, "target_dtype", weight.dtype)).removeprefix("torch.")
                kinds[name] = f"{type(part).__name__} {type(weight).__name__} of {told}"
                weights[name] = weight.dequantize()
        return LoadedModule(module, weights, kinds, ("torchao",))

    def quantize(self, model: nn.Module, assignment: Assignment) -> nn.Module:
        """See ``Backend.quantize``.

        Raises:
            MissingDependencyError: If ``mpq[torchao]`` is not installed.
            PrecisionError: If a layer has no kernel, or not in its dtype; names it.
        """
        quantization()
        # All layers before the copy, which takes as much memory as the network.
        for layer in assignment.layers:
            if layer.precision != ORIGINAL and not has_kernel(layer.kind, layer.precision):
                raise PrecisionError(
                    f"torchao has no kernel for the {layer.kind} layer {layer.name!r} at "
                    f"{layer.precision}; it has linear layers at w8a32 and w8a8d, and fp32"
                )
        module = prepared(model, assignment)
        _check_numbers(module, assignment)
        # a deep copy: its layers get other weights, and the module is the user's until then
        module = copy.deepcopy(module)
        weights = {name: module.get_submodule(name) for name in assignment.precisions}
        convert(module, assignment.precisions, quantizer_of(assignment), weights)
        return module


def has_kernel(kind: str, precision: Precision) -> bool:
    """Whether torchao computes a layer of that kind in that precision."""
    return precision == ORIGINAL or (kind == "linear" and precision in KERNELS)


def _check_numbers(module: nn.Module, assignment: Assignment) -> None:
    for name, precision in assignment.precisions.items():
        dtype = weight_of(module.get_submodule(name)).dtype
        if precision != ORIGINAL and dtype not in DTYPES:
            found = str(dtype).removeprefix("torch.")
            raise PrecisionError(
                f"torchao has no kernel for the layer {name!r} in {found}; it has them in float32, "
                "float16 and bfloat16: convert the network"
            )


def convert(
    module: nn.Module,
    precisions: Mapping[str, Precision],
    quantizer: Quantizer,
    layer_modules: Mapping[str, nn.Module],
) -> None:
    """Makes torchao's layers of those that are not float, in place.

    Args:
        module: What holds the layers; they get other weights.
        precisions: Layer name to precision; each has a kernel.
        quantizer: Rounds the weights as the search did; knows the scales of each layer.
        layer_modules: Layer name to the module in ``module``.
    """
    torchao = quantization()
    configurations: dict[str, Any] = {
        "int8 weights": torchao.Int8WeightOnlyConfig,
        "int8": torchao.Int8DynamicActivationInt8WeightConfig,
    }
    assigned = {name: p for name, p in precisions.items() if p != ORIGINAL}
    # All before any is converted: layers may share a parameter.
    codes = {n: quantizer.codes(n, layer_modules[n], p.weight) for n, p in assigned.items()}
    for name, precision in assigned.items():
        layer_module = layer_modules[name]
        # One layer at a time, as each has its own precision and `quantize_` walks all of `module`.
        chosen = configurations[KERNELS[precision]]()
        torchao.quantize_(module, chosen, filter_fn=_is(layer_module))
        weight: Any = layer_module.weight
        # torchao's own rounding makes room for ours.
        with torch.no_grad():
            for target, source in zip(
                (weight.qdata, weight.scale), _stored(codes[name]), strict=False
            ):
                target.copy_(source)


def _stored(codes: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zero points as all of torchao's tensors hold them; codes are signed."""
    middle = 2 ** (codes.tensor_format.number.bits - 1)
    signed = (codes.unsigned() - middle).to(torch.int8)
    points = (codes.unsigned_zero_points() - middle).to(torch.int8)
    return signed, codes.scale, points


def _unpacked(codes: Codes, precision: Precision, dtype: torch.dtype) -> Tensor:
    """A weight as folders hold it: a byte for every code."""
    group = precision.weight.group_size or codes.num_inputs
    signed, scale, points = _stored(codes)
    made: Tensor = quantization().IntxUnpackedToInt8Tensor(
        signed,
        scale.to(dtype),
        points,
        target_dtype=_dtype(precision),
        block_size=(1, group),
        dtype=dtype,
        activation_quantization=None if precision.activation.is_exact else "int8_asym_per_token",
    )
    return made


def _dtype(precision: Precision) -> torch.dtype:
    found: torch.dtype = getattr(torch, f"int{precision.weight.number.bits}")
    return found


def scheme(precision: Precision) -> Any:
    """What torchao calls a precision."""
    torchao = quantization()
    weight = precision.weight
    is_group = weight.granularity is Granularity.GROUP
    shared = torchao.PerGroup(weight.group_size) if is_group else torchao.PerAxis(0)
    mapping = torchao.MappingType.SYMMETRIC if weight.symmetric else torchao.MappingType.ASYMMETRIC
    if precision.activation.is_exact:
        return torchao.IntxWeightOnlyConfig(_dtype(precision), shared, mapping)
    return torchao.Int8DynamicActivationIntxWeightConfig(_dtype(precision), shared, mapping)


def quantization() -> Any:
    """torchao's module of that name.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        from torchao import quantization as found
    except ImportError as error:
        raise MissingDependencyError(
            "torchao is not installed: pip install 'mpq[torchao]'"
        ) from error
    return found


def _is(layer_module: nn.Module) -> Callable[[nn.Module, str], bool]:
    # By identity: names are those within `module`, which may be a layer's parent alone.
    return lambda candidate, _: candidate is layer_module

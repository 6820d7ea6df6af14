"""torchao's integer kernels for linear layers, on the simulation's numbers."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import nn

from mpq.backends._base import Backend
from mpq.backends.simulate import prepared, quantizer_of
from mpq.errors import MissingDependencyError, PrecisionError
from mpq.network.modules import weight_of
from mpq.problem.assignment import Assignment
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer

KERNELS = {
    ORIGINAL: "float",
    Precision.parse("w8a32"): "int8 weights",
    Precision.parse("w8a8d"): "int8",
}
"""Precisions that there is a kernel for, and which."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What its kernels compute in."""


@final
@dataclass(frozen=True)
class TorchAo(Backend):
    """Eager torch; linear layers with int8 weights, and int8 activations rounded while running.

    Weights are put on the simulation's grid first; torchao then rounds them again, with a scale of
    its own (the largest number over 127.5), so that outputs agree to about an int8 step and not to
    the bit.
    """

    name: ClassVar[str] = "torchao"
    summary: ClassVar[str] = "torch with torchao's int8 linear layers: w8a32, w8a8d, fp32"
    makes_networks: ClassVar[bool] = True
    writes_files: ClassVar[bool] = False

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
        # a deep copy: torchao writes into the weights, and these are the user's until then
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
        module: What holds the layers; its weights are overwritten.
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
    # All are rounded before any is written: layers that share a parameter would round it twice.
    rounded = {n: quantizer.weight(n, layer_modules[n], p.weight) for n, p in assigned.items()}
    for name, precision in assigned.items():
        layer_module = layer_modules[name]
        with torch.no_grad():
            weight_of(layer_module).copy_(rounded[name])
        # One layer at a time, as each has its own precision and `quantize_` walks all of `module`.
        chosen = configurations[KERNELS[precision]]()
        torchao.quantize_(module, chosen, filter_fn=_is(layer_module))


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

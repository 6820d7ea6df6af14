"""torch itself, with torchao's integer kernels for linear layers."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import nn

from mpq.backends.onnx import Stretch
from mpq.errors import InputError, MissingDependencyError
from mpq.hardware_profiles.profiling._base import Array, Program
from mpq.hardware_profiles.profiling.compiled_network import Subject
from mpq.network.modules import weight_of
from mpq.quantization.precision import ORIGINAL, Precision

_KERNELS = {
    ORIGINAL: "float",
    Precision.parse("w8a32"): "int8 weights",
    Precision.parse("w8a8d"): "int8",
}


@final
@dataclass(frozen=True)
class TorchAo:
    """Eager torch; linear layers with int8 weights, and int8 activations rounded while running.

    Weights are put on the simulation's grid first, so that torchao finds the same integers.

    Args:
        num_threads: Of one run.
    """

    name: ClassVar[str] = "torchao"
    summary: ClassVar[str] = "torch: float32; linear layers in int8 by torchao"
    package: ClassVar[str] = "torchao"
    default_precisions: ClassVar[tuple[str, ...]] = ("fp32", "w8a32", "w8a8d")
    runs_pairs: ClassVar[bool] = False
    num_threads: int = 1

    def __post_init__(self) -> None:
        if self.num_threads < 1:
            raise InputError(f"torchao needs num_threads >= 1; got {self.num_threads}")

    def can_run(self, kind: str, precision: Precision) -> bool:
        """Whether there is a kernel."""
        return precision == ORIGINAL or (kind == "linear" and precision in _KERNELS)

    def kernel(self, kind: str, precision: Precision) -> str:
        """Float, or which integer kernel."""
        return _KERNELS[precision] if self.can_run(kind, precision) else ""

    def stretch(
        self, subject: Subject, stretch: Stretch, precisions: Mapping[str, Precision]
    ) -> Program:
        """One layer alone, all its calls."""
        (name,) = stretch.layers
        holder = nn.Sequential(copy.deepcopy(subject.network.layer_module(name)))
        _quantize(subject, holder, {name: precisions[name]}, {name: "0"})
        examples = [torch.from_numpy(x) for x in stretch.examples]
        return self._program(holder, lambda: [holder(x) for x in examples])

    def network(self, subject: Subject, precisions: Mapping[str, Precision]) -> Program:
        """The whole network."""
        module = copy.deepcopy(subject.network.module)
        _quantize(subject, module, precisions, {name: name for name in precisions})
        example = subject.skeleton.example
        return self._program(module, lambda: module(*example.args, **example.kwargs))

    def idle(self) -> Program:
        """Nothing is called."""
        _quantization()
        return self._program(nn.Identity(), lambda: None)

    def _program(self, module: nn.Module, call: Callable[[], object]) -> Program:
        def run() -> object:
            before = torch.get_num_threads()
            torch.set_num_threads(self.num_threads)
            try:
                with torch.inference_mode():
                    return call()
            finally:
                torch.set_num_threads(before)

        def outputs(*values: Array) -> Array:
            with torch.inference_mode():
                found: Array = module(torch.from_numpy(values[0])).numpy()
            return found

        return Program(run, outputs)


def _quantize(
    subject: Subject,
    module: nn.Module,
    precisions: Mapping[str, Precision],
    places: Mapping[str, str],
) -> None:
    """Makes torchao's layers of those that are not float."""
    quantization = _quantization()
    configurations: dict[str, Any] = {
        "int8 weights": quantization.Int8WeightOnlyConfig,
        "int8": quantization.Int8DynamicActivationInt8WeightConfig,
    }
    for name, precision in precisions.items():
        if precision == ORIGINAL:
            continue
        layer_module = module.get_submodule(places[name])
        rounded = subject.quantizer.weight(
            name, subject.network.layer_module(name), precision.weight
        )
        with torch.no_grad():
            weight_of(layer_module).copy_(rounded)
        chosen = configurations[_KERNELS[precision]]()
        quantization.quantize_(module, chosen, filter_fn=_is_at(places[name]))


def _quantization() -> Any:
    try:
        from torchao import quantization
    except ImportError as error:
        raise MissingDependencyError(
            "the runtime torchao is not installed: pip install 'mpq[torchao]'"
        ) from error
    return quantization


def _is_at(place: str) -> Callable[[nn.Module, str], bool]:
    return lambda _, name: name == place

"""torch itself, with torchao's integer kernels for linear layers."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from mpq._support.arrays import AnyArray
from mpq.backends.onnx import Subgraph
from mpq.backends.torchao import KERNELS, convert, has_kernel, quantization
from mpq.errors import InputError
from mpq.hardware_profiles.profiling._base import Program
from mpq.hardware_profiles.profiling.compiled_network import CompiledNetwork
from mpq.quantization.precision import Precision


@final
@dataclass(frozen=True)
class TorchAo:
    """Eager torch; linear layers with int8 weights, and int8 activations rounded while running.

    Weights are the simulation's codes and scales; inputs are rounded by the kernel, to about an
    int8 step (see ``mpq.backends.torchao``).

    Args:
        num_threads: How many threads one run may use.
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
        return has_kernel(kind, precision)

    def kernel(self, kind: str, precision: Precision) -> str:
        """Float, or which integer kernel."""
        return KERNELS[precision] if self.can_run(kind, precision) else ""

    def subgraph(
        self, compiled: CompiledNetwork, subgraph: Subgraph, precisions: Mapping[str, Precision]
    ) -> Program:
        """One layer alone, all its calls."""
        (name,) = subgraph.layers
        # In a parent, as `convert` goes through a module that holds layers; a copy, as it gives
        # them other weights.
        holder = nn.Sequential(copy.deepcopy(compiled.network.layer_module(name)))
        convert(holder, {name: precisions[name]}, compiled.quantizer, {name: holder[0]})
        examples = [torch.from_numpy(x) for x in subgraph.examples]
        return self._program(holder, lambda: [holder(x) for x in examples])

    def network(self, compiled: CompiledNetwork, precisions: Mapping[str, Precision]) -> Program:
        """The whole network."""
        # `convert` gives layers other weights, and these are the user's.
        module = copy.deepcopy(compiled.network.module)
        layers = {name: module.get_submodule(name) for name in precisions}
        convert(module, precisions, compiled.quantizer, layers)
        example = compiled.template.example
        return self._program(module, lambda: module(*example.args, **example.kwargs))

    def idle(self) -> Program:
        """Nothing is called."""
        # For its error alone: `Profiling` asks for an idle run before anything is measured.
        quantization()
        return self._program(nn.Identity(), lambda: None)

    def _program(self, module: nn.Module, call: Callable[[], object]) -> Program:
        def run() -> object:
            # The number is torch's own, for all of the process. Setting it takes time in the idle
            # run as well, and so is taken off again.
            before = torch.get_num_threads()
            torch.set_num_threads(self.num_threads)
            try:
                with torch.inference_mode():
                    return call()
            finally:
                torch.set_num_threads(before)

        def outputs(*values: AnyArray) -> AnyArray:
            with torch.inference_mode():
                found: AnyArray = module(torch.from_numpy(values[0])).numpy()
            return found

        return Program(run, outputs)

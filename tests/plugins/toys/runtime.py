"""A runtime of another package: torch itself, which has a kernel for floats only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from mpq._support.arrays import AnyArray
from mpq.backends.onnx import Subgraph
from mpq.hardware_profiles.profiling import CompiledNetwork, Program
from mpq.quantization.precision import ORIGINAL, Precision


@final
@dataclass(frozen=True)
class ToyRuntime:
    """Eager torch.

    Args:
        num_threads: Threads of one run.
    """

    name: ClassVar[str] = "toy-runtime"
    summary: ClassVar[str] = "torch in float32"
    package: ClassVar[str] = "torch"
    default_precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    runs_pairs: ClassVar[bool] = False

    num_threads: int = 1

    def can_run(self, kind: str, precision: Precision) -> bool:
        """See ``Runtime.can_run``."""
        return bool(kind) and precision == ORIGINAL

    def kernel(self, kind: str, precision: Precision) -> str:
        """See ``Runtime.kernel``."""
        return "eager" if self.can_run(kind, precision) else ""

    def subgraph(
        self, compiled: CompiledNetwork, subgraph: Subgraph, precisions: Mapping[str, Precision]
    ) -> Program:
        """See ``Runtime.subgraph``."""
        assert set(precisions.values()) == {ORIGINAL}
        module = compiled.network.layer_module(subgraph.layers[0])
        examples = [torch.from_numpy(example) for example in subgraph.examples]
        return _program(module, lambda: [module(example) for example in examples])

    def network(self, compiled: CompiledNetwork, precisions: Mapping[str, Precision]) -> Program:
        """See ``Runtime.network``."""
        assert set(precisions.values()) == {ORIGINAL}
        module, example = compiled.network.module, compiled.template.example
        return _program(module, lambda: module(*example.args, **example.kwargs))

    def idle(self) -> Program:
        """See ``Runtime.idle``."""
        return _program(nn.Identity(), lambda: None)


def _program(module: nn.Module, call: Callable[[], object]) -> Program:
    def outputs(*values: AnyArray) -> AnyArray:
        found: AnyArray = module(torch.from_numpy(values[0])).detach().numpy()
        return found

    return Program(call, outputs)

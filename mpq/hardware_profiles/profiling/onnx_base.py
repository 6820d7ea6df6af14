"""Runtimes that execute ONNX graphs: what they have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from mpq._support.arrays import AnyArray
from mpq.backends.onnx import Subgraph, fill, idle_graph, kernel_of
from mpq.hardware_profiles.profiling._base import Program
from mpq.hardware_profiles.profiling.compiled_network import CompiledNetwork
from mpq.quantization.precision import Precision

if TYPE_CHECKING:
    import onnx


class GraphRuntime(ABC):
    """Runs ONNX graphs: a part of the network, the network, nothing."""

    runs_pairs: ClassVar[bool] = True

    def can_run(self, kind: str, precision: Precision) -> bool:
        """Whether there is a kernel."""
        return kernel_of(kind, precision) is not None

    def kernel(self, kind: str, precision: Precision) -> str:
        """How the layer is written in ONNX."""
        kernel = kernel_of(kind, precision)
        # Also what does not run has an index in `Parts`, and an index needs a name.
        return "" if kernel is None else kernel.value

    def subgraph(
        self, compiled: CompiledNetwork, subgraph: Subgraph, precisions: Mapping[str, Precision]
    ) -> Program:
        """A part of the network, from floats to floats."""
        graph = fill(compiled.template, precisions, compiled.quantizer, subgraph.graph)
        return self.compiled(graph, list(subgraph.examples))

    def network(self, compiled: CompiledNetwork, precisions: Mapping[str, Precision]) -> Program:
        """The whole network."""
        graph = fill(compiled.template, precisions, compiled.quantizer)
        # The values are in the order of the graph's inputs, which is how runtimes take them.
        return self.compiled(graph, list(compiled.template.feeds.values()))

    def idle(self) -> Program:
        """One number, handed through."""
        return self.compiled(*idle_graph())

    @abstractmethod
    def compiled(self, graph: "onnx.ModelProto", examples: list[AnyArray]) -> Program:
        """A graph, ready to run on its example inputs.

        Raises:
            MissingDependencyError: If the runtime is not installed.
            ModelError: If it cannot load the graph.
        """

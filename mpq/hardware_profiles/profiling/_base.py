"""What runs a network on this machine, and what may be timed of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, final

from mpq._support.arrays import AnyArray
from mpq.backends.onnx import Subgraph
from mpq.hardware_profiles.profiling.compiled_network import CompiledNetwork
from mpq.quantization.precision import Precision


@final
@dataclass(frozen=True, eq=False)
class Program:
    """Something compiled that is run again and again on the same input.

    Args:
        run: Runs it once, on one input.
        outputs: Runs it on other inputs, in the order of the network's; its first output.
    """

    run: Callable[[], object]
    outputs: Callable[..., AnyArray]


class Runtime(Protocol):
    """A library that executes networks in several number formats; a dataclass of its options.

    ``runs_pairs`` says whether it can run two layers with what is between them.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    package: ClassVar[str]
    default_precisions: ClassVar[tuple[str, ...]]
    runs_pairs: ClassVar[bool]

    @property
    def num_threads(self) -> int:
        """Of one run."""

    def can_run(self, kind: str, precision: Precision) -> bool:
        """Whether a kind of layer has a kernel at a precision."""

    def kernel(self, kind: str, precision: Precision) -> str:
        """Name of that kernel: precisions that share one take about as long."""

    def subgraph(
        self, compiled: CompiledNetwork, subgraph: Subgraph, precisions: Mapping[str, Precision]
    ) -> Program:
        """A part of the network, from floats to floats.

        Args:
            compiled: The network that the part is of, calibrated and exported.
            subgraph: The part: one layer, or two with what is between them.
            precisions: Layer name to the precision that it is run in.
        """

    def network(self, compiled: CompiledNetwork, precisions: Mapping[str, Precision]) -> Program:
        """The whole network, every layer at its precision."""

    def idle(self) -> Program:
        """What a run costs that computes nothing."""

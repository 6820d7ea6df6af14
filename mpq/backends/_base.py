"""What turns an assignment into something that runs: the interface of every backend."""

from abc import ABC
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

from torch import nn

from mpq._support.bounds import Bounded
from mpq.errors import InputError
from mpq.network.layer import CACHES
from mpq.problem.assignment import Assignment
from mpq.quantization.precision import Precision

HELD: Final = "held"
"""Keys and values are rounded as the assignment says."""
REFUSED: Final = "refused"
"""Nothing is made of an assignment that rounds them."""


@final
@dataclass(frozen=True)
class Exported:
    """What a file holds, and how it was found to compute.

    Args:
        content: The whole file, as bytes that can be written as they are.
        verdict: The comparison with the simulation, for people; empty where nothing computes.
        deviation: Largest difference from the simulation over the first examples, in standard
            deviations of the outputs; ``None`` where it was not tried.
    """

    content: bytes
    verdict: str = ""
    deviation: float | None = None


class Backend(Bounded, ABC):
    """Makes a network that computes in an assignment, or a file that other tools read, or both.

    What a backend does not make, it refuses by name, before anything is computed.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    makes_networks: ClassVar[bool] = False
    """Whether ``quantize`` is there; what writes files only says no."""
    writes_files: ClassVar[bool] = True
    """Whether ``export`` is there; what makes networks only says no."""
    caches: ClassVar[str] = REFUSED
    """What becomes of key-value caches: ``HELD`` or ``REFUSED``."""
    operands: ClassVar[str] = REFUSED
    """And of operands of operations between layers."""
    needs_network: ClassVar[bool] = True
    """Whether its file holds more than the assignment; what does not is text, for a terminal."""

    def cache_refusal(self, precision: Precision) -> str:  # noqa: ARG002
        """Why a key-value cache at a precision cannot be had with it; empty where it can."""
        return "" if self.caches == HELD else f"{self.name} holds no key-value cache"

    def operand_refusal(self, precision: Precision) -> str:  # noqa: ARG002
        """Why an operand at a precision cannot be had with it; empty where it can."""
        return "" if self.operands == HELD else f"{self.name} rounds inputs of layers alone"

    def weightless_refusal(self, kind: str, precision: Precision) -> str:
        """The one or the other, by the kind of a layer without weights."""
        return (self.cache_refusal if kind in CACHES else self.operand_refusal)(precision)

    def quantize(self, model: nn.Module, assignment: Assignment) -> nn.Module:  # noqa: ARG002
        """A new network that computes in the assigned formats; the given one stays as it is.

        Args:
            model: The network that the assignment was found for, in evaluation mode.
            assignment: With the calibrated ranges of static activation formats.

        Raises:
            InputError: If the backend makes no networks.
            MismatchError: If the assignment belongs to another network.
            PrecisionError: If a layer's precision has no kernel.
        """
        # Not abstract, like `export`: most backends have one of the two, and this is what the other
        # says.
        raise InputError(f"the backend {self.name} makes no network")

    def export(
        self,
        assignment: Assignment,  # noqa: ARG002
        model: nn.Module | None,  # noqa: ARG002
        calibration: Any,  # noqa: ARG002
    ) -> Exported:
        """A file that other tools read.

        Args:
            assignment: The precision of every layer, with calibrated ranges.
            model: The network, for backends whose file holds its weights.
            calibration: Example inputs, for backends that trace the network.

        Raises:
            InputError: If the backend makes no files, or needs the network and has none.
            MismatchError: If the assignment belongs to another network.
            PrecisionError: If a layer's precision has no kernel.
        """
        raise InputError(f"the backend {self.name} writes no file")

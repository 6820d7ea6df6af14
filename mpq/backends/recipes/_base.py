"""What a recipe is: files of text for a tool that quantizes by itself."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from torch import nn

from mpq._support.names import visible
from mpq.backends._base import Backend, Exported
from mpq.backends.numbers_refusal import numbers_refusal
from mpq.errors import PrecisionError
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import ORIGINAL

NOT_OURS: Final = (
    "a recipe of mpq: the tool finds scales and rounds by itself, so these are not the codes that "
    "were searched; measure what it makes"
)


class Recipe(Backend):
    """Settings by layer for another tool's quantizer, in a folder of their own."""

    file: ClassVar[str]
    """The name of the file that the tool reads."""
    needs_network: ClassVar[bool] = False
    note: ClassVar[str] = NOT_OURS
    """What stands in the file for people."""
    rounded: ClassVar[str] = (
        "what the search measured was rounded by {rounding}, with regard to data, and the tool "
        "does not do that: expect it to lose more"
    )
    """The same of weights that were rounded with regard to data."""

    @abstractmethod
    def refusal(self, layer: AssignedLayer) -> str:
        """Why the tool has no setting for a layer's precision; empty where it has.

        Args:
            layer: Not fp32.
        """

    @abstractmethod
    def text(self, layers: Sequence[AssignedLayer], note: str) -> str:
        """The file.

        Args:
            layers: Those that are quantized; none is refused.
            note: For people; stands in the file.
        """

    def files(
        self,
        assignment: Assignment,
        model: nn.Module | None,  # noqa: ARG002
        calibration: Any,  # noqa: ARG002
    ) -> Mapping[str, bytes]:
        """Name to content, the tool's file first.

        Args:
            assignment: The precision of every layer.
            model: The network, for recipes that hold names or scales of its own.
            calibration: Examples, for recipes that trace it.

        Raises:
            PrecisionError: If the tool has no setting for a layer; names the layers.
        """
        return {self.file: self.text(self.check(assignment), self.note_of(assignment)).encode()}

    def export(self, assignment: Assignment, model: nn.Module | None, calibration: Any) -> Exported:
        """See ``Backend.export``: the tool's file alone."""
        return Exported(self.files(assignment, model, calibration)[self.file])

    def why_not(self, layer: AssignedLayer) -> str:
        """``refusal``, and why scales are not what the precision asks for."""
        return numbers_refusal(layer.precision, None) or self.refusal(layer)

    def check(self, assignment: Assignment) -> list[AssignedLayer]:
        """Layers that are quantized.

        Raises:
            PrecisionError: Names those that the tool has no setting for, and the reasons.
        """
        asked = [layer for layer in assignment.layers if layer.precision != ORIGINAL]
        found = ((layer, self.why_not(layer)) for layer in asked)
        refused = [f"layer {x.name!r} at {x.precision}: {why}" for x, why in found if why]
        if refused:
            more = f" (and {len(refused) - 3} more)" if len(refused) > 3 else ""
            raise PrecisionError(
                f"{self.name} has no setting for the assignment: {'; '.join(refused[:3])}{more}"
            )
        return asked

    def note_of(self, assignment: Assignment) -> str:
        """What stands in the file for people."""
        said = [self.note]
        if assignment.weights is not None:
            said.append(self.rounded.format(rounding=assignment.weights.rounding))
        if assignment.folded:
            pairs = ", ".join(f"{norm} into {layer}" for layer, norm in assignment.folded.items())
            said.append(f"searched with BatchNorm folded: {pairs}")
        return "; ".join(said)


def commented(note: str) -> str:
    """A note as a comment of YAML."""
    # In one line, whatever modules are called; YAML has no control characters, also in comments.
    return f"# {visible(' '.join(note.split()))}\n"

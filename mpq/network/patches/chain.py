"""A network's first operations, of which windows can be computed, and where to cut them off."""

from dataclasses import dataclass
from typing import final

from mpq.errors import ModelError, UnknownNameError
from mpq.network.patches.operations import WindowedOperation, Windows
from mpq.network.patches.recording import Recorded


@final
@dataclass(frozen=True, eq=False)
class Chain:
    """Operations from the input on that all can be done window by window.

    Args:
        recorded: The whole forward pass.
        length: How many of its first operations.
        end: Why the next one cannot, in a sentence that names it; empty: the network ends.
        cuts: Operations after which nothing is needed but what they make.
    """

    recorded: Recorded
    length: int
    end: str
    cuts: tuple[int, ...]

    @classmethod
    def of(cls, recorded: Recorded) -> "Chain":
        """The chain of a forward pass.

        Raises:
            ModelError: If there is no place to cut it off.
        """
        length, end = _beginning(recorded)
        found = cls(recorded, length, end, tuple(_cuts(recorded, length)))
        if not found.cuts:
            raise ModelError(
                "the network does not begin with layers that can run patch by patch: "
                f"{end or 'nothing of it can be cut off behind one tensor'}; patches need a chain "
                "of convolutions, BatchNorm, activations, pooling and additions from the input on"
            )
        return found

    def position(self, cut: str) -> int:
        """The operation of that name, as a place to cut.

        Raises:
            UnknownNameError: If there is none of that name.
            ModelError: If the chain ends before, or something else is needed behind it.
        """
        names = [operation.name for operation in self.recorded.operations]
        if cut not in names:
            raise UnknownNameError("operation", cut, names)
        place = names.index(cut)
        if place >= self.length:
            raise ModelError(f"patches cannot go as far as {cut}: {self.end}")
        if place not in self.cuts:
            where = [names[each] for each in self.cuts]
            raise ModelError(
                f"behind {cut} more than its output is needed; cut at one of {', '.join(where)}"
            )
        return place

    @property
    def sensible_cuts(self) -> tuple[int, ...]:
        """Cuts behind the first convolution, but those before an operation in place.

        Behind that as much is held. Raises nothing: there may be none.
        """
        operations = self.recorded.operations
        weighing = [place for place, each in enumerate(operations) if each.macs]
        return tuple(
            cut
            for cut in self.cuts
            if weighing
            and cut >= weighing[0]
            and not (cut + 1 in self.cuts and operations[cut + 1].is_elementwise)
        )

    def windows(self, cut: int, patch: Windows) -> dict[int, Windows]:
        """Image to what is computed of it, where a window of the cut's output is wanted."""
        operations = self.recorded.operations[: cut + 1]
        found = {operations[-1].writes[0]: patch}
        for operation in reversed(operations):
            wanted = found.get(operation.writes[0])
            if wanted is None:
                continue  # nobody reads it
            assert isinstance(operation.windowed, WindowedOperation)
            for image in operation.reads:
                plane = self.recorded.images[image].plane
                assert plane is not None
                needed = [
                    reading.needed(span).within(size)
                    for reading, span, size in zip(
                        operation.windowed.readings, wanted, plane, strict=True
                    )
                ]
                known = found.get(image, (None, None))
                found[image] = (needed[0].hull(known[0]), needed[1].hull(known[1]))
        return found


def _beginning(recorded: Recorded) -> tuple[int, str]:
    """How many operations run window by window, and why the next one does not."""
    seconds: set[int] = set()
    for length, operation in enumerate(recorded.operations):
        if isinstance(operation.windowed, str):
            return length, f"{operation.name} {operation.windowed}"
        # Such as the places of maxima, which count in the whole plane.
        if seconds & set(operation.reads):
            return length, f"{operation.name} reads the second output of an operation"
        seconds.update(operation.writes[1:])
    return len(recorded.operations), ""


def _cuts(recorded: Recorded, length: int) -> list[int]:
    """Operations of the first ones behind which their output is read, and no earlier image."""
    last_read = _last_reads(recorded)
    there = set(range(recorded.num_inputs))
    found = []
    for place, operation in enumerate(recorded.operations[:length]):
        there.update(operation.writes)
        there = {image for image in there if last_read.get(image, -1) > place}
        if there == {operation.writes[0]}:
            found.append(place)
    return found


def _last_reads(recorded: Recorded) -> dict[int, int]:
    """Image to the last operation that reads it; past them all where the network returns it."""
    found: dict[int, int] = {}
    for place, operation in enumerate(recorded.operations):
        found.update(dict.fromkeys(operation.reads, place))
    return found | dict.fromkeys(recorded.outputs, len(recorded.operations))

"""What patches take: memory while they run and afterwards, and arithmetic that is done twice."""

from dataclasses import dataclass, replace
from typing import Any, Final, final

from mpq.errors import ModelError
from mpq.network.liveness import Lifetimes, Step, Value
from mpq.network.patches.chain import Chain
from mpq.network.patches.operations import Windows
from mpq.network.patches.recording import Image, Operation, Recorded
from mpq.network.patches.windows import patches_of

_BITS_OF_BYTE: Final = 8


@final
@dataclass(frozen=True)
class PatchPlan:
    """The first operations of a network by ``num_patches`` times ``num_patches`` patches.

    Args:
        cut: Operation whose output is made of patches.
        position: Its place among the operations that depend on the input.
        shape: Channels, rows and columns of that output.
        num_patches: Along rows, and along columns.
        bits: Of every number between operations.
        is_input_streamed: Whether every patch's piece of the input comes as it is needed (from a
            camera, a decoder); else all of the input is held until the last patch.
        patches_ram_bytes: Most that is held while a patch runs: its own tensors, the whole output
            of the cut, and the input.
        rest_ram_bytes: Most that is held behind the cut.
        whole_ram_bytes: Most that the network holds without patches.
        chain_macs: Multiply-accumulates up to the cut without patches.
        patches_macs: The same, by patches.
        network_macs: Of the whole network without patches.
    """

    cut: str
    position: int
    shape: tuple[int, int, int]
    num_patches: int
    bits: int
    is_input_streamed: bool
    patches_ram_bytes: int
    rest_ram_bytes: int
    whole_ram_bytes: int
    chain_macs: int
    patches_macs: int
    network_macs: int

    @property
    def ram_bytes(self) -> int:
        """Most that the network holds by this plan."""
        return max(self.patches_ram_bytes, self.rest_ram_bytes)

    @property
    def recomputed_macs(self) -> int:
        """Multiply-accumulates more than without patches.

        Below 0 where patches leave out what no output reads, such as a last row behind a stride.
        """
        return self.patches_macs - self.chain_macs

    @property
    def recomputed_share(self) -> float:
        """The same, of all that the network takes without patches."""
        return self.recomputed_macs / self.network_macs if self.network_macs else 0.0

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuses another network, or images of another size.

        Args:
            shape: Of what is made at the cut, without examples.

        Raises:
            ModelError: If it is another one than planned.
        """
        if shape != self.shape:
            raise ModelError(self.is_of_others)

    @property
    def is_of_others(self) -> str:
        """What is said where a network does something else than was planned for."""
        return (
            f"the network does other operations before {self.cut} than when the patches were "
            "planned; plan them for it, with an example of the same size"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "cut": self.cut,
            "shape": list(self.shape),
            "num_patches": self.num_patches,
            "bits": self.bits,
            "is_input_streamed": self.is_input_streamed,
            "ram_bytes": self.ram_bytes,
            "patches_ram_bytes": self.patches_ram_bytes,
            "rest_ram_bytes": self.rest_ram_bytes,
            "whole_ram_bytes": self.whole_ram_bytes,
            "chain_macs": self.chain_macs,
            "patches_macs": self.patches_macs,
            "network_macs": self.network_macs,
            "recomputed_macs": self.recomputed_macs,
            "recomputed_share": self.recomputed_share,
        }


@final
@dataclass(frozen=True, eq=False)
class Planner:
    """Plans for one chain; what does not depend on the patches is counted once.

    Args:
        chain: Of the network.
        bits: Of every number between operations.
        is_input_streamed: See ``PatchPlan``.
        held: Bytes that the network holds in every operation, without patches.
    """

    chain: Chain
    bits: int
    is_input_streamed: bool
    held: tuple[int, ...]

    @classmethod
    def of(cls, chain: Chain, bits: int, is_input_streamed: bool) -> "Planner":
        """A planner that has counted what the network holds as a whole."""
        recorded = chain.recorded
        values = [_value(image, image.elements, bits) for image in recorded.images]
        steps = [_step(place, each) for place, each in enumerate(recorded.operations)]
        lifetimes = Lifetimes.of(values, steps, range(recorded.num_inputs), recorded.outputs)
        return cls(chain, bits, is_input_streamed, _held_bytes(lifetimes))

    def plan(self, cut: int, num_patches: int) -> PatchPlan:
        """What so many patches along each axis take, up to a cut."""
        recorded = self.chain.recorded
        operations = recorded.operations[: cut + 1]
        made = recorded.images[operations[-1].writes[0]]
        assert made.plane is not None
        patches = [self.chain.windows(cut, x) for x in patches_of(made.plane, num_patches)]
        return PatchPlan(
            cut=operations[-1].name,
            position=cut,
            shape=(made.channels, *made.plane),
            num_patches=num_patches,
            bits=self.bits,
            is_input_streamed=self.is_input_streamed,
            patches_ram_bytes=max(
                self._patch_bytes(cut, dict(sizes)) for sizes in {_sizes(x) for x in patches}
            ),
            rest_ram_bytes=max(self.held[cut + 1 :], default=0),
            whole_ram_bytes=max(self.held),
            chain_macs=sum(each.macs for each in operations),
            patches_macs=round(sum(_macs(recorded, operations, x) for x in patches)),
            network_macs=sum(each.macs for each in recorded.operations),
        )

    def _patch_bytes(self, cut: int, sizes: dict[int, int]) -> int:
        """Most that is held while a patch runs, of whose images so many positions are computed."""
        recorded = self.chain.recorded
        operations = recorded.operations[: cut + 1]
        result = operations[-1].writes[0]
        steps = [
            _step(place, each) for place, each in enumerate(operations) if each.writes[0] in sizes
        ]
        values = [
            _value(image, image.channels * sizes.get(place, 0), self.bits)
            for place, image in enumerate(recorded.images)
        ]
        # The whole output is there from the first patch to the last, and a patch is written to its
        # place in it; so is what operations in place go on with.
        values[result] = _value(
            recorded.images[result], recorded.images[result].elements, self.bits
        )
        for image in _in_place(operations, result):
            values[image] = replace(values[image], elements=0)
        kept = [result]
        if not self.is_input_streamed:
            for place in range(recorded.num_inputs):
                whole = recorded.images[place]
                values[place] = _value(whole, whole.elements, self.bits)
                kept.append(place)
        inputs = {*range(recorded.num_inputs), result}
        return max(_held_bytes(Lifetimes.of(values, steps, sorted(inputs), kept)))


def _in_place(operations: tuple[Operation, ...], result: int) -> list[int]:
    """Images that lie where the result does: it is made of them in place."""
    readers: dict[int, int] = {}
    for operation in operations:
        for image in operation.reads:
            readers[image] = readers.get(image, 0) + 1
    makers = {operation.writes[0]: operation for operation in operations}
    found = []
    maker = makers[result]
    while maker.is_elementwise and len(maker.reads) == 1 and readers[maker.reads[0]] == 1:
        if maker.reads[0] not in makers:
            break  # the network's input
        found.append(maker.reads[0])
        maker = makers[maker.reads[0]]
    return found


def _step(place: int, operation: Operation) -> Step:
    return Step(
        f"{place} {operation.name}",
        operation.reads,
        operation.writes,
        is_elementwise=operation.is_elementwise,
    )


def _value(image: Image, elements: int, bits: int) -> Value:
    return Value(elements, bits if image.bits is None else image.bits)


def _held_bytes(lifetimes: Lifetimes) -> tuple[int, ...]:
    """Bytes that are held in every step."""
    found = [0] * len(lifetimes.steps)
    for buffer in lifetimes.buffers:
        size = -(-buffer.elements * buffer.bits // _BITS_OF_BYTE)
        for step in range(buffer.born, buffer.dies + 1):
            found[step] += size
    return tuple(found)


def _positions(window: Windows) -> int:
    rows, columns = window
    return len(rows) * len(columns)


def _sizes(windows: dict[int, Windows]) -> tuple[tuple[int, int], ...]:
    """Image to the number of its positions that are computed; patches of one size have one."""
    return tuple(sorted((image, _positions(window)) for image, window in windows.items()))


def _macs(
    recorded: Recorded, operations: tuple[Operation, ...], windows: dict[int, Windows]
) -> float:
    total = 0.0
    for operation in operations:
        image = operation.writes[0]
        plane = recorded.images[image].plane
        if operation.macs and plane is not None and image in windows:
            total += operation.macs * _positions(windows[image]) / (plane[0] * plane[1])
    return total

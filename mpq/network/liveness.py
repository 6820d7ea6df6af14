"""What is held in memory when: a forward pass as a list of steps, and the buffers they share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self, final

from mpq.errors import InputError


@final
@dataclass(frozen=True)
class Value:
    """One tensor of a forward pass; its views are the tensor itself.

    Args:
        elements: Numbers in it for one example.
        bits: Bits of one element where no precision changes them (token ids, masks); ``None``: an
            activation, stored in the input format of some layer.
    """

    elements: int
    bits: int | None = None


@final
@dataclass(frozen=True)
class Step:
    """One operation of a forward pass, in the order of execution.

    Args:
        name: Different from that of every other step.
        reads: Positions of the values that it reads.
        writes: Positions of the values that it makes or changes.
        layer: The quantizable layer that this is a call of, if it is one.
        is_elementwise: Whether each output element needs its own input elements only, so that the
            output may overwrite an input.
    """

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    layer: str | None = None
    is_elementwise: bool = False


@final
@dataclass(frozen=True)
class Buffer:
    """Memory for one tensor; in the step that makes another in its place, for both.

    Args:
        elements: Numbers in it for one example.
        born: First step in which it is held.
        dies: Last step in which it is held.
        held_for: Layers; stored in the widest of their input formats.
        bits: Bits of one element where that names no layer.
    """

    elements: int
    born: int
    dies: int
    held_for: tuple[str, ...] = ()
    bits: int = 32


@final
@dataclass(frozen=True)
class Lifetimes:
    """Which buffers a forward pass holds in which of its steps.

    A buffer is held from the step that writes it first to the step that reads it last, both
    included: the network's input from the first step on, its outputs to the last step. What an
    operation keeps only while it runs (im2col, partial sums) is not counted, nor what nobody reads.

    An elementwise operation overwrites the first of its inputs that is not needed afterwards and
    has as many elements as its output, as microcontroller runtimes do: an activation function takes
    no memory of its own, an addition that of one input. While it runs, the memory of both is that
    of the wider format.

    A buffer that layers read is stored in the widest of their input formats. One that only other
    operations read is stored in the input format of the next layer, in execution order, that it
    reaches through them; one that reaches none (logits) in that of the layer before it.

    Args:
        steps: Names, in the order of execution.
        buffers: In the order of their births.
    """

    steps: tuple[str, ...]
    buffers: tuple[Buffer, ...]

    @classmethod
    def of(
        cls,
        values: Sequence[Value],
        steps: Sequence[Step],
        inputs: Iterable[int],
        outputs: Iterable[int],
    ) -> Self:
        """Buffers from what every step reads and writes.

        Args:
            values: What steps refer to by position.
            steps: In the order of execution.
            inputs: Values that are there from the start.
            outputs: Values that are held to the end.

        Raises:
            InputError: If two steps have one name.
        """
        names = tuple(step.name for step in steps)
        if len(set(names)) != len(names):
            raise InputError(f"every step needs a name of its own; got {list(names)}")
        spans = _spans(steps, inputs, frozenset(outputs))
        formats = [_format(*each) for each in zip(values, _holders(values, steps), strict=True)]
        overwritten = _overwritten(values, steps, spans, frozenset(outputs))
        buffers = []
        for value, (born, dies) in spans.items():
            # The step of an overwriting holds one buffer and not two: the new value begins later by
            # a step, the old one ends earlier by one, and a buffer for both fills the gap.
            start, end = born + (value in overwritten), dies - (value in overwritten.values())
            if start <= end:
                buffers.append(Buffer(values[value].elements, start, end, *formats[value]))
        for new, old in overwritten.items():
            born, (first, bits), (second, _) = spans[new][0], formats[old], formats[new]
            # A side without layers has fixed bits, and no format of the other is wider.
            both = dict.fromkeys((*first, *second)) if first and second else ()
            buffers.append(Buffer(values[new].elements, born, born, tuple(both), bits))
        return cls(names, tuple(sorted(buffers, key=lambda buffer: buffer.born)))

    def alive(self, step: int) -> tuple[Buffer, ...]:
        """Buffers that are held while a step runs."""
        return tuple(b for b in self.buffers if b.born <= step <= b.dies)


@dataclass
class _Holder:
    """In whose input format a value may be stored."""

    readers: dict[str, None]  # in order, each once
    following: tuple[int, str] | None = None  # step and layer
    preceding: tuple[int, str] | None = None


def _spans(
    steps: Sequence[Step], inputs: Iterable[int], outputs: frozenset[int]
) -> dict[int, tuple[int, int]]:
    """First and last step of every value that is needed."""
    born = dict.fromkeys(inputs, 0)
    dies: dict[int, int] = {}
    for position, step in enumerate(steps):
        for value in step.writes:
            born.setdefault(value, position)
        # A layer writes its output whether it is read or not; what other operations make for
        # nobody is left out.
        needed = (*step.reads, *(step.writes if step.layer else ()))
        dies.update(dict.fromkeys(needed, position))
    # Last, as the caller holds an output beyond its last reader.
    dies.update(dict.fromkeys(outputs, len(steps) - 1))
    return {value: (first, dies[value]) for value, first in born.items() if value in dies}


def _overwritten(
    values: Sequence[Value],
    steps: Sequence[Step],
    spans: dict[int, tuple[int, int]],
    outputs: frozenset[int],
) -> dict[int, int]:
    """Values that are made in place, and what they overwrite."""
    found: dict[int, int] = {}
    for position, step in enumerate(steps):
        # What was there before is changed where it is and needs no memory to take over.
        made = [v for v in step.writes if v in spans and spans[v][0] == position]
        if not step.is_elementwise or len(made) != 1:
            continue
        for read in step.reads:
            is_free = read in spans and spans[read][1] == position and read not in outputs
            # Same elements and bits: only then does one fit exactly where the other lies.
            if is_free and read != made[0] and values[read] == values[made[0]]:
                found[made[0]] = read
                break
    return found


def _holders(values: Sequence[Value], steps: Sequence[Step]) -> list[_Holder]:
    holders = [_Holder({}) for _ in values]
    for position, step in enumerate(steps):
        # Forwards for the layer before a value, then backwards for the one after it.
        before = [holders[v].preceding for v in step.reads]
        if step.layer is not None:
            # An embedding's input format says nothing of floats: its ids are never quantized.
            before = [(position, step.layer)] if _reads_numbers(step, values) else []
            for value in step.reads:
                holders[value].readers[step.layer] = None
        for value in step.writes:
            holders[value].preceding = max(filter(None, before), default=None)
    for position, step in reversed(list(enumerate(steps))):
        after = [holders[v].following for v in step.writes]
        if step.layer is not None:
            after = [(position, step.layer)] if _reads_numbers(step, values) else []
        for value in step.reads:
            # Walking backwards, the nearest reader is the one with the smallest position.
            known = [*after, holders[value].following]
            holders[value].following = min(filter(None, known), default=None)
    return holders


def _reads_numbers(step: Step, values: Sequence[Value]) -> bool:
    """Whether a layer's input is quantized; an embedding's ids are not."""
    return any(values[value].bits is None for value in step.reads)


def _format(value: Value, holder: _Holder) -> tuple[tuple[str, ...], int]:
    """``held_for`` and ``bits`` of a value's buffer."""
    if value.bits is not None:
        return (), value.bits
    # A format belongs to a layer's input, so that what follows comes first.
    nearest = holder.following or holder.preceding
    return tuple(holder.readers) or ((nearest[1],) if nearest else ()), 32

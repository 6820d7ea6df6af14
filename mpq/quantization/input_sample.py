"""What was observed of a layer's input, and the range that a method makes of it."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, final

import torch
from torch import Tensor, nn

from mpq.network.examples import Batch
from mpq.network.layer import OPERANDS, PRODUCTS, WEIGHTLESS
from mpq.network.modules import weight_of
from mpq.network.tracing import kind_of
from mpq.quantization.grid import make_grid
from mpq.quantization.input_codes import MAX_OCTAVES
from mpq.quantization.range_method import ActivationRange, RangeMethod
from mpq.quantization.tensor_format import Granularity, TensorFormat

SAMPLES_PER_BATCH: Final = 65536
"""Numbers of each layer's input that are kept from every batch, drawn at random, for ranges."""
OCTAVE_NUMBERS: Final = 16384
"""By which the octaves of two ranges are chosen, as each is a search of its own."""

Call: TypeAlias = tuple[int, tuple[Tensor, ...]]
"""Where the batch of a call starts, and what was drawn of it."""


@final
@dataclass(frozen=True, eq=False)
class InputSample:
    """Numbers of one layer's input.

    Args:
        numbers: ``[M]`` float32, or ``[C, M]`` of each input channel.
        weights: Squared gradients of the loss there, alike; ``None``: all count alike.
        channels: The same by channel, where a format has a scale for each.
        first: Of first positions of sequences, where a format keeps them apart.
        others: Of all other positions then.
    """

    numbers: Tensor
    weights: Tensor | None = None
    channels: "InputSample | None" = None
    first: "InputSample | None" = None
    others: "InputSample | None" = None

    def range(self, method: RangeMethod, tensor_format: TensorFormat) -> ActivationRange:
        """What a method makes of it for a static format, with 0 in it."""
        if self.channels is not None and tensor_format.granularity is Granularity.INPUT_CHANNEL:
            return self.channels._by_channel(method, tensor_format)
        is_apart = tensor_format.granularity is Granularity.FIRST_APART
        if self.first is not None and self.others is not None and is_apart:
            found = self.others._whole(method, tensor_format)
            first = self.first._whole(method, tensor_format)
            return replace(found, first=(first.low, first.high))
        if tensor_format.number.is_twin:
            return self._twin(method, tensor_format)
        return self._whole(method, tensor_format)

    def _whole(self, method: RangeMethod, tensor_format: TensorFormat) -> ActivationRange:
        # A static format has one scale for the whole input, so that all of it is one row.
        low, high = self._rows(method, tensor_format)
        return ActivationRange(float(low), float(high)).with_zero

    def _rows(self, method: RangeMethod, tensor_format: TensorFormat) -> tuple[Tensor, Tensor]:
        rows = torch.atleast_2d(self.numbers)
        number, symmetric = tensor_format.number, tensor_format.symmetric
        if self.weights is None:
            return method.ends(rows, number, symmetric)
        return method.weighted_ends(rows, torch.atleast_2d(self.weights), number, symmetric)

    def _by_channel(self, method: RangeMethod, tensor_format: TensorFormat) -> ActivationRange:
        lows, highs = self._rows(method, tensor_format)
        lows, highs = lows.clamp(max=0), highs.clamp(min=0)
        ends = tuple(zip(lows.tolist(), highs.tolist(), strict=True))
        return ActivationRange(float(lows.amin()), float(highs.amax()), channels=ends)

    def _twin(self, method: RangeMethod, tensor_format: TensorFormat) -> ActivationRange:
        """The range at the octaves between both scales that have the least squared error.

        Octaves are those of some of the numbers, by the method's range for each.
        """
        octaves = self._thinned()._octaves(method, tensor_format)
        number = tensor_format.number.with_octaves(octaves, self._is_signed)
        found = self._whole(method, replace(tensor_format, number=number))
        return replace(found, octaves=octaves)

    @property
    def _is_signed(self) -> bool:
        return bool((self.numbers < 0).any())

    def _thinned(self) -> "InputSample":
        count = len(self.numbers)
        if count <= OCTAVE_NUMBERS:
            return self
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(count, (OCTAVE_NUMBERS,), generator=generator)
        places = drawn.to(self.numbers.device)
        weights = None if self.weights is None else self.weights[places]
        return InputSample(self.numbers[places], weights)

    def _octaves(self, method: RangeMethod, tensor_format: TensorFormat) -> int:
        row = self.numbers[None]
        counts = torch.ones_like(row) if self.weights is None else self.weights[None]
        errors = []
        for octaves in range(MAX_OCTAVES + 1):
            number = tensor_format.number.with_octaves(octaves, self._is_signed)
            tried = self._whole(method, replace(tensor_format, number=number))
            ends = (
                torch.tensor([end], dtype=torch.float32).to(row) for end in (tried.low, tried.high)
            )
            change = make_grid(number, True, *ends).round(row) - row
            errors.append(float((change.double().square() * counts).sum()))
        return errors.index(min(errors))


@final
class Samples:
    """Collects samples of layers' inputs, one of each call.

    Args:
        formats: That ranges will be of.
        extremes_only: Whether the smallest and the largest number suffice.
    """

    def __init__(self, formats: Collection[TensorFormat], extremes_only: bool = False) -> None:
        self._kinds = {tensor_format.granularity for tensor_format in formats}
        self._extremes_only = extremes_only
        self._start, self._calls = 0, Counter[str]()
        self.calls: dict[str, dict[str, list[Call]]] = {}
        """Layer name to part to what was drawn of it."""

    def begin(self, batch: Batch) -> None:
        """The next calls are those of a batch."""
        self._start = batch.start
        self._calls.clear()

    def add(self, name: str, layer_module: nn.Module, x: Tensor, g: Tensor | None = None) -> None:
        """What a layer reads in a call, and the gradients there, if they count."""
        tensors = (x,) if g is None else (x, g)
        parts = self.calls.setdefault(name, {})
        for part, rows in self._parts(layer_module, tensors):
            drawn = self._drawn(rows, f"{name} {part}")
            parts.setdefault(part, []).append((self._start, drawn))

    def extend(self, other: Mapping[str, Mapping[str, Sequence["Call"]]]) -> None:
        """What another process drew of other batches."""
        for name, parts in other.items():
            own = self.calls.setdefault(name, {})
            for part, calls in parts.items():
                own.setdefault(part, []).extend(calls)

    def of(self) -> dict[str, InputSample]:
        """Layer name to what was collected, in the order of batches."""
        return {name: _sample(parts) for name, parts in self.calls.items()}

    def _parts(
        self, layer_module: nn.Module, tensors: tuple[Tensor, ...]
    ) -> Iterator[tuple[str, list[Tensor]]]:
        """Name and rows ``[O, K]`` of what formats look at."""
        yield "numbers", [t.reshape(1, -1) for t in tensors]
        if Granularity.INPUT_CHANNEL in self._kinds:
            axis = channel_axis(layer_module)
            yield "channels", [t.movedim(axis, 0).flatten(1) for t in tensors]
        if Granularity.FIRST_APART in self._kinds and _is_sequence(layer_module, tensors[0]):
            yield "first", [t[..., 0, :].reshape(1, -1) for t in tensors]
            yield "others", [t[..., 1:, :].reshape(1, -1) for t in tensors]

    def _generator(self, what: str) -> torch.Generator:
        """That of one call in a batch, whatever was drawn of others before.

        On the CPU: the global random state stays as it is, and all devices draw alike.
        """
        told = f"{self._start} {self._calls[what]} {what}".encode()
        self._calls[what] += 1
        seed = int.from_bytes(hashlib.sha256(told).digest()[:7], "big")
        return torch.Generator().manual_seed(seed)

    def _drawn(self, rows: list[Tensor], what: str) -> tuple[Tensor, ...]:
        """The same columns of all, as float32, the second one squared."""
        first, *gradients = rows
        if self._extremes_only:
            return (torch.stack(first.aminmax(dim=1), dim=1).float(),)
        if first.numel() > SAMPLES_PER_BATCH:
            # With replacement, as a permutation of all numbers would be larger than the input.
            count = max(1, SAMPLES_PER_BATCH // len(first))
            columns = torch.randint(first.shape[1], (count,), generator=self._generator(what))
            columns = columns.to(first.device).expand(len(first), -1)
            if len(first) > 1:
                # Of a channel few numbers are drawn, and its extremes are not among them.
                ends = torch.stack([first.argmin(dim=1), first.argmax(dim=1)], dim=1)
                columns = torch.cat([columns, ends], dim=1)
            first, gradients = first.gather(1, columns), [g.gather(1, columns) for g in gradients]
        return (first.float(), *(g.float().square() for g in gradients))


def channel_axis(layer_module: nn.Module) -> int:
    """Where a layer has its input channels, counted from the last axis."""
    if kind_of(layer_module) in ("linear", *WEIGHTLESS):
        return -1
    return 1 - weight_of(layer_module).ndim


def token_axes_of(kind: str | None, ndim: int) -> int:
    """How many trailing axes of what a layer reads make up one token, with one dynamic scale.

    A linear layer reads one vector per token, and so does a product. A convolution's kernel mixes
    positions, so that nothing smaller than an example can have a scale of its own; nor has what is
    added to its output, which has three axes or more behind the examples' as a rule.
    """
    is_row_wise = kind in OPERANDS and (kind in PRODUCTS or ndim <= 3)
    return 1 if is_row_wise or kind == "linear" else ndim - 1


def _is_sequence(layer_module: nn.Module, x: Tensor) -> bool:
    return kind_of(layer_module) == "linear" and has_positions(x)


def has_positions(x: Tensor) -> bool:
    """Whether a linear layer reads sequences ``[..., T, C]``, the first position among them.

    A single position is taken for a later one: so it is in a decode step.
    """
    return x.ndim > 2 and x.shape[-2] > 1


def _sample(parts: Mapping[str, Sequence[Call]]) -> InputSample:
    made = {part: _joined(calls) for part, calls in parts.items()}
    whole = _flat(made["numbers"])
    apart = {part: _flat(made[part]) for part in ("first", "others") if part in made}
    return InputSample(
        whole.numbers,
        whole.weights,
        made.get("channels"),
        apart.get("first"),
        apart.get("others"),
    )


def _joined(calls: Sequence[Call]) -> InputSample:
    # Sorting keeps the order of calls in one batch.
    drawn = [tensors for _, tensors in sorted(calls, key=lambda call: call[0])]
    numbers, *weights = (torch.cat(tensors, dim=1) for tensors in zip(*drawn, strict=True))
    return InputSample(numbers, weights[0] if weights else None)


def _flat(sample: InputSample) -> InputSample:
    """Without the axis of a single row."""
    weights = None if sample.weights is None else sample.weights[0]
    return InputSample(sample.numbers[0], weights)

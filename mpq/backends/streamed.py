"""Whether a network fits into memory, with what a search holds beside it."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from math import prod
from typing import Final

from torch import Tensor, nn, strided

from mpq._support.bounds import machine_bytes
from mpq._support.pages import can_stream
from mpq.errors import InputError
from mpq.network.mapped import resident_bytes, unmapped_bytes
from mpq.problem.assignment import Assignment
from mpq.problem.limits import bytes_of
from mpq.quantization.tensor_format import Granularity, TensorFormat
from mpq.rounding.diagonal_blocks import moment_shape

SCALE_BYTES: Final = 4
"""Of a group of weights in a format: a scale in float32; of an affine format a zero point, too."""
_AT_ONCE: Final = 3
"""How often the largest weight is there at once: as it is, rounded, and in tiles of both."""
_OF_MOMENT: Final = 28
"""Bytes of a second moment's number while it is factorized: it is in float32, damped, and twice in
float64; and the factor in float32."""


def why_streamed(
    model: nn.Module,
    allowed: int | None,
    formats: Iterable[TensorFormat],
    reads_inputs: bool = False,
) -> str:
    """Why a network is streamed, a sentence; empty: it is not.

    Args:
        model: The user's.
        allowed: Bytes that this process may hold; ``None``: what the machine has.
        formats: Of weights, which layers may take.
        reads_inputs: Whether weights are rounded with regard to data.

    Raises:
        InputError: If it does not fit and cannot be streamed.
    """
    if not isinstance(model, nn.Module):
        return ""  # refused where it is looked at, in the words that are for it
    if not can_stream():
        return _not_here(allowed)
    memory = machine_bytes() if allowed is None else allowed
    own = list(_memories(model))
    size = sum(num_bytes for _, num_bytes in own)
    mapped = size - unmapped_bytes(tensor for tensor, _ in own)
    now = resident_bytes()
    formats = set(formats)
    # Whoever is measured has rounded weights beside its own.
    whole = now + mapped + size
    if reads_inputs:
        whole += sum(_moment_and_codes(tensor, len(formats)) for tensor in _matrices(own))
    if whole <= memory or (allowed is None and not mapped):
        return ""
    told = (
        f"the network has {_gib(size)} of weights, and in memory it would hold about "
        f"{_gib(whole)} of the {_gib(memory)} "
        + ("that memory (--memory) allows" if allowed is not None else "that this machine has")
    )
    if not mapped:
        raise InputError(
            f"{told}; to be streamed, weights have to lie in files and be mapped from there: give "
            "a Hugging Face folder (--model FOLDER, or transformers' from_pretrained(FOLDER, "
            'dtype="auto"))'
        )
    largest = max(num_bytes for _, num_bytes in own)
    least = _least(own, formats, reads_inputs)
    if least > memory:
        raise InputError(
            f"{told}, and streamed it holds at least {_gib(least)}: its largest weight has "
            f"{_gib(largest)}, and scales of all candidates are kept; allow more, or give fewer "
            "or coarser candidates (groups)"
        )
    return f"{told}: it is streamed from its files, block by block"


def why_run_streamed(model: nn.Module, memory: int | str | None, assignment: Assignment) -> str:
    """Why a network is streamed that is run or written in an assignment; empty: it is not.

    Args:
        model: The user's.
        memory: As in ``Task``.
        assignment: Whose scales are in memory.

    Raises:
        InputError: If it does not fit and cannot be streamed.
    """
    allowed = None if memory is None else bytes_of("memory", memory)
    # A weight has scales in one format: at most those of the smallest groups.
    formats = (p.weight for p in assignment.precisions.values())
    groups = [f for f in formats if f.granularity is Granularity.GROUP]
    finest = min(groups, key=lambda f: f.group_size or 0, default=None)
    return why_streamed(model, allowed, [] if finest is None else [finest])


def moment_memory(model: nn.Module, allowed: int | None, formats: Iterable[TensorFormat]) -> int:
    """Bytes that second moments of a streamed network's layers may take at a time: half of the
    memory that nothing else is known to need.

    Args:
        model: See ``why_streamed``.
        allowed: See there.
        formats: See there.
    """
    memory = machine_bytes() if allowed is None else allowed
    own = list(_memories(model))
    return max(0, memory - _least(own, set(formats), reads_inputs=True)) // 2


def _least(
    own: Sequence[tuple[Tensor, int]], formats: Collection[TensorFormat], reads_inputs: bool
) -> int:
    """What a streamed search holds at least, whatever its examples are."""
    works = [_AT_ONCE * num_bytes for _, num_bytes in own]
    if reads_inputs:
        works += [_rounding_bytes(tensor, len(formats)) for tensor in _matrices(own)]
    return resident_bytes() + max(works) + _scales(own, formats)


def _matrices(own: Iterable[tuple[Tensor, int]]) -> Iterator[Tensor]:
    """Those that may be weights of layers."""
    return (tensor for tensor, _ in own if tensor.ndim > 1 and tensor.numel())


def _moment_and_codes(tensor: Tensor, num_formats: int) -> int:
    """What a search in memory keeps of one weight whose codes data chooses."""
    return 8 * prod(moment_shape(1, tensor[0].numel())) + num_formats * tensor.numel()


def _rounding_bytes(tensor: Tensor, num_formats: int) -> int:
    """Of one weight, while data chooses its codes."""
    _, inputs, block = moment_shape(1, tensor[0].numel())
    in_float32 = 4 + 2 * num_formats  # codes, and those of some rows beside those of all
    return in_float32 * tensor.numel() + _OF_MOMENT * min(inputs, block) ** 2


def _not_here(allowed: int | None) -> str:
    if allowed is not None:
        raise InputError(
            "memory (--memory) is kept to by letting pages of files go, as Linux does it; this "
            "system does not: leave it out"
        )
    return ""


def _memories(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """Parameters and buffers in this machine's memory, each memory once, with its bytes."""
    seen: set[int] = set()
    for tensor in (*model.parameters(), *model.buffers()):
        # What is more than its numbers, or has none yet, is refused when it is looked at.
        is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is strided
        if is_plain and tensor.device.type == "cpu":
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield tensor, storage.nbytes()


def _scales(own: Iterable[tuple[Tensor, int]], formats: Iterable[TensorFormat]) -> int:
    """Bytes of the scales of all weights, in all formats that have one for every group."""
    elements = sum(tensor.numel() for tensor, _ in own)
    grouped = [f for f in formats if f.granularity is Granularity.GROUP and f.group_size]
    parts = ((1 if f.symmetric else 2, f.group_size or 1) for f in grouped)
    return sum(count * SCALE_BYTES * elements // size for count, size in parts)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"

"""How many bytes a checkpoint of tensors has: memory that they share is stored once."""

from collections.abc import Iterable, Sequence
from typing import final

from torch import Tensor

Span = tuple[int, int]
"""First byte, and the byte behind the last one."""


def span_of(tensor: Tensor) -> Span:
    """Where a contiguous tensor lies."""
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()


def elements_inside(tensor: Tensor, spans: Sequence[Span]) -> int:
    """Elements of a tensor that lie in any of the spans of memory."""
    first, last = span_of(tensor)
    # Merged, as layers that share a parameter have the same span twice.
    cuts = sorted((max(a, first), min(b, last)) for a, b in spans if a < last and b > first)
    total, end = 0, first
    for start, stop in cuts:
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total // tensor.element_size() if tensor.numel() else 0


@final
class Counted:
    """Tensors that were counted already; one that is met again, or lies in them, is none more."""

    def __init__(self) -> None:
        self._ids: set[int] = set()
        self._spans: dict[int, list[Span]] = {}

    def is_new(self, tensor: Tensor) -> bool:
        """Whether any number of it has not been counted; from now on all have."""
        if id(tensor) in self._ids:
            return False
        self._ids.add(id(tensor))
        # By the storage first: tensors without numbers of their own all lie at address 0.
        spans = self._spans.setdefault(int(tensor.untyped_storage()._cdata), [])
        is_new = elements_inside(tensor, spans) < tensor.numel() or not tensor.numel()
        spans.append(span_of(tensor))
        return is_new


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Size of tensors in a file, each in its own dtype."""
    counted = Counted()
    return sum(t.numel() * t.element_size() for t in tensors if counted.is_new(t))

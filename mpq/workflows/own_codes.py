"""Codes and ranges that were made for one assignment, and are used in that one alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, final

from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.stored import StoredWeight
from mpq.quantization.tensor_format import TensorFormat

Cells: TypeAlias = Mapping[tuple[str, TensorFormat], StoredWeight]
"""Layer name and format to codes."""
Known: TypeAlias = Mapping[tuple[str, TensorFormat], ActivationRange]
"""Layer name and format to range."""


@final
@dataclass(frozen=True, eq=False)
class _Own:
    cells: Cells = field(default_factory=dict)
    ranges: Known = field(default_factory=dict)


@final
class OwnCodes:
    """Which assignments have codes and ranges of their own, beside those of the quantizer."""

    def __init__(self) -> None:
        self._found: dict[frozenset[tuple[str, Precision]], _Own] = {}

    def keep(self, precisions: Mapping[str, Precision], cells: Cells) -> None:
        """From now on these are the codes of this assignment."""
        self._set(precisions, replace(self._of(precisions), cells=cells))

    def keep_ranges(self, precisions: Mapping[str, Precision], ranges: Known) -> None:
        """From now on these are the ranges of this assignment's inputs."""
        self._set(precisions, replace(self._of(precisions), ranges=ranges))

    def forget(self, precisions: Mapping[str, Precision]) -> None:
        """From now on this assignment has the quantizer's codes again."""
        self.keep(precisions, {})

    def forget_ranges(self, precisions: Mapping[str, Precision]) -> None:
        """From now on this assignment has the quantizer's ranges again."""
        self.keep_ranges(precisions, {})

    def quantizer(self, precisions: Mapping[str, Precision], shared: Quantizer) -> Quantizer:
        """What an assignment is quantized with.

        Args:
            precisions: Layer name to precision, of all layers.
            shared: What every other assignment is quantized with.
        """
        own = self._of(precisions)
        if not own.cells and not own.ranges:
            return shared
        ranges = ActivationRanges({**shared.ranges.known, **own.ranges})
        return replace(shared, stored={**shared.stored, **own.cells}, ranges=ranges)

    def _of(self, precisions: Mapping[str, Precision]) -> _Own:
        return self._found.get(frozenset(precisions.items()), _Own())

    def _set(self, precisions: Mapping[str, Precision], own: _Own) -> None:
        self._found[frozenset(precisions.items())] = own

"""Codes that were made for one assignment, and are used in that one alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias, final

from mpq.quantization.precision import Precision, TensorFormat
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.stored import StoredWeight

Cells: TypeAlias = Mapping[tuple[str, TensorFormat], StoredWeight]
"""Layer name and format to codes."""


@final
class OwnCodes:
    """Which assignments have codes of their own, beside those of the quantizer."""

    def __init__(self) -> None:
        self._found: dict[frozenset[tuple[str, Precision]], Cells] = {}

    def keep(self, precisions: Mapping[str, Precision], cells: Cells) -> None:
        """From now on these are the codes of this assignment."""
        self._found[frozenset(precisions.items())] = cells

    def forget(self, precisions: Mapping[str, Precision]) -> None:
        """From now on this assignment has the quantizer's codes again."""
        self._found.pop(frozenset(precisions.items()), None)

    def quantizer(self, precisions: Mapping[str, Precision], shared: Quantizer) -> Quantizer:
        """What an assignment is quantized with.

        Args:
            precisions: Layer name to precision, of all layers.
            shared: What every other assignment is quantized with.
        """
        own = self._found.get(frozenset(precisions.items()))
        return shared if own is None else replace(shared, stored={**shared.stored, **own})

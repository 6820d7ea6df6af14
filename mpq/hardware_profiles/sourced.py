"""A number and where it comes from."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Sourced:
    """A number of a profile; its unit is in the name of whoever holds it.

    Args:
        value: The number itself, finite in every profile that ships.
        source: Publication, datasheet or measurement; ``assumption`` where there is none.
    """

    value: float
    source: str

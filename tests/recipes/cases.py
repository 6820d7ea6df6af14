"""What the contract of recipes runs each with: limits of the demo, and what makes it quick."""

from collections.abc import Mapping
from typing import Final

QUICK: Final[Mapping[str, tuple[str, ...]]] = {
    "hawq-v3": (),
}
"""Recipe to words of ``mpq search`` that it takes in tests besides; every recipe is here."""

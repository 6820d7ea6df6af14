"""One search by a published system, and several beside each other as their files need them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, final

from mpq.report.page.made import Made

if TYPE_CHECKING:
    import pandas as pd

DEFAULT: Final = "default"
"""What the search without a recipe is called."""


@final
@dataclass(frozen=True)
class RecipeRow:
    """One search within one limit.

    Args:
        recipe: Its name; ``DEFAULT``: the search without one.
        limit: As it was written.
        divergence: What the answer loses on held-out examples, in the metric's unit.
        standard_error: Of that mean over examples.
        accuracy: Measured there; ``None`` without targets.
        costs: Column of every resource that is limited to what the answer uses of it.
        seconds: Wall time of the whole search, measurements included.
        overrides: What was done otherwise than by the recipe.
        error: Why there is no answer; then the numbers are ``nan``.
        score: What the task's own score says of the answer; ``None``: it has none.
    """

    recipe: str
    limit: str
    divergence: float = float("nan")
    standard_error: float = float("nan")
    accuracy: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    seconds: float = float("nan")
    overrides: tuple[str, ...] = ()
    error: str | None = None
    score: float | None = None


class ComparedRecipes(Protocol):
    """What of a comparison of recipes is written; see ``RecipeComparison``."""

    @property
    def rows(self) -> tuple[RecipeRow, ...]:
        """By limit, the default first."""

    @property
    def unit(self) -> str:
        """Of the losses."""

    @property
    def num_calibration(self) -> int:
        """Examples that are calibrated on."""

    @property
    def num_held_out(self) -> int:
        """Examples that answers are measured on."""

    @property
    def made(self) -> Made:
        """How it was called, and what it took."""

    def table(self) -> "pd.DataFrame":
        """A row for every search."""

    def to_json(self) -> str:
        """Everything."""

"""What the page of compared recipes says: what each loses and takes, beside the default."""

from dataclasses import dataclass
from itertools import groupby
from math import isnan
from typing import Any, Self, final

from mpq._support.names import shortened, visible
from mpq.report.page.numbers import plain
from mpq.report.page.script_data import shortest
from mpq.report.recipe_rows import DEFAULT, ComparedRecipes, RecipeRow


@final
@dataclass(frozen=True)
class Within:
    """The searches within one limit.

    Args:
        limit: As it was written.
        rows: The default first.
    """

    limit: str
    rows: tuple[RecipeRow, ...]

    @property
    def default(self) -> float:
        """What the search without a recipe loses."""
        return next(row.divergence for row in self.rows if row.recipe == DEFAULT)

    @property
    def costs(self) -> tuple[tuple[str, str, str], ...]:
        """Column of every resource that is limited, the resource, its unit."""
        columns = dict.fromkeys(column for row in self.rows for column in row.costs)
        # Named after resource and unit, `weight_bytes_bytes`; no unit has an underscore.
        parts = [(column, *column.rpartition("_")) for column in columns]
        return tuple((column, name, unit) for column, name, _, unit in parts)

    @property
    def has_accuracy(self) -> bool:
        """Whether there were targets."""
        return any(row.accuracy is not None for row in self.rows)

    @property
    def has_score(self) -> bool:
        """Whether the task had a score of its own."""
        return any(row.score is not None for row in self.rows)

    def sentence(self, unit: str) -> str:
        """Which search loses least, and by how much."""
        able = [row for row in self.rows if not isnan(row.divergence)]
        recipes = [row for row in able if row.recipe != DEFAULT]
        if not recipes:
            return f"Within {self.limit} no recipe has an answer."
        best = min(able, key=lambda row: row.divergence)
        error = "" if isnan(best.standard_error) else f" ± {plain(best.standard_error, 2)}"
        least = f"{plain(best.divergence)}{error} {unit}"
        if best.recipe != DEFAULT:
            return (
                f"Within {self.limit} {best.recipe} loses least, {least}: "
                f"{self._share(best)} what the default does."
            )
        second = min(recipes, key=lambda row: row.divergence)
        return (
            f"Within {self.limit} the default loses least, {least}; {second.recipe}, the best "
            f"recipe, loses {self._share(second)} as much."
        )

    def _share(self, row: RecipeRow) -> str:
        # A default that loses nothing has no share; no other can lose less than it.
        return f"{row.divergence / self.default:.2g} ×" if self.default > 0 else "many times"


@final
@dataclass(frozen=True)
class RecipeFacts:
    """A comparison of recipes, in the order of what people ask.

    Args:
        within: By limit.
        found: The comparison.
        mark: Of its files.
    """

    within: tuple[Within, ...]
    found: ComparedRecipes
    mark: str

    @classmethod
    def of(cls, found: ComparedRecipes, mark: str) -> Self:
        """Of a comparison, whose rows are in the order of the limits."""
        groups = groupby(found.rows, key=lambda row: row.limit)
        return cls(tuple(Within(limit, tuple(rows)) for limit, rows in groups), found, mark)

    @property
    def num_recipes(self) -> int:
        """Without the default."""
        return len({row.recipe for row in self.found.rows} - {DEFAULT})

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is best within every limit."""
        return tuple(each.sentence(self.found.unit) for each in self.within)

    @property
    def made(self) -> tuple[tuple[str, str], ...]:
        """What made it: a name, a value."""
        return self.found.made.compared(self.found.num_calibration, self.found.num_held_out)

    def script_data(self) -> dict[str, Any]:
        """JSON-ready, what pictures are drawn of."""
        return {
            "unit": self.found.unit,
            "within": [
                {
                    "limit": shortened(visible(each.limit)),
                    "default": shortest(each.default),
                    "rows": [
                        {
                            "name": shortened(visible(row.recipe)),
                            "loss": shortest(row.divergence),
                            "error": shortest(row.standard_error),
                            "seconds": shortest(row.seconds),
                        }
                        for row in each.rows
                    ],
                }
                for each in self.within
            ],
        }

"""Published systems beside each other and the default: what each loses, and what it takes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from mpq._support.files import write_files

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


@final
@dataclass(frozen=True)
class RecipeComparison:
    """What every recipe loses on one network.

    Args:
        rows: By limit, then the default and the recipes in the order asked for.
        unit: Of the losses.
        num_calibration: Examples that are calibrated on.
        num_held_out: Examples that answers are measured on.
    """

    rows: tuple[RecipeRow, ...]
    unit: str
    num_calibration: int
    num_held_out: int

    def table(self) -> "pd.DataFrame":
        """A row for every search, with what it loses in units of what the default does."""
        import pandas as pd

        default = {row.limit: row.divergence for row in self.rows if row.recipe == DEFAULT}
        return pd.DataFrame(
            [
                {
                    "limit": row.limit,
                    "recipe": row.recipe,
                    f"measured_{self.unit}": row.divergence,
                    "standard_error": row.standard_error,
                    "of_default": _share(row.divergence, default[row.limit]),
                    "measured_accuracy": row.accuracy,
                    **row.costs,
                    "seconds": row.seconds,
                    "overrides": "; ".join(row.overrides),
                    "error": row.error or "",
                }
                for row in self.rows
            ]
        )

    def to_json(self) -> str:
        """Everything; a number that is not known is null."""
        rows = [
            {k: None if isinstance(x, float) and isnan(x) else x for k, x in asdict(row).items()}
            for row in self.rows
        ]
        return json.dumps({**asdict(self), "rows": rows}, indent=1) + "\n"

    def save(self, folder: Path | str) -> list[Path]:
        """Writes recipes.csv and recipes.json.

        Raises:
            OutputError: If the folder cannot be written to.
        """
        csv = self.table().to_csv(index=False)
        files = {"recipes.csv": csv.encode(), "recipes.json": self.to_json().encode()}
        return write_files(Path(folder), files)


def _share(value: float, of: float) -> float:
    return value / of if of else float("nan")

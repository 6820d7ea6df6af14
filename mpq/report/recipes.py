"""Published systems beside each other and the default: what each loses, and what it takes."""

import json
from dataclasses import asdict, dataclass, field
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

from mpq._support import schema_versions
from mpq._support.json_object import json_object, known, number_or_nan, require_version
from mpq._support.schema import read_schema, validate
from mpq.errors import FileFormatError
from mpq.report.page.made import Made
from mpq.report.recipe_rows import DEFAULT, RecipeRow

if TYPE_CHECKING:
    import pandas as pd


@final
@dataclass(frozen=True)
class RecipeComparison:
    """What every recipe loses on one network.

    Args:
        rows: By limit, then the default and the recipes in the order asked for.
        unit: Of the losses.
        num_calibration: Examples that are calibrated on.
        num_held_out: Examples that answers are measured on.
        made: How it was called, and what it took.
    """

    rows: tuple[RecipeRow, ...]
    unit: str
    num_calibration: int
    num_held_out: int
    made: Made = field(default_factory=Made, compare=False, repr=False)

    def __repr__(self) -> str:
        return f"<RecipeComparison: {len(self.rows)} searches, losses in {self.unit}>"

    def table(self) -> "pd.DataFrame":
        """A row for every search, with what it loses in units of what the default does."""
        import pandas as pd

        default = {row.limit: row.divergence for row in self.rows if row.recipe == DEFAULT}
        is_scored = any(row.score is not None for row in self.rows)
        return pd.DataFrame(
            [
                {
                    "limit": row.limit,
                    "recipe": row.recipe,
                    f"measured_{self.unit}": row.divergence,
                    "standard_error": row.standard_error,
                    "of_default": _share(row.divergence, default[row.limit]),
                    "measured_accuracy": row.accuracy,
                    **({"measured_score": row.score} if is_scored else {}),
                    **row.costs,
                    "seconds": row.seconds,
                    "overrides": "; ".join(row.overrides),
                    "error": row.error or "",
                }
                for row in self.rows
            ]
        )

    def to_json(self) -> str:
        """Everything but how it was made, as ``recipes.schema.json`` describes it."""
        data = {
            "schema_version": schema_versions.RECIPES,
            "rows": [asdict(row) for row in self.rows],
            "unit": self.unit,
            "num_calibration": self.num_calibration,
            "num_held_out": self.num_held_out,
        }
        return json.dumps(known(data), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of ``to_json``.

        Raises:
            FileFormatError: If the text is no such file.
        """
        data = json_object(text, "comparison of recipes")
        require_version(data, "comparison of recipes", schema_versions.RECIPES)
        validate(data, read_schema("mpq.report", "recipes.schema.json"), "comparison of recipes")
        rows = tuple(RecipeRow(**_with_nan(row)) for row in data["rows"])
        # The page sets every recipe beside the default: schemas say nothing across rows.
        for limit in {row.limit for row in rows}:
            if not any(row.recipe == DEFAULT for row in rows if row.limit == limit):
                raise FileFormatError(f"not a comparison of recipes: no row {DEFAULT} at {limit!r}")
        return cls(rows, data["unit"], data["num_calibration"], data["num_held_out"])

    def save(self, folder: Path | str) -> list[Path]:
        """Writes recipes.csv, recipes.json, made.json and report.html.

        Raises:
            OutputError: If the folder cannot be written to.
        """
        from mpq.report.saved_recipes import save_recipes

        return save_recipes(self, folder)


def _share(value: float, of: float) -> float:
    return value / of if of else nan


def _with_nan(row: dict[str, Any]) -> dict[str, Any]:
    """As in Python: numbers that are not known are nan."""
    numbers = ("divergence", "standard_error", "seconds")
    found = {key: number_or_nan(row[key]) for key in numbers}
    costs = {key: number_or_nan(cost) for key, cost in row["costs"].items()}
    return {**row, **found, "costs": costs, "overrides": tuple(row["overrides"])}

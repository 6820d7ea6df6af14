"""A comparison of estimators as a folder of files, its page among them."""

from pathlib import Path
from typing import Final

from mpq.report.page.estimators import EstimatorFacts
from mpq.report.page.made import MADE_FILE
from mpq.report.page.render import estimators_page
from mpq.report.save import PAGE_FILE, mark_of, write_drawn
from mpq.report.sections import csv_of, marked
from mpq.report.trials import ComparedEstimators

ESTIMATORS_FILE: Final = "estimators.json"
"""All numbers of a comparison, which its page is made of."""


def save_estimators(comparison: ComparedEstimators, folder: Path | str) -> list[Path]:
    """Writes estimators.json, estimators.csv, estimators.md, predictions.csv, made.json, then
    predictions.png and report.html.

    Raises:
        OutputError: If the folder cannot be written to.
    """

    def picture() -> bytes:
        from mpq.report.pictures import png

        return png(comparison.plot(), mark)

    def page() -> bytes:
        return estimators_page(EstimatorFacts(comparison, mark))

    mark = mark_of_estimators(comparison)
    files = {
        ESTIMATORS_FILE: marked(comparison.to_json(), mark),
        "estimators.csv": csv_of(comparison.table(), mark),
        "estimators.md": f"{comparison.to_markdown()}\n<!-- {mark} -->\n".encode(),
        "predictions.csv": csv_of(comparison.predictions(), mark),
        MADE_FILE: comparison.made.to_json(mark).encode(),
    }
    return write_drawn(Path(folder), files, {"predictions.png": picture, PAGE_FILE: page})


def mark_of_estimators(comparison: ComparedEstimators) -> str:
    """What all files of one comparison say."""
    return mark_of("compare", comparison.predictions().to_csv(index=False))

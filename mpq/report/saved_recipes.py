"""A comparison of recipes as a folder of files, its page among them."""

from pathlib import Path
from typing import Final

from mpq.report.page.made import MADE_FILE
from mpq.report.page.recipes import RecipeFacts
from mpq.report.page.render import recipes_page
from mpq.report.recipe_rows import ComparedRecipes
from mpq.report.save import PAGE_FILE, mark_of, write_drawn
from mpq.report.sections import csv_of, marked

RECIPES_FILE: Final = "recipes.json"
"""All numbers of a comparison, which its page is made of."""


def save_recipes(comparison: ComparedRecipes, folder: Path | str) -> list[Path]:
    """Writes recipes.csv, recipes.json, made.json, then report.html.

    Raises:
        OutputError: If the folder cannot be written to.
    """

    def page() -> bytes:
        return recipes_page(RecipeFacts.of(comparison, mark))

    mark = mark_of_recipes(comparison)
    files = {
        "recipes.csv": csv_of(comparison.table(), mark),
        RECIPES_FILE: marked(comparison.to_json(), mark),
        MADE_FILE: comparison.made.to_json(mark).encode(),
    }
    return write_drawn(Path(folder), files, {PAGE_FILE: page})


def mark_of_recipes(comparison: ComparedRecipes) -> str:
    """What all files of one comparison say."""
    return mark_of("compare-recipes", comparison.to_json())

"""Which kind of saved result a path leads to, and its page, made of the files alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

from mpq._support.json_object import read_as
from mpq.errors import InputError
from mpq.hardware_profiles import NetworkProfile, load_device
from mpq.report.page.made import Made
from mpq.report.page.render import page_of
from mpq.report.save import BEHIND, PAGE_FILE
from mpq.workflows.page.folder import facts_of_folder
from mpq.workflows.page.profiled import page_beside, page_of_profile

SEARCH: Final = "a search"


@final
@dataclass(frozen=True)
class Saved:
    """A result on disk.

    Args:
        what: It is, for people: ``SEARCH``, or another kind.
        path: Its folder; of a profile, its file.
        page: Makes its page of the path.
        place: Where its page lies by default.
    """

    what: str
    path: Path
    page: Callable[[Path], bytes]
    place: Path


def saved_at(path: Path) -> Saved:
    """The result that a folder holds, that one of its files is a part of, or a profile's file.

    Raises:
        InputError: If there is none, or several that a page can be of.
    """
    name, folder = (path.name, path.parent) if path.is_file() else ("", path)
    kinds = [
        (what, file, page)
        for what, file, page in _KINDS
        if (file == name if name else (folder / file).is_file())
    ]
    if len({what for what, _, _ in kinds}) > 1:
        told = " and of ".join(f"{what} ({file})" for what, file, _ in kinds)
        raise InputError(
            f"{path} holds the files of {told}: name one of these files, and --output, as each "
            f"writes its page to {PAGE_FILE}"
        )
    if kinds:
        what, _, page = kinds[0]
        return Saved(what, folder, page, folder / PAGE_FILE)
    if name.endswith(".json"):
        return Saved("a profile", path, _profile, page_beside(path))
    raise InputError(_why_none(path))


def _why_none(path: Path) -> str:
    if not path.exists():
        return (
            f"there is no {path}: name a folder of mpq search or mpq compare, or a file of "
            "mpq profile"
        )
    if (path / BEHIND / "assignment.json").is_file():
        return f"{path} holds a frontier: its search, with its page, is in {path / BEHIND}"
    if (path / "estimators.csv").is_file() or (path / "predictions.csv").is_file():
        return (
            f"{path} holds a comparison of an older mpq, without estimators.json: the same "
            "mpq compare again goes on from what was measured, and writes it"
        )
    return (
        f"{path} holds no result that a page is made of: expected the folder of mpq search "
        "(assignment.json) or of mpq compare (estimators.json, recipes.json), or the JSON file of "
        "mpq profile"
    )


def _search(folder: Path) -> bytes:
    return page_of(facts_of_folder(folder))


def _estimators(folder: Path) -> bytes:
    # Imported when called: matplotlib takes a second, and no other page needs it.
    from mpq.report.page.estimators import EstimatorFacts
    from mpq.report.page.render import estimators_page
    from mpq.report.saved_estimators import ESTIMATORS_FILE, mark_of_estimators
    from mpq.report.stored_estimators import estimators_from_json

    found = read_as(folder / ESTIMATORS_FILE, estimators_from_json)
    found = replace(found, made=Made.in_folder(folder))
    return estimators_page(EstimatorFacts(found, mark_of_estimators(found)))


def _recipes(folder: Path) -> bytes:
    from mpq.report.page.recipes import RecipeFacts
    from mpq.report.page.render import recipes_page
    from mpq.report.recipes import RecipeComparison
    from mpq.report.saved_recipes import RECIPES_FILE, mark_of_recipes

    found = read_as(folder / RECIPES_FILE, RecipeComparison.from_json)
    found = replace(found, made=Made.in_folder(folder))
    return recipes_page(RecipeFacts.of(found, mark_of_recipes(found)))


def _profile(path: Path) -> bytes:
    found = load_device(str(path))
    if not isinstance(found, NetworkProfile):
        raise InputError(
            f"{path} is a device of the model {type(found).__name__}: a page is made of what mpq "
            "profile measured; `mpq devices --show` has the numbers of others"
        )
    return page_of_profile(found)


_KINDS: Final = (
    (SEARCH, "assignment.json", _search),
    (SEARCH, "problem.json", _search),
    (SEARCH, "result.json", _search),
    ("a comparison of estimators", "estimators.json", _estimators),
    ("a comparison of recipes", "recipes.json", _recipes),
)
"""What a file shows, and what makes its page."""

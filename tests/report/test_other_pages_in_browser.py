"""Pages of comparisons and profiles in a real browser, with names that an adversary chose."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mpq.report.page.estimators import EstimatorFacts
from mpq.report.page.recipes import RecipeFacts
from mpq.report.page.render import estimators_page, profile_page, recipes_page
from mpq.report.page.vega import vega_script
from mpq.workflows.page.profiled import facts_of_profile
from tests.report.browser import cut_on_paper, opened, serious, started
from tests.report.made_up import HOSTILE
from tests.report.made_up_comparisons import estimators, recipes
from tests.report.made_up_profile import made_up_profile

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES, LIMITS = HOSTILE[:3], HOSTILE[3:5]

CUT_OFF = """[...document.querySelectorAll("caption")]
  .filter(x => x.getClientRects().length && x.getBoundingClientRect().right > innerWidth + 1)
  .map(x => x.innerText)"""
"""Headings of tables that cannot be read without moving the table."""


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """One for all tests here."""
    with started() as found:
        if not vega_script():
            pytest.skip("vl-convert-python is not installed, so that pages have no pictures")
        yield found


@pytest.mark.parametrize(
    ("page", "pictures", "scheme"),
    [
        (
            lambda: estimators_page(EstimatorFacts(estimators(NAMES, LIMITS), "mark")),
            ("worth", "scatter-0", "scatter-2"), "dark",
        ),
        (
            lambda: recipes_page(RecipeFacts.of(recipes(NAMES, LIMITS), "mark")),
            ("losses-0", "losses-1"), "light",
        ),
        (
            lambda: profile_page(facts_of_profile(made_up_profile(HOSTILE))),
            ("networks", "times", "cells"), "dark",
        ),
    ],
    ids=["estimators", "recipes", "profile"],
)  # fmt: skip
def test_the_page_works_alone_and_for_everybody(
    browser: "Browser",
    tmp_path: Path,
    page: Callable[[], bytes],
    pictures: tuple[str, ...],
    scheme: str,
) -> None:
    """Nothing said or fetched, no name run, pictures drawn, no fault; on a telephone, on paper."""
    file = tmp_path / "page.html"
    file.write_bytes(page())
    size = {"width": 390, "height": 800}

    with opened(browser, file, f"#{pictures[-1]} svg", color_scheme=scheme, viewport=size) as found:
        assert found.said == []
        assert [url for url in found.asked if not url.startswith(("data:", "blob:"))] == [
            file.as_uri()
        ]
        assert found.page.evaluate("window.hacked === undefined")
        for picture in pictures:
            assert found.page.locator(f"#{picture} svg path").count() > 5, picture
        assert found.number("document.documentElement.scrollWidth") <= 390
        assert found.page.evaluate(CUT_OFF) == []
        assert serious(found) == []
        assert cut_on_paper(found) == []


def test_bars_are_whole(browser: "Browser", tmp_path: Path) -> None:
    """The 95 % interval of a network that was measured in a noisy moment is in the picture."""
    profile = made_up_profile(("a", "b", "c"))
    noisy = [{**row, "high_s": 1.5 * row["median_s"]} for row in profile.record["networks"]]
    file = tmp_path / "page.html"
    record = {**profile.record, "networks": noisy}
    file.write_bytes(profile_page(facts_of_profile(replace(profile, record=record))))
    tops = """[...document.querySelectorAll("#networks g.mark-rule.role-mark line")]
      .map(x => x.getBoundingClientRect().top)"""

    with opened(browser, file, "#networks svg") as found:
        edge = found.number(
            "document.querySelector('#networks svg .background').getBoundingClientRect().top"
        )
        assert len(found.page.evaluate(tops)) > 0
        assert min(found.page.evaluate(tops)) >= edge

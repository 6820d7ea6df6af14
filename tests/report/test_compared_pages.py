"""Pages of compared estimators and recipes: made again from files, safe, and which is which."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpq._support.schema import read_schema, validate
from mpq.errors import FileFormatError, InputError
from mpq.report.estimators import EstimatorComparison
from mpq.report.page import render
from mpq.report.page.estimators import EstimatorFacts
from mpq.report.page.recipes import RecipeFacts
from mpq.report.rank_agreement import RankAgreement
from mpq.report.recipes import RecipeComparison
from mpq.report.stored_estimators import estimators_from_json
from mpq.workflows.page.report import report
from tests.report.made_up import HOSTILE
from tests.report.made_up_comparisons import estimators, recipes
from tests.report.reading import read, tables

NAMES = ("sketch", "hessian-trace:num_probes=8", "weight-error")
LIMITS = ("weight_bytes=0.9x:w4", "weight_bytes=1x:w6")


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their scripts are long; the PNG is tested elsewhere, and takes longest of all."""
    monkeypatch.setattr(render, "vega_script", lambda: "vega")
    monkeypatch.setattr("mpq.report.pictures.png", lambda figure, mark: b"")
    monkeypatch.setattr(EstimatorComparison, "plot", lambda self: None)


@pytest.mark.parametrize("made", [estimators(NAMES, LIMITS), recipes(NAMES, LIMITS)])
def test_the_page_is_made_again_from_files_alone(
    tmp_path: Path, made: EstimatorComparison | RecipeComparison
) -> None:
    """Byte by byte, with the command and the phases."""
    made.save(tmp_path)
    first = (tmp_path / "report.html").read_bytes()

    again = report([tmp_path], tmp_path / "again.html")

    assert again.read_bytes() == first
    assert b"mpq compare --output &#39;a b&#39;" in first
    assert b"256 MiB" in first


@pytest.mark.parametrize("made", [estimators(NAMES, LIMITS), recipes(NAMES, LIMITS)])
def test_what_was_compared_on_which_examples_is_named(
    tmp_path: Path, made: EstimatorComparison | RecipeComparison
) -> None:
    """Network and examples by the command's names; of an older comparison they are not known."""
    loaded = {"network": "net.py:make", "weights": "w.pt", "calibration": "net.py:batches"}
    replace(made, made=made.made.by(("mpq", "compare"), loaded)).save(tmp_path / "now")
    made.save(tmp_path / "before")

    now, before = (
        (tmp_path / name / "report.html").read_text(encoding="utf-8") for name in ("now", "before")
    )

    assert re.search(r">network</th><td>net.py:make; w.pt<", now)
    assert re.search(r">calibration examples</th><td>64; net.py:batches<", now)
    assert re.search(r">network</th><td>not known<", before)


def test_a_comparison_comes_back() -> None:
    """Equal in every number, also where a loss is infinite or nothing is known."""
    found = estimators(NAMES, LIMITS)
    first = replace(found.trials[0], divergence=inf, accuracy=None)
    found = replace(found, trials=(first, *found.trials[1:]), forward_seconds=1.0)

    data = json.loads(found.to_json())
    validate(data, read_schema("mpq.report", "estimators.schema.json"), "comparison")
    again = estimators_from_json(found.to_json())

    assert again.trials == found.trials
    assert again.scores[:-1] == found.scores[:-1]
    assert repr(again.scores[-1]) == repr(found.scores[-1])  # its seconds are nan
    assert again.agreement(again.scores[1]) == found.agreement(found.scores[1])


def page_in(folder: Path, made: Any, names: Sequence[str], limits: Sequence[str]) -> bytes:
    """What saving a comparison leaves there."""
    made(names, limits).save(folder)
    return (folder / "report.html").read_bytes()


def test_hostile_names_are_text(tmp_path: Path) -> None:
    """Of estimators, recipes and limits: no element and no attribute is theirs."""
    plain, hostile = (
        [read(page_in(tmp_path, made, names, limits)) for made in (estimators, recipes)]
        for names, limits in ((NAMES, LIMITS), (HOSTILE[:3], HOSTILE[3:5]))
    )

    for one, other in zip(plain, hostile, strict=True):
        assert other.tags.count("script") == one.tags.count("script") == 3
        assert set(other.tags) <= set(one.tags) | {"wbr"}
        assert not [name for name, _ in other.attributes if name.startswith("on")]


def test_what_a_colleague_would_say_of_estimators() -> None:
    """Which one ranks best, which ones it cannot be told from, whose optimum is best."""
    found = estimators(NAMES, LIMITS)

    said = EstimatorFacts(found, "mark").sentences

    best = found.agreement(found.scores[0])
    assert best.interval is not None
    assert said[0] == (
        f"sketch ranks {best.num_trials} random assignments best: Spearman {best.spearman:.3f} "
        f"(95 %: {best.interval[0]:.3f} to {best.interval[1]:.3f}), for 12 forward passes."
    )
    random = min(trial.divergence for trial in found.trials if trial.limit == LIMITS[1])
    assert said[-1] == (
        f"Within {LIMITS[1]} the optimum by sketch loses least, 0.003 ± 0.0005 nats, "
        f"{0.003 / random:.2g} × the best random assignment."
    )


def test_what_an_optimum_really_loses_has_its_error() -> None:
    """In both tables; not where it is not known, as in files of before."""
    found = estimators(NAMES, LIMITS)
    known = tables(render.estimators_page(EstimatorFacts(found, "mark")))
    data = json.loads(found.to_json())
    for score in data["scores"]:
        for solved in score["solved"]:
            del solved["standard_error"]

    old = estimators_from_json(json.dumps(data))

    assert known["Best rank correlation first"][1][-1] == "0.003 ± 0.0005"
    assert known["Near each limit"][1][4] == "0.009 ± 0.0005"
    unknown = tables(render.estimators_page(EstimatorFacts(old, "mark")))
    assert unknown["Best rank correlation first"][1][-1] == "0.003"
    assert "loses least, 0.003 nats, " in EstimatorFacts(old, "").sentences[-1]


def test_what_a_colleague_would_say_of_recipes() -> None:
    """Which search loses least, and how much of the default's."""
    found = recipes(NAMES, LIMITS)
    better = replace(found.rows[1], divergence=0.005)

    said = RecipeFacts.of(found, "").sentences
    said_better = RecipeFacts.of(replace(found, rows=(found.rows[0], better)), "").sentences

    assert said[0] == (
        f"Within {LIMITS[0]} the default loses least, 0.01 ± 0.001 nats; sketch, the best "
        "recipe, loses 2 × as much."
    )
    assert said_better == (
        f"Within {LIMITS[0]} sketch loses least, 0.005 ± 0.001 nats: 0.5 × what the default does.",
    )


def test_the_interval_of_a_rank_correlation_covers_it() -> None:
    """In 95 % of samples of a bivariate normal, whose own is known in closed form."""
    rng, rho, count, times = np.random.default_rng(0), 0.8, 40, 1500
    truth = 6 / pi * np.arcsin(rho / 2)
    x = rng.normal(size=(times, count))
    y = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=(times, count))
    ranks = [a.argsort(axis=1).argsort(axis=1) for a in (x, y)]
    centred = [a - a.mean(axis=1, keepdims=True) for a in ranks]
    found = (centred[0] * centred[1]).mean(axis=1) / (centred[0] ** 2).mean(axis=1)

    intervals = [RankAgreement(r, nan, nan, count).interval for r in found.tolist()]

    covered = [low <= truth <= high for low, high in filter(None, intervals)]
    assert len(covered) == times
    assert 0.93 < np.mean(covered) < 0.97


@pytest.mark.parametrize(("spearman", "count"), [(nan, 40), (1.0, 40), (0.5, 9)])
def test_no_interval_where_the_formula_has_none(spearman: float, count: int) -> None:
    """Of no correlation, of a perfect one, of fewer than ten."""
    assert RankAgreement(spearman, nan, nan, count).interval is None


def test_what_has_no_page_is_told(tmp_path: Path) -> None:
    """Nothing there, something else, two kinds in one folder, a comparison among searches."""
    with pytest.raises(InputError, match="there is no "):
        report([tmp_path / "none"])
    with pytest.raises(InputError, match="holds no result that a page is made of"):
        report([tmp_path])
    (tmp_path / "predictions.csv").write_text("limit\n")
    with pytest.raises(InputError, match="of an older mpq"):
        report([tmp_path])

    estimators(NAMES, LIMITS).save(tmp_path)
    with pytest.raises(InputError, match="is a comparison of estimators: searches alone"):
        report([tmp_path, tmp_path / "other"])

    recipes(NAMES, LIMITS).save(tmp_path)
    with pytest.raises(InputError, match=r"estimators \(estimators.json\) and of a comparison"):
        report([tmp_path])
    page = report([tmp_path / "estimators.json"], tmp_path / "again.html").read_text()
    assert "4 estimators compared" in page

    (tmp_path / "recipes.json").write_text('{"schema_version": 1}')
    with pytest.raises(FileFormatError, match=r"recipes\.json: not a valid comparison of recipes"):
        report([tmp_path / "recipes.json"])


@pytest.mark.parametrize("key", ["recipe", "limit"])
def test_recipes_without_their_default_are_refused(key: str) -> None:
    """A file that somebody has changed: in a sentence, and not in a template."""
    data = json.loads(recipes(("a", "b"), ("x=1", "y=1")).to_json())
    data["rows"][0][key] = "other"

    with pytest.raises(FileFormatError, match="no row default at '"):
        RecipeComparison.from_json(json.dumps(data))


def test_estimators_that_are_not_solved_everywhere_are_refused() -> None:
    """The same of limits that the trials have, and of limits that they do not have."""
    for key, change in (("solved", []), ("limit", "other")):
        data = json.loads(estimators(("a", "b"), ("x=1", "y=1")).to_json())
        (data["scores"][0] if key == "solved" else data["trials"][0])[key] = change

        with pytest.raises(FileFormatError, match="a is not solved at the limits of the trials"):
            estimators_from_json(json.dumps(data))


def test_markdown_holds_names_as_text() -> None:
    """A bar begins no cell, a backtick ends no code, a tag is none, a line stays one."""
    named = estimators(("a|b", "c`d", "<b>"), ("x<i>=1\n",))

    text = named.to_markdown()

    head, _, *rows = text.split("\n\n")[0].splitlines()
    assert len(rows) == 5
    assert {len(re.split(r"(?<!\\)\|", line)) for line in (head, *rows)} == {head.count("|") + 1}
    assert "`` c`d ``" in text
    assert "x&lt;i&gt;=1" in text
    assert "layer &lt;b&gt; cannot" in text

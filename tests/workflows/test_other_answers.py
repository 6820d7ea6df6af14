"""Answers by other prices and of integers alone, where unseen examples say so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mpq
from mpq import SOLVERS, Precision, demo
from mpq.errors import SolverError
from mpq.problem.problem import Problem
from mpq.report.safeguard import AnswerCheck, Excess, UniformCheck, Verdict
from mpq.sensitivity import Estimation, Sensitivity, SensitivityEstimator
from mpq.sensitivity.output_sketch import OutputSketch
from mpq.solvers.queries.solve import solve
from mpq.workflows.other_answers import best_answer
from mpq.workflows.setup import Prepared

CANDIDATES = ["w2", "w4", "w8"]


class FloatIsFree(SensitivityEstimator):
    """To it floating point and codebooks lose nothing."""

    name = "float is free"
    summary = "for this test"

    def estimate(self, on: Estimation) -> Sensitivity:
        table = OutputSketch().estimate(on).table
        is_float = np.array([p.weight.number.is_float for p in table.precisions])
        return Sensitivity(replace(table, values=np.where(is_float, 0.0, table.values)))


class TwoPrices(SensitivityEstimator):
    """One of its prices is the sketch's, the other one its reverse: the fewest bits lose least."""

    name = "two prices"
    summary = "for this test"

    def __init__(self, is_first_right: bool) -> None:
        self._is_first_right = is_first_right

    def estimate(self, on: Estimation) -> Sensitivity:
        right = OutputSketch().estimate(on).table
        wrong = replace(right, values=right.values.max() - right.values)
        tables = (right, wrong) if self._is_first_right else (wrong, right)
        return Sensitivity(tables[0], by_channels=tables[1])


def task(rounding: str = "gptq") -> mpq.Task:
    return mpq.Task(
        demo.make_net(), demo.calibration, demo.held_out, candidates=CANDIDATES, rounding=rounding
    )


def searched(is_first_right: bool) -> mpq.SearchResult:
    return mpq.search(task(), {"effective_bits": 5}, sensitivity=TwoPrices(is_first_right))


def prices(result: mpq.SearchResult) -> AnswerCheck:
    assert result.safeguard is not None
    assert result.safeguard.prices is not None
    return result.safeguard.prices


def test_the_answer_by_the_better_prices_is_taken() -> None:
    by_first, by_second = searched(True), searched(False)
    assert not prices(by_first).is_replaced
    assert prices(by_second).is_replaced
    assert by_first.assignment.precisions == by_second.assignment.precisions
    assert by_first.assignment.precisions != dict.fromkeys(
        by_first.assignment.precisions, Precision.parse("w2")
    )


def test_the_excess_is_what_both_answers_lose_on_held_out_examples() -> None:
    result = searched(False)
    session = mpq.Session.of(task())
    # To the wrong prices the fewest bits are best.
    lost = session.measure(np.zeros_like(result.columns)), session.measure(result.columns)
    mean = float(np.mean(lost[0].by_example - lost[1].by_example))
    assert prices(result).held_out.mean == pytest.approx(mean, rel=1e-6)
    assert prices(result).held_out.num_examples == lost[0].num_examples


def test_what_became_of_it_is_told_and_read_again(tmp_path: Path) -> None:
    result = searched(False)
    result.save(tmp_path)
    assert prices(mpq.load(tmp_path)) == prices(result)
    assert "loses less" in prices(result).sentence("others")
    assert "loses more" in prices(searched(True)).sentence("others")
    assert result.solution.solver.endswith("replaced by prices by channels")
    assert result.solution.loss == pytest.approx(result.problem.loss_of(result.columns))


def test_an_answer_that_the_objective_refuses_is_not_taken() -> None:
    prepared, limit = Prepared.of(task()), mpq.Limit.parse("effective_bits=5")
    right = OutputSketch().estimate(prepared.asked).table
    wrong = replace(right, values=right.values.max() - right.values)
    problem = Problem(wrong, prepared.constraints([limit]))
    first = solve(SOLVERS.build("auto"), problem)
    taken, checks = best_answer(prepared, problem, first, right)
    assert checks.keys() == {"prices"}
    assert taken is not first
    assert best_answer(prepared, problem, first, right, lambda _: False) == (first, {})


@pytest.mark.parametrize("outliers", [0, 1])
def test_one_example_alone_does_not_decide(outliers: int) -> None:
    gains = np.random.default_rng(0).normal(0.1, 0.1, 100)
    gains[: 60 * outliers] = -0.01
    gains[99] += 50 * outliers
    excess = replace(Excess.of(gains, np.zeros(100)), standard_error=0.01)
    assert excess.verdict is Verdict.WORSE
    assert excess.is_on_most == (not outliers)
    assert UniformCheck("w4", None, excess).verdict is (
        Verdict.UNCLEAR if outliers else Verdict.WORSE
    )
    # Where no codes fit data, both sets of examples decide by their means.
    assert UniformCheck("w4", excess, excess).verdict is Verdict.WORSE


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_examples_that_all_agree_decide(count: int) -> None:
    excess = Excess.of(np.linspace(0.1, 0.2, count), np.zeros(count))
    assert excess.is_on_most
    # One that says the opposite, by the most.
    but_one = Excess.of(np.linspace(0.1, 0.2, count), np.append(np.zeros(count - 1), 0.5))
    assert not but_one.is_on_most


def test_the_sketch_has_other_prices_of_codes_that_fit_data() -> None:
    rounded = Prepared.of(task())
    found = OutputSketch().estimate(rounded.asked)
    alone = OutputSketch(channels=1.0).estimate(rounded.asked)
    assert found.by_channels is not None
    np.testing.assert_allclose(found.by_channels.values, alone.table.values)
    assert alone.by_channels is None


def test_weights_that_are_rounded_to_nearest_have_one_kind_of_prices() -> None:
    assert OutputSketch().estimate(Prepared.of(task("nearest")).asked).by_channels is None
    result = mpq.search(task("nearest"), {"effective_bits": 5})
    assert result.safeguard is not None
    assert result.safeguard.prices is None


def test_an_estimate_from_the_cache_has_both_prices(tmp_path: Path) -> None:
    kept = replace(task(), cache=tmp_path)
    first, again = (mpq.search(kept, {"effective_bits": 4}, sensitivity="sketch") for _ in "12")
    assert prices(first) == prices(again)


MIXED = ["wternary", "w2", "w4", "we2m1", "w8"]


def test_the_answer_of_integers_alone_is_taken_where_it_loses_less() -> None:
    """More candidates do no harm: ternary weights are no better for being thought to be free."""
    mixed = mpq.Task(
        demo.make_net(), demo.calibration, demo.held_out, candidates=MIXED, rounding="nearest"
    )
    alone = replace(mixed, candidates=["w2", "w4", "w8"])

    def found(task: mpq.Task) -> mpq.SearchResult:
        return mpq.search(task, {"effective_bits": 5}, sensitivity=FloatIsFree())

    result = found(mixed)
    assert result.safeguard is not None
    assert result.safeguard.integers is not None
    assert result.safeguard.integers.is_replaced
    first, *_ = result.safeguard.sentences
    assert first.startswith("integers alone gave an answer that loses less")
    assert result.assignment.precisions == found(alone).assignment.precisions
    assert result.solution.solver.endswith("replaced by integers alone")


def test_where_floating_point_is_better_it_stays() -> None:
    """A layer that may be no integer is left as it may be."""
    task = mpq.Task(
        demo.make_net(), demo.calibration, demo.held_out, rounding="nearest",
        candidates=["w2", "we4m3"],
        rules=mpq.Rules(allow={"stem.conv": ["we4m3"]}),
    )  # fmt: skip
    result = mpq.search(task, {"effective_bits": 6})
    assert result.safeguard is not None
    assert result.safeguard.integers is not None
    assert not result.safeguard.integers.is_replaced


def test_examples_that_are_all_alike_have_no_spread() -> None:
    excess = Excess.of(np.full(7, 0.3), np.full(7, 0.1))
    assert excess.standard_error == 0
    assert excess.verdict is Verdict.WORSE
    assert Excess.of(np.array([np.nan, 1.0, 2.0]), np.zeros(3)).verdict is Verdict.UNCLEAR


def test_a_better_mean_that_is_not_taken_says_why() -> None:
    few = replace(Excess.of(np.ones(9), np.zeros(9)), p_value=0.9)
    assert "but not on most of them" in AnswerCheck(few, False).sentence("others")
    assert "not beyond chance" in AnswerCheck(replace(few, p_value=0.01), False).sentence("others")


def test_a_second_solve_that_fails_is_told_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepared, limit = Prepared.of(task()), mpq.Limit.parse("effective_bits=5")
    table = OutputSketch().estimate(prepared.asked).table
    problem = Problem(table, prepared.constraints([limit]))
    first = solve(SOLVERS.build("auto"), problem)

    def failing(*_: object) -> None:
        raise SolverError("nothing within 60 s")

    monkeypatch.setattr("mpq.workflows.other_answers.solve", failing)
    with pytest.warns(UserWarning, match="no answer by prices by channels .* nothing within 60 s"):
        assert best_answer(prepared, problem, first, table) == (first, {})

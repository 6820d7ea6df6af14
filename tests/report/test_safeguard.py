"""What is said of an answer beside uniform precisions."""

import numpy as np
import pytest

from mpq.report.safeguard import Excess, Safeguard, UniformCheck, Verdict


def excess(mean: float, error: float = 0.1) -> Excess:
    """What an answer loses more, on ten examples."""
    return Excess(mean, error, 10)


def test_the_bootstrap_has_the_standard_error_of_a_mean() -> None:
    """Of independent examples it is known in closed form; what both share cancels."""
    rng = np.random.default_rng(0)
    hard = rng.exponential(100.0, size=400)
    difference = rng.normal(0.5, 2.0, size=400)

    found = Excess.of(hard + difference, hard)

    assert found.mean == pytest.approx(difference.mean())
    assert found.standard_error == pytest.approx(difference.std() / 20, rel=0.1)
    assert found.num_examples == 400


def test_the_same_examples_give_the_same_error() -> None:
    """The draws have a seed of their own."""
    rows = np.random.default_rng(1).normal(size=(2, 50))

    assert Excess.of(*rows) == Excess.of(*rows)


@pytest.mark.parametrize(
    ("calibration", "held_out", "expected"),
    [
        (0.3, 0.2, Verdict.WORSE),
        (-0.3, -0.2, Verdict.BETTER),
        (0.3, -0.2, Verdict.UNCLEAR),
        (0.3, 0.05, Verdict.UNCLEAR),
        (0.05, 0.3, Verdict.UNCLEAR),
    ],
)
def test_both_sets_have_to_agree(calibration: float, held_out: float, expected: Verdict) -> None:
    """Beyond the standard error of 0.1 on either."""
    assert UniformCheck("w4a8", excess(calibration), excess(held_out)).verdict is expected


def test_the_sentence_names_what_cannot_be_told_apart() -> None:
    """And counts what is worse than the answer."""
    found = Safeguard(
        (
            UniformCheck("w4a8", excess(-1), excess(-1)),
            UniformCheck("w8a8", excess(0), excess(0)),
        )
    )

    assert found.sentence == (
        "measured better than 1 uniform precision within the budgets; not distinguishable from w8a8"
    )
    assert Safeguard(found.checks[1:]).sentence == "not distinguishable from w8a8"
    assert Safeguard().sentence == "no other uniform precision meets these budgets"


@pytest.mark.parametrize(
    ("held_out", "expected"),
    [(0.11, Verdict.WORSE), (0.09, Verdict.UNCLEAR), (-0.11, Verdict.BETTER)],
)
def test_held_out_examples_decide_alone(held_out: float, expected: Verdict) -> None:
    """Where codes were made to fit the others; beyond the standard error of 0.1."""
    check = UniformCheck("w4a8", None, excess(held_out))

    assert check.verdict is expected
    assert "fit the calibration ones): it is the answer" in Safeguard((check,), "w4a8").sentence

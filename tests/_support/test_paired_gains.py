"""Gains of the same examples, told from chance."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from mpq._support.paired_gains import is_above_chance


def test_chance_is_that_of_student() -> None:
    """By scipy's one-sided test, on either side of the level."""
    rng = np.random.default_rng(0)
    for mean in np.linspace(-0.5, 1.0, 16):
        gains = rng.normal(mean, 1.0, size=20)

        expected = ttest_1samp(gains, 0.0, alternative="greater").pvalue < 0.05

        assert is_above_chance(gains) == expected


@pytest.mark.parametrize("digits", [0.0, 1e-8, 1e-6])
def test_examples_that_are_all_alike_prove_nothing(digits: float) -> None:
    """Also where last digits differ, as those of rows of one product do."""
    gains = 0.3 + digits * np.random.default_rng(0).normal(size=20)

    assert not is_above_chance(gains)


def test_a_single_example_proves_nothing() -> None:
    """However much it gains."""
    assert not is_above_chance(np.array([1.0]))

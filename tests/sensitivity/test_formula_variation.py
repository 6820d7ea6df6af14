"""Formulas by chance."""

import numpy as np
import pytest

from mpq.sensitivity.formula import Formula
from mpq.sensitivity.formula_variation import (
    LARGEST,
    crossed,
    drawn,
    mutated,
    why_incompatible,
)

SOME = tuple(map(Formula.parse, ("sum(abs(g*w))", "mean(h)*sum(square(w))", "norm(a/w)")))


def test_whatever_is_made_can_be_read() -> None:
    """Drawn, mutated, crossed: a formula, whose text is read as the same."""
    rng = np.random.default_rng(0)
    made = [drawn(rng) for _ in range(100)]
    made += [mutated(formula, rng) for formula in SOME for _ in range(100)]
    made += [crossed(SOME[0], SOME[1], rng) for _ in range(100)]
    fitting = [formula for formula in made if why_incompatible(formula) is None]

    assert len({str(formula) for formula in fitting}) > 100
    assert all(formula.is_number for formula in made)
    assert all(len(list(formula.nodes())) <= LARGEST for formula in fitting)
    assert all(Formula.parse(str(formula)) == formula for formula in fitting)


def test_a_seed_makes_the_same() -> None:
    """And another one others."""
    texts = [[str(drawn(rng)) for _ in range(20)] for rng in map(np.random.default_rng, (1, 1, 2))]

    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sum(abs(abs(w)))", "twice"),
        ("sum(square(abs(w)))", "needless sign"),
        ("sum(abs(square(w)))", "needless sign"),
        ("sum(sqrt(square(w)))", "undone"),
        ("sum(sum(w))", "of one number"),
        ("sum(w-w)", "cancels"),
        ("sum(" + "+".join(["w"] * 9) + ")", "too large"),
        ("sum(square(square(w)))", None),
        ("sum(abs(g*w))", None),
    ],
)
def test_what_does_not_go_together(text: str, reason: str | None) -> None:
    """Said without a look at a network."""
    assert why_incompatible(Formula.parse(text)) == reason

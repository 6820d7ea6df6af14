"""Comparisons that nobody measured: of estimators and of recipes, called as one likes."""

from collections.abc import Sequence

import numpy as np

from mpq._support.phases import Spent
from mpq.report.estimators import EstimatorComparison
from mpq.report.page.made import Made
from mpq.report.recipe_rows import DEFAULT, RecipeRow
from mpq.report.recipes import RecipeComparison
from mpq.report.trials import Score, Solved, Trial

MADE = Made(
    ("mpq", "compare", "--output", "a b"), (Spent("assignments", 3.0, 2**28),), {"mpq": "1"}
)


def estimators(
    names: Sequence[str], limits: Sequence[str], num_trials: int = 12
) -> EstimatorComparison:
    """Every further estimator predicts worse, the second one in a unit of its own; one fails."""
    rng = np.random.default_rng(0)
    trials = tuple(
        Trial(limit, (0, 1), float(np.exp(rng.normal(-4, 1.5))), 0.9)
        for limit in limits
        for _ in range(num_trials)
    )
    losses = np.array([trial.divergence for trial in trials])
    scores = tuple(
        Score(
            name,
            tuple((losses * np.exp(rng.normal(0, 0.1 + 0.4 * k, len(losses)))).tolist()),
            "squared error" if k == 1 else "nats",
            tuple(Solved(limit, 0.004, 0.003 * (1 + k), 0.93, 0.0005) for limit in limits),
            1.5 * (k + 1), 12.0 * (k + 1), 2**20,
        )
        for k, name in enumerate(names)
    )  # fmt: skip
    failed = Score("failing", error=f"layer {names[-1]} cannot be differentiated")
    return EstimatorComparison(trials, (*scores, failed), "nats", 0.5, 0.02, 64, 500, MADE)


def recipes(names: Sequence[str], limits: Sequence[str]) -> RecipeComparison:
    """Every further recipe loses more than the default; the last one fails."""
    rows = [
        RecipeRow(
            name, limit, 0.01 * (1 + k), 0.001, 0.9, {"weight_bytes_bytes": 1e5 - k}, 10.0 * k,
            (f"candidates: {name}",) if k == 1 else (),
        )
        for limit in limits
        for k, name in enumerate((DEFAULT, *names[:-1]))
    ]  # fmt: skip
    failed = [RecipeRow(names[-1], limit, error=f"{names[-1]} fails") for limit in limits]
    ordered = sorted(rows + failed, key=lambda row: limits.index(row.limit))
    return RecipeComparison(tuple(ordered), "nats", 64, 500, MADE)

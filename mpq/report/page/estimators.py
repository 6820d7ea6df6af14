"""What the page of compared estimators says: which one ranks best, what it costs, what it finds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from typing import Any, final

from mpq._support.names import shortened, visible
from mpq.report.page.numbers import plain
from mpq.report.page.script_data import shortest
from mpq.report.rank_agreement import RankAgreement
from mpq.report.trials import ComparedEstimators, Score, Solved


@final
@dataclass(frozen=True)
class Near:
    """An estimator near one limit.

    Args:
        limit: As it was written.
        agreement: Over the random assignments there.
        solved: The estimator's optimum; ``None`` where it failed.
        num_hidden: Assignments that a logarithmic picture has no place for: of a predicted or
            measured loss of 0 or less.
    """

    limit: str
    agreement: RankAgreement
    solved: Solved | None
    num_hidden: int


@final
@dataclass(frozen=True)
class Ranked:
    """One estimator with what it is worth.

    Args:
        score: Its predictions and optima.
        agreement: Over all assignments.
        near: By limit.
    """

    score: Score
    agreement: RankAgreement
    near: tuple[Near, ...]

    @property
    def num_hidden(self) -> int:
        """Assignments that its picture has no place for."""
        return sum(each.num_hidden for each in self.near)


@final
@dataclass(frozen=True)
class EstimatorFacts:
    """A comparison of estimators, in the order of what people ask.

    Args:
        found: The comparison.
        mark: Of its files.
    """

    found: ComparedEstimators
    mark: str

    @cached_property
    def ranked(self) -> tuple[Ranked, ...]:
        """Best rank correlation first; those without one, as of an estimator that failed, last."""

        def place(each: Ranked) -> tuple[bool, float]:
            found = each.agreement.spearman
            return (True, 0.0) if isnan(found) else (False, -found)

        return tuple(sorted(map(self._ranked, self.found.scores), key=place))

    def _ranked(self, score: Score) -> Ranked:
        solved = {one.limit: one for one in score.solved}
        near = tuple(
            Near(
                limit,
                self.found.agreement(score, limit),
                solved.get(limit),
                sum(
                    trial.limit == limit and not (predicted > 0 and trial.divergence > 0)
                    for trial, predicted in zip(self.found.trials, score.predicted, strict=False)
                ),
            )
            for limit in self.found.limits
        )
        return Ranked(score, self.found.agreement(score), near)

    @property
    def best_random(self) -> Mapping[str, float]:
        """Limit to the least loss of the random assignments near it."""
        return {
            limit: min(x.divergence for x in self.found.trials if x.limit == limit)
            for limit in self.found.limits
        }

    @property
    def sentences(self) -> tuple[str, ...]:
        """Which estimator ranks best, which ones it cannot be told from, whose optimum is best."""
        return tuple(self._sentences())

    def _sentences(self) -> Iterator[str]:
        able = [each for each in self.ranked if not isnan(each.agreement.spearman)]
        if not able:
            yield "No estimator has a rank correlation here."
            return
        best, interval = able[0], able[0].agreement.interval
        sure = "" if interval is None else f" (95 %: {interval[0]:.3f} to {interval[1]:.3f})"
        yield (
            f"{best.score.estimator} ranks {best.agreement.num_trials} random assignments best: "
            f"Spearman {best.agreement.spearman:.3f}{sure}, for "
            f"{best.score.forward_passes:.3g} forward passes."
        )
        alike = [x.score.estimator for x in able[1:] if _overlap(interval, x.agreement.interval)]
        if alike:
            yield (
                f"Intervals overlap with it: {', '.join(alike)}. These assignments do not tell "
                "which of them is better."
            )
        yield from map(self._optimum, self.found.limits)

    def _optimum(self, limit: str) -> str:
        """Whose optimum within a limit loses least."""
        solved = [
            (near.solved, each.score.estimator)
            for each in self.ranked
            for near in each.near
            if near.limit == limit and near.solved is not None
        ]
        best = min((one for one, _ in solved), key=lambda one: one.divergence)
        least = best.divergence
        names = ", ".join(name for one, name in solved if one.divergence == least)
        error = "" if best.standard_error is None else f" ± {plain(best.standard_error, 2)}"
        random = self.best_random[limit]
        share = f", {least / random:.2g} × the best random assignment" if random > 0 else ""
        told = f"{plain(least)}{error} {self.found.unit}"
        return f"Within {limit} the optimum by {names} loses least, {told}{share}."

    @property
    def made(self) -> tuple[tuple[str, str], ...]:
        """What made it: a name, a value."""
        found = self.found
        return (
            *found.made.compared(found.num_calibration, found.num_held_out),
            ("one forward pass over the calibration examples", f"{found.forward_seconds:.3g} s"),
        )

    def script_data(self) -> dict[str, Any]:
        """JSON-ready, what pictures are drawn of: estimators in the order of ``ranked``."""
        found = self.found
        return {
            "unit": found.unit,
            "maxLoss": found.max_loss,
            "limits": [shortened(visible(limit)) for limit in found.limits],
            "near": [found.limits.index(trial.limit) for trial in found.trials],
            "measured": [shortest(trial.divergence) for trial in found.trials],
            "estimators": [
                {
                    "name": shortened(visible(each.score.estimator)),
                    "unit": each.score.unit,
                    "spearman": each.agreement.spearman,
                    "interval": each.agreement.interval,
                    "passes": each.score.forward_passes,
                    "predicted": list(map(shortest, each.score.predicted)),
                    "solved": [
                        [one.predicted, one.divergence, one.standard_error] if one else None
                        for one in (near.solved for near in each.near)
                    ],
                }
                for each in self.ranked
            ],
        }


def _overlap(one: tuple[float, float] | None, other: tuple[float, float] | None) -> bool:
    return one is not None and other is not None and one[0] <= other[1] and other[0] <= one[1]

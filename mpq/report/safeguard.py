"""The answer beside every uniform precision that meets the same budgets, measured on both sets."""

from dataclasses import dataclass
from enum import Enum
from typing import Final, final

import numpy as np

from mpq._support.arrays import Array
from mpq._support.paired_gains import ALIKE, most_gain
from mpq.report.score_check import ScoreCheck

LEVEL: Final = 0.1
"""At which most examples say the same, by their signed ranks."""
_NUM_RESAMPLES = 1000
"""Of the bootstrap: its own error is then some 2 % of the standard error."""


class Verdict(Enum):
    """How the answer does against a uniform precision; the values are for people."""

    BETTER = "the answer is better"
    WORSE = "the uniform precision is better"
    UNCLEAR = "not distinguishable"


@final
@dataclass(frozen=True)
class Excess:
    """What the answer loses more than a uniform precision, on the same examples.

    Args:
        mean: Mean over examples, in the metric's unit; below 0 the answer is better.
        standard_error: What that mean may be off by, from a paired bootstrap.
        num_examples: How many examples there are.
        p_value: How often chance alone makes the answer lose more on as many of them: Wilcoxon's
            signed ranks (1945, doi:10.2307/3001968), one-sided. ``None`` in files of before.
    """

    mean: float
    standard_error: float
    num_examples: int
    p_value: float | None = None

    @classmethod
    def of(cls, answer: Array, uniform: Array, seed: int = 0) -> "Excess":
        """From the divergences ``[N]`` of both on the same examples.

        The examples are drawn anew with repetitions, both networks' together (Efron 1979,
        doi:10.1214/aos/1176344552): what makes an example hard for both cancels.
        """
        difference = answer - uniform
        count = len(difference)
        drawn = np.random.default_rng(seed).multinomial(
            count, np.full(count, 1 / count), size=_NUM_RESAMPLES
        )
        means = drawn @ difference / count
        mean, error = float(difference.mean()), float(means.std())
        # Examples that are all alike, or a single one: what is left is float64's rounding.
        error = 0.0 if error <= ALIKE * abs(mean) else error
        return cls(mean, error, count, most_gain(difference))

    @property
    def verdict(self) -> Verdict:
        """Whether the mean is beyond its standard error, and on which side."""
        return self.beyond(1.0)

    def beyond(self, num_errors: float) -> Verdict:
        """The same for so many standard errors."""
        # Of one example nothing is known about the spread: the bootstrap gives 0 and proves little,
        # but an answer that loses more there is no better for it.
        if not abs(self.mean) > num_errors * self.standard_error:  # also where it is no number
            return Verdict.UNCLEAR
        return Verdict.WORSE if self.mean > 0 else Verdict.BETTER

    @property
    def is_on_most(self) -> bool:
        """Whether the answer loses more on most examples, not only in their mean.

        Of a network that is sure of nearly all examples, a few others make the mean.
        """
        # Of fewer than four examples even all of them do not reach the level.
        least = 2.0**-self.num_examples
        return self.p_value is None or self.p_value <= max(LEVEL, least)


@final
@dataclass(frozen=True)
class UniformCheck:
    """The answer against one uniform precision that meets all the budgets.

    Args:
        precision: The uniform precision.
        calibration: On the calibration examples; ``None`` where weights were rounded to fit these.
        held_out: On the held-out examples.
    """

    precision: str
    calibration: Excess | None
    held_out: Excess

    @property
    def verdict(self) -> Verdict:
        """What both sets of examples agree on; anything else is not distinguishable.

        Where codes were made to fit the calibration examples, the held-out ones alone are asked, in
        the mean and by most of them.
        """
        if self.calibration is None:
            verdict = self.held_out.verdict
            is_few = verdict is Verdict.WORSE and not self.held_out.is_on_most
            return Verdict.UNCLEAR if is_few else verdict
        both = {self.calibration.verdict, self.held_out.verdict}
        return both.pop() if len(both) == 1 else Verdict.UNCLEAR

    @property
    def total(self) -> float:
        """Excess over all sets that were asked, to choose the best of several by."""
        return self.held_out.mean + (self.calibration.mean if self.calibration else 0.0)

    @property
    def amounts(self) -> str:
        """By how much, for people."""
        held_out, calibration = self.held_out, self.calibration
        if calibration is None:
            most = "" if held_out.p_value is None else ", and on most of them"
            return (
                f"by {held_out.mean:.3g} on held-out examples, beyond its standard error "
                f"{held_out.standard_error:.1g}{most}; weights were rounded to fit the "
                "calibration ones"
            )
        return (
            f"by {held_out.mean:.3g} on held-out and {calibration.mean:.3g} on calibration "
            f"examples, beyond their standard errors {held_out.standard_error:.1g} and "
            f"{calibration.standard_error:.1g}"
        )


PRICES, UNSEEN, INTEGERS = "prices", "unseen", "integers"
OTHER_ANSWERS: Final = {
    PRICES: "prices by channels",
    UNSEEN: "prices for unseen examples",
    INTEGERS: "integers alone",
}
"""What gives another answer, as ``Safeguard`` names it, and for people."""


@final
@dataclass(frozen=True)
class AnswerCheck:
    """The answer so far against another one.

    Args:
        held_out: What the answer so far loses more, on held-out examples.
        is_replaced: Whether the other one became the answer.
    """

    held_out: Excess
    is_replaced: bool

    def sentence(self, other: str) -> str:
        """What was found, for people.

        Args:
            other: What gave the other answer, in the plural.
        """
        found = self.held_out
        told = f"by {abs(found.mean):.3g} on held-out examples, standard error "
        told += f"{found.standard_error:.1g}"
        if self.is_replaced and not found.mean > 0:
            return (
                f"{other} are predicted to lose less, and held-out examples do not say that they "
                f"lose more beyond chance ({told}): the answer is by them"
            )
        if self.is_replaced:
            return f"{other} gave an answer that loses less ({told}): it is taken"
        if not found.mean > 0:
            verb = "loses more" if found.mean < 0 else "loses as much"
            return f"{other} gave an answer that {verb} ({told})"
        why = "but not on most of them" if not found.is_on_most else "which is not beyond chance"
        return f"{other} gave an answer that loses less in the mean ({told}), {why}"


@final
@dataclass(frozen=True)
class Safeguard:
    """Whether the answer is at least as good as every uniform precision within the budgets.

    Args:
        checks: The predicted optimum against every uniform precision that meets all the budgets;
            none where the budgets leave no uniform precision.
        replaced_by: The uniform precision that became the answer; ``None``: the optimum stayed.
        prices: Before that, the predicted optimum against that by other prices; ``None`` where
            there are none, or both are the same.
        integers: And against that of integers alone; ``None`` where there are no other candidates,
            the answer has none of them, or no integers meet the budgets.
        inside: At last, the answer by layers against that by parts of layers; ``None`` where it was
            not asked for, no part can be chosen, or both are the same.
        score: By the user's own score, which then decides in the place of ``checks``; ``None``:
            there is none.
        unseen: After ``prices``, the answer so far against that by prices for unseen examples;
            ``None`` where codes fit no layer too well to be priced, or both are the same.
    """

    checks: tuple[UniformCheck, ...] = ()
    replaced_by: str | None = None
    prices: AnswerCheck | None = None
    integers: AnswerCheck | None = None
    inside: AnswerCheck | None = None
    score: ScoreCheck | None = None
    unseen: AnswerCheck | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, for people, in the order in which it was asked."""
        asked = {PRICES: self.prices, UNSEEN: self.unseen, INTEGERS: self.integers}
        others = (x.sentence(OTHER_ANSWERS[name]) for name, x in asked.items() if x is not None)
        last = () if self.inside is None else (self.inside.sentence("bits inside layers"),)
        return (*others, self.sentence, *last)

    @property
    def sentence(self) -> str:
        """What was found, for people."""
        if self.score is not None:
            return self.score.sentence(self.replaced_by)
        if not self.checks:
            return "no other uniform precision meets these budgets"
        if self.replaced_by is not None:
            (check,) = (c for c in self.checks if c.precision == self.replaced_by)
            return (
                f"uniform {self.replaced_by} meets the same budgets and was measured to be better "
                f"than the predicted optimum ({check.amounts}): it is the answer. The prediction "
                "fails here; search with --sensitivity measured"
            )
        unclear = [c.precision for c in self.checks if c.verdict is Verdict.UNCLEAR]
        better = len(self.checks) - len(unclear)
        of_uniform = "uniform precision" if better == 1 else "uniform precisions"
        parts = [f"measured better than {better} {of_uniform} within the budgets"] if better else []
        if unclear:
            parts.append(f"not distinguishable from {', '.join(unclear)}")
        return "; ".join(parts)

"""What is made small instead of the loss, and what may be lost for it."""

from dataclasses import dataclass
from math import inf
from typing import Final, Self, final

from mpq.errors import InputError

_WORDS: Final = {
    "max_loss": "the predicted loss is",
    "max_measured_loss": "the measured loss is",
    "max_accuracy_drop": "the accuracy drops by",
    "max_score_drop": "the score drops by",
}
"""Criteria, for people."""


@final
@dataclass(frozen=True)
class Objective:
    """A resource to minimise, and one criterion of what may be lost.

    Args:
        resource: Name of the resource that is minimised, such as ``latency``.
        max_loss: Largest predicted loss, in the estimate's unit; proved where it is additive.
        max_measured_loss: Largest loss measured on the held-out examples, in the metric's unit:
            bisection over 64 points of the frontier.
        max_accuracy_drop: The same with the accuracy: 0.01 is one point below the original.
        max_score_drop: The same with the task's own score: how much worse it may be.

    Raises:
        InputError: If there is not exactly one criterion, or it is no number of at least 0.
    """

    resource: str
    max_loss: float | None = None
    max_measured_loss: float | None = None
    max_accuracy_drop: float | None = None
    max_score_drop: float | None = None

    def __post_init__(self) -> None:
        given = [amount for _, amount in self._criteria]
        # Written so that nan, which no comparison holds for, is refused as well.
        if len(given) != 1 or not 0 <= given[0] < inf:
            raise InputError(
                "to minimize a resource, give one criterion of at least 0: max_loss (predicted), "
                "max_measured_loss, max_accuracy_drop or max_score_drop; got "
                f"{given or 'none'}"
            )

    @property
    def _criteria(self) -> list[tuple[str, float]]:
        """Those that are given, by name."""
        amounts = (
            self.max_loss, self.max_measured_loss, self.max_accuracy_drop, self.max_score_drop,
        )  # fmt: skip
        named = zip(_WORDS, amounts, strict=True)
        return [(name, amount) for name, amount in named if amount is not None]

    @property
    def call(self) -> str:
        """As Python makes it again."""
        ((name, amount),) = self._criteria
        return f'mpq.Objective("{self.resource}", {name}={amount!r})'

    @property
    def sentence(self) -> str:
        """For people.

        >>> Objective("weight_bytes", max_loss=0.1).sentence
        'weight bytes, where the predicted loss is at most 0.1'
        """
        ((name, amount),) = self._criteria
        return f"{self.resource.replace('_', ' ')}, where {_WORDS[name]} at most {amount:g}"

    @classmethod
    def of(
        cls,
        minimize: str | None,
        max_loss: float | None,
        max_measured_loss: float | None,
        max_accuracy_drop: float | None,
        max_score_drop: float | None = None,
    ) -> Self | None:
        """From options that may all be left out; ``None`` where the loss is what is made small.

        Raises:
            InputError: If there is a criterion and no resource, or the criteria do not fit.
        """
        if minimize is not None:
            return cls(minimize, max_loss, max_measured_loss, max_accuracy_drop, max_score_drop)
        criteria = (max_loss, max_measured_loss, max_accuracy_drop, max_score_drop)
        if any(c is not None for c in criteria):
            raise InputError("a limit on the loss needs minimize: the resource to be made small")
        return None

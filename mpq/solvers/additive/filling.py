"""From the relaxation's choice to one within all budgets that leaves little of them unused."""

from dataclasses import dataclass, replace
from typing import Self, final

import numpy as np

from mpq._support.arrays import Array, Columns

_MAX_BATCHES = 300
"""Of either kind: a batch ends where one budget is full, and most of them at the very end are of
one row."""


@final
@dataclass(frozen=True, eq=False)
class _Choice:
    """Columns of rows, and what others of the same rows would change.

    Args:
        losses: ``[N, B]``, infinite where not allowed.
        costs: ``[R, N, B]``.
        prices: ``[R]`` multipliers, loss for a unit of cost.
        room: ``[R]`` what the rows may cost together.
        columns: ``[N]``.
    """

    losses: Array
    costs: Array
    prices: Array
    room: Array
    columns: Columns

    @property
    def _at(self) -> tuple[Columns, Columns]:
        return np.arange(len(self.columns)), self.columns

    @property
    def left(self) -> Array:
        """``[R]`` what of the room is unused; below 0 where it is overrun."""
        return np.asarray(self.room - self.costs[:, *self._at].sum(axis=1))

    @property
    def gains(self) -> Array:
        """``[N, B]`` what every column loses less than the row's."""
        return np.asarray(self.losses[self._at][:, None] - self.losses)

    @property
    def changes(self) -> Array:
        """``[R, N, B]`` what every column costs more than the row's."""
        return np.asarray(self.costs - self.costs[:, *self._at][:, :, None])

    def at_price(self, changes: Array) -> Array:
        """``[N, B]`` the worth of what columns cost more."""
        return np.asarray(np.tensordot(self.prices, changes, axes=1))

    def with_best(self, merit: Array, changes: Array, needed: Array) -> Self | None:
        """With the columns of most merit, one a row, in the order of their merit.

        Args:
            merit: ``[N, B]``, minus infinity for a column that is out of the question.
            changes: ``[R, N, B]``.
            needed: ``[R]`` how much less is to be used: with that the batch is complete.

        Returns:
            ``None`` if no column fits.
        """
        column = merit.argmax(axis=1)
        best = merit[np.arange(len(column)), column]
        rows = np.argsort(-best, kind="stable")
        rows = rows[np.isfinite(best[rows]) | (best[rows] > 0)]
        total = np.cumsum(changes[:, rows, column[rows]], axis=1)  # [R, K]
        left = self.left[:, None]
        # A budget that is overrun need not be met yet, and must not be overrun further.
        fits = (total <= np.maximum(left, 0.0)).all(axis=0)
        count = int(np.append(fits, False).argmin())
        is_needed = needed > 0
        is_enough = (total[is_needed] <= -needed[is_needed, None]).all(axis=0)
        if is_needed.any() and is_enough.any():
            count = min(count, int(is_enough.argmax()) + 1)
        if not count:
            return None
        columns = self.columns.copy()
        columns[rows[:count]] = column[rows[:count]]
        return replace(self, columns=columns)


def filled(
    losses: Array, costs: Array, prices: Array, room: Array, columns: Columns
) -> Columns | None:
    """A choice within the room, near the relaxation's: rows change in batches.

    First what is overrun is given back, at the least worth in reduced cost; then what is left is
    spent where it gains most for its worth (as Toyoda 1975, doi:10.1287/mnsc.21.12.1417, for
    several budgets; the prices of the relaxation take the place of his).

    Args:
        losses: ``[N, B]``, infinite where a column is not allowed.
        costs: ``[R, N, B]``.
        prices: ``[R]`` multipliers of the relaxation.
        room: ``[R]`` what the rows may cost together.
        columns: ``[N]`` the relaxation's choice.

    Returns:
        ``[N]``; ``None`` if no choice within the room was found.
    """
    choice = _Choice(losses, costs, prices, room, columns)
    for _ in range(_MAX_BATCHES):
        if (choice.left >= 0).all():
            return _spent(choice).columns
        given = _given_back(choice)
        if given is None:
            return None
        choice = given
    return None


def _given_back(choice: _Choice) -> _Choice | None:
    """One batch of columns that use less of what is overrun."""
    changes, over = choice.changes, np.maximum(-choice.left, 0.0)
    is_over = over > 0
    # Of each budget in units of what is too much; giving back more than that is worth nothing.
    relief = np.minimum(-changes[is_over] / over[is_over, None, None], 1.0).sum(axis=0)
    dearer = np.maximum(choice.at_price(changes) - choice.gains, 0.0)
    fits = (changes <= np.maximum(choice.left, 0.0)[:, None, None]).all(axis=0)
    helps = fits & (relief > 0) & np.isfinite(dearer)
    merit = np.where(helps, -dearer / np.where(helps, relief, 1.0), -np.inf)
    return choice.with_best(merit, changes, over)


def _spent(choice: _Choice) -> _Choice:
    """With batches of columns that lose less, until none fits."""
    for _ in range(_MAX_BATCHES):
        changes, gains = choice.changes, choice.gains
        fits = (gains > 0) & (changes <= choice.left[:, None, None]).all(axis=0)
        worth = choice.at_price(changes)
        is_priced = fits & (worth > 0)
        rate = np.where(is_priced, gains / np.where(is_priced, worth, 1.0), np.inf)
        more = choice.with_best(np.where(fits, rate, -np.inf), changes, np.zeros(len(choice.room)))
        if more is None:
            break
        choice = more
    return choice

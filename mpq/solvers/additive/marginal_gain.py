"""What the next more expensive precision of a layer gains per cost."""

from mpq._support.arrays import Columns
from mpq.solvers.additive.hull import Hull
from mpq.solvers.additive.presolve import Reduced


def _hull(reduced: Reduced) -> Hull:
    # A hull has one cost. In shares of what each budget leaves free, several can be added up.
    return Hull.of(reduced.rise, reduced.excess.sum(axis=0), reduced.usable)


def raised(reduced: Reduced) -> Columns:
    """``[G]`` from the cheapest cells on, the steps that still fit by falling gain per cost."""
    hull = _hull(reduced)
    columns, used = hull.start.copy(), reduced.used(hull.start)
    for row, column in zip(hull.row.tolist(), hull.column.tolist(), strict=True):
        # Against the held cell, not the hull's last vertex: a step that did not fit was left out.
        after = used + reduced.excess[:, row, column] - reduced.excess[:, row, columns[row]]
        if (after <= 1).all():
            columns[row], used = column, after
    return columns

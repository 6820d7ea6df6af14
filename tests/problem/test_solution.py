"""What a solver found, in numbers and in sentences."""

import numpy as np
import pytest

from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.problem import Problem
from mpq.problem.solution import Shortfall, Solution, Status, record
from mpq.quantization.precision import Precision


@pytest.mark.parametrize(
    ("limit", "smallest", "within", "step", "constant", "expected"),
    [
        (5, 8, None, "", 0, "m: limit 5 bytes, smallest reachable 8: 3 bytes too much"),
        (5, 8, 8, "s", 0, "m (at s): limit 5 bytes, smallest reachable 8: 3 bytes too much"),
        (5, 4, None, "", 0, "m: limit 5 bytes, smallest reachable 4: can be met alone"),
        (5, 5, None, "", 3, "m: limit 5 bytes, smallest reachable 5: can be met alone"),
        (
            5, 4, 7, "", 0,
            "m: limit 5 bytes, smallest reachable 4 (7 while the other budgets hold): "
            "2 bytes too much",
        ),
        (
            10, 12, None, "", 3,
            "m: limit 10 bytes, smallest reachable 12: 2 bytes too much; what is not in the layers "
            "takes 3 bytes at any precision",
        ),
        (10, 12, None, "", 2, "m: limit 10 bytes, smallest reachable 12: 2 bytes too much"),
        (
            10, 18, None, "", 12,
            "m: limit 10 bytes, smallest reachable 18: 8 bytes too much; what is not in the layers "
            "takes 12 bytes at any precision, more than the limit by itself",
        ),
        (
            10, 18, None, "", 10,
            "m: limit 10 bytes, smallest reachable 18: 8 bytes too much; what is not in the layers "
            "takes 10 bytes at any precision",
        ),
        (
            -4, -2, None, "", -3,
            "m: limit -4 bytes, smallest reachable -2: 2 bytes too much; what is not in the layers "
            "takes -3 bytes at any precision, more than the limit by itself",
        ),
        (10, 12, None, "", -3, "m: limit 10 bytes, smallest reachable 12: 2 bytes too much"),
        (
            1234567.8, 2345678.9, None, "", 0,
            "m: limit 1234568 bytes, smallest reachable 2345679: 1111111 bytes too much",
        ),
    ],
)  # fmt: skip
def test_a_shortfall_is_a_sentence(
    limit: float, smallest: float, within: float | None, step: str, constant: float, expected: str
) -> None:
    """How much is missing, and whether precisions can change it: from a fifth of the limit on."""
    assert str(Shortfall("m", "bytes", limit, smallest, within, step, constant)) == expected


def solution(
    loss: float = 4.0, bound: float | None = 3.0, columns: tuple[int, ...] | None = (0, 1)
) -> Solution:
    """Of two layers."""
    chosen = None if columns is None else np.array(columns)
    return Solution(Status.FEASIBLE, chosen, loss, bound, "toy", 0.5, why="asked for")


@pytest.mark.parametrize(
    ("loss", "bound", "gap"),
    [(4.0, 3.0, 0.25), (-4.0, -5.0, 0.25), (4.0, 4.1, 0.0), (0.0, -0.5, 0.5), (0.0, 0.0, 0.0),
     (4.0, None, None), (0.5, 0.25, 0.5)],
)  # fmt: skip
def test_the_gap_is_a_share_of_the_loss(
    loss: float, bound: float | None, gap: float | None
) -> None:
    """At least 0; of a loss of 0 it is the distance itself."""
    assert solution(loss, bound).gap == gap
    assert solution(loss, bound, None).gap is None


def test_reasons_name_the_conflict() -> None:
    """Of several budgets; a single one has said so already."""
    shortfalls = (Shortfall("m", "bytes", 5, 8, None), Shortfall("t", "seconds", 5, 4, None))
    told = f"{shortfalls[0]}; {shortfalls[1]}"

    def reasons(found: tuple[Shortfall, ...], conflict: tuple[str, ...]) -> str:
        return Solution(
            Status.INFEASIBLE, None, float("nan"), None, "toy", 0.0, found, conflict
        ).reasons

    assert reasons(shortfalls, ()) == told
    assert reasons(shortfalls, ("m",)) == told
    assert reasons(shortfalls, ("m", "t")) == f"{told}. m and t cannot be met together"
    assert reasons((), ()) == "no budget can be blamed"


def test_a_record_says_what_was_found_and_how() -> None:
    """What each budget uses, by the problem's own arithmetic."""
    precisions = tuple(map(Precision.parse, ("w4a8", "w8a8")))
    loss = CostTable("loss", "nats", ("a", "b"), precisions, np.array([[2.0, 1.0], [3.0, 2.0]]))
    size = CostTable("m", "bytes", ("a", "b"), precisions, np.array([[4.0, 8.0], [5.0, 10.0]]))
    posed = Problem(loss, Constraints((Budget.of(size, 15.0),)))

    found = record(posed, solution())

    assert found == {
        "status": "feasible", "solver": "toy", "why": "asked for", "predicted_loss_nats": 4.0,
        "bound_nats": 3.0, "gap": 0.25, "seconds": 0.5,
        "budgets": [{"resource": "m", "unit": "bytes", "limit": 15.0, "used": 14.0}],
        "precisions": {"a": "w4a8", "b": "w8a8"},
    }  # fmt: skip
    assert solution(columns=None).precisions(posed) == {}

"""The doubly nonnegative relaxation begun at the convex one."""

import numpy as np
import pytest

from mpq.problem.solution import Status
from mpq.solvers import BranchAndBound
from mpq.solvers.quadratic import branch_and_bound
from mpq.solvers.quadratic.convex_relaxation import relaxed
from mpq.solvers.quadratic.doubly_nonnegative import Lifting
from mpq.solvers.quadratic.moves import Quadratic
from mpq.solvers.quadratic.subproblem import Subproblem
from mpq.solvers.quadratic.warm_start import warmed
from tests.solvers.quadratic.cases import KINDS, of_kind, random_case


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_the_start_proves_what_the_convex_relaxation_does(kind: str, seed: int) -> None:
    """Before any iteration, in whatever unit."""
    quadratic = Quadratic.of(of_kind(random_case(seed, num_layers=6), kind).problem())
    relaxation, unit = relaxed(quadratic), 100.0

    start = warmed(Subproblem.of(quadratic, unit), quadratic, relaxation, unit)

    assert start.start is not None
    proved = Lifting.of(start).bounds(start.start.multiplier)
    assert unit * proved.whole == pytest.approx(relaxation.bound, rel=1e-5)
    assert np.linalg.matrix_rank(start.start.lifted) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_warm_proof_is_the_cold_one(
    kind: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few moves taken for many, among those that the convex relaxation leaves: the optimum."""
    monkeypatch.setattr(branch_and_bound, "_COLD_MOVES", 0)
    case = of_kind(random_case(seed, num_layers=6), kind)

    found = BranchAndBound().solve(case.problem())

    assert found.status is Status.OPTIMAL
    assert found.loss == pytest.approx(case.losses().min(), rel=1e-6)
    assert found.bound == pytest.approx(found.loss, rel=1e-6)

"""Exact solver: integer linear programming through PuLP."""

import time
from dataclasses import dataclass
from typing import ClassVar, final

from mpq.errors import SolverError
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.solvers._base import Solver
from mpq.solvers.additive.answers import check_effort, require_additive, solution_of
from mpq.solvers.additive.infeasibility import explained
from mpq.solvers.additive.lagrangian import Lagrangian
from mpq.solvers.additive.milp import Effort, solve_cells
from mpq.solvers.additive.pulp_backend import Way, chosen_backend


@final
@dataclass(frozen=True)
class IntegerLinearProgram(Solver):
    r"""Proves the best assignment: a multiple-choice knapsack with several budgets.

    .. math:: \min \sum_{\ell b} s_{\ell b} x_{\ell b} \quad\text{s.t.}\quad
        \sum_b x_{\ell b} = 1, \; \sum_{\ell b} c^r_{\ell b} x_{\ell b} \le C^r, \; x \in \{0, 1\}

    as in HAWQ-V3 (Yao et al. 2021, arXiv:2011.10680), with any number of budgets, ties and fixed
    layers, and with costs of pairs of layers (``mpq.solvers.additive.pair_variables``). Departs
    from it by beginning at the greedy answer, by scaling objective and rows before the solver sees
    them, and by checking the answer with the problem's own arithmetic: an answer that breaks a
    budget by less than the solver's tolerance is cut off, and the program solved again. What
    it proves is compared with what is known (``mpq.solvers.proofs``), and solved another way, at
    last by ``lagrangian``, where the two contradict each other.

    Args:
        backend: ``HiGHS``, ``CBC``, or ``auto``: HiGHS where it is installed, else CBC.
        time_limit_s: Wall time in seconds for each program, or ``None``.
        gap: Where to stop: the distance from the bound, as a share of what an assignment loses
            above the least that every layer can lose. 0: at the proved optimum.

    Raises:
        InputError: If the gap or the time limit makes no sense.
    """

    name: ClassVar[str] = "ilp"
    takes_interactions: ClassVar[bool] = False
    summary: ClassVar[str] = "exact, any number of budgets (PuLP with HiGHS, else CBC)"

    backend: str = "auto"
    time_limit_s: float | None = None
    gap: float = 0.0

    def __post_init__(self) -> None:
        check_effort(self.name, self.gap, self.time_limit_s)

    def solve(self, problem: Problem) -> Solution:
        """See ``Solver.solve``.

        Raises:
            InputError: If the problem has interactions; ``problem.additive()`` has none.
            MissingDependencyError: If the backend is not installed.
            SolverError: If the backend fails, or contradicts what is known in whatever way it is
                asked, and ``lagrangian`` too.
        """
        require_additive(problem, self.name)
        try:
            solution = self._solve(problem)
        except SolverError:
            # Arithmetic of our own, and integer programs over fewer cells; pairs it does not take.
            if len(problem.grouped.pairwise):
                raise
            return Lagrangian(self.gap, self.time_limit_s, self.backend).solve(problem)
        if solution.status is Status.INFEASIBLE:
            return explained(problem, solution, self._solve)
        return solution

    def _solve(self, problem: Problem) -> Solution:
        start = time.perf_counter()
        backend = chosen_backend(self.backend)
        effort = Effort(Way(backend), self.time_limit_s, self.gap)
        # Begins at the greedy choice, so that there is an answer, however short the time.
        answer = solve_cells(problem, problem.grouped.allowed, effort)
        return solution_of(problem, answer, f"ilp ({backend})", time.perf_counter() - start)

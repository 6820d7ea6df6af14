"""Problem -> Solution. Solvers see numbers only: no model, no file, no torch."""

from mpq.registry import Registry
from mpq.solvers._base import Solver
from mpq.solvers._measuring import MeasuringSolver
from mpq.solvers.auto import Auto
from mpq.solvers.bayesian import Bayesian
from mpq.solvers.bisection import Bisection
from mpq.solvers.branch_and_bound import BranchAndBound
from mpq.solvers.dynamic_programming import DynamicProgramming
from mpq.solvers.evolutionary import Evolutionary
from mpq.solvers.greedy import Greedy
from mpq.solvers.ilp import IntegerLinearProgram
from mpq.solvers.lagrangian import Lagrangian
from mpq.solvers.local_search import LocalSearch
from mpq.solvers.outer_approximation import OuterApproximation
from mpq.solvers.surrogate import Surrogate
from mpq.solvers.water_filling import WaterFilling

SOLVERS: Registry[Solver] = Registry(
    "solver",
    (
        Auto,
        Lagrangian,
        IntegerLinearProgram,
        DynamicProgramming,
        BranchAndBound,
        OuterApproximation,
        LocalSearch,
        Evolutionary,
        Bayesian,
        Surrogate,
        Greedy,
        WaterFilling,
        Bisection,
    ),
)
"""Every solver, by the name that ``--solver`` takes."""

__all__ = [
    "SOLVERS",
    "Auto",
    "Bayesian",
    "Bisection",
    "BranchAndBound",
    "DynamicProgramming",
    "Evolutionary",
    "Greedy",
    "IntegerLinearProgram",
    "Lagrangian",
    "LocalSearch",
    "MeasuringSolver",
    "OuterApproximation",
    "Solver",
    "Surrogate",
    "WaterFilling",
]

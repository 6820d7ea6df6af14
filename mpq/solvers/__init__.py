"""Problem -> Solution. Solvers see numbers only: no model, no file, no torch."""

from mpq._support.registry import Registry
from mpq.solvers._base import Solver
from mpq.solvers.additive.dynamic_programming import DynamicProgramming
from mpq.solvers.additive.ilp import IntegerLinearProgram
from mpq.solvers.additive.lagrangian import Lagrangian
from mpq.solvers.auto import Auto
from mpq.solvers.baselines.bisection import Bisection
from mpq.solvers.baselines.greedy import Greedy
from mpq.solvers.baselines.ordered import Ordered
from mpq.solvers.baselines.threshold import Threshold
from mpq.solvers.baselines.water_filling import WaterFilling
from mpq.solvers.black_box._base import MeasuringSolver
from mpq.solvers.black_box.bayesian import Bayesian
from mpq.solvers.black_box.boosted_trees import BoostedTrees
from mpq.solvers.black_box.evolutionary import Evolutionary
from mpq.solvers.black_box.level_switch import LevelSwitch
from mpq.solvers.black_box.measured_greedy import MeasuredGreedy
from mpq.solvers.black_box.surrogate import Surrogate
from mpq.solvers.black_box.swept_budgets import SweptBudgets
from mpq.solvers.quadratic.branch_and_bound import BranchAndBound
from mpq.solvers.quadratic.local_search import LocalSearch
from mpq.solvers.quadratic.outer_approximation import OuterApproximation

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
        LevelSwitch,
        BoostedTrees,
        MeasuredGreedy,
        SweptBudgets,
        Greedy,
        WaterFilling,
        Bisection,
        Ordered,
        Threshold,
    ),
    group="mpq.solvers",
)
"""Every solver, by the name that ``--solver`` takes."""

__all__ = [
    "SOLVERS",
    "Auto",
    "Bayesian",
    "Bisection",
    "BoostedTrees",
    "BranchAndBound",
    "DynamicProgramming",
    "Evolutionary",
    "Greedy",
    "IntegerLinearProgram",
    "Lagrangian",
    "LevelSwitch",
    "LocalSearch",
    "MeasuredGreedy",
    "MeasuringSolver",
    "Ordered",
    "OuterApproximation",
    "Solver",
    "Surrogate",
    "SweptBudgets",
    "Threshold",
    "WaterFilling",
]

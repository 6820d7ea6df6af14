"""Problem -> Solution. Solvers see numbers only: no model, no file, no torch."""

from mpq.registry import Registry
from mpq.solvers._base import Solver
from mpq.solvers.auto import Auto
from mpq.solvers.evolutionary import Evolutionary
from mpq.solvers.ilp import IntegerLinearProgram
from mpq.solvers.lagrangian import Lagrangian
from mpq.solvers.local_search import LocalSearch

SOLVERS: Registry[Solver] = Registry(
    "solver",
    (
        Auto,
        Lagrangian,
        IntegerLinearProgram,
        LocalSearch,
        Evolutionary,
    ),
)
"""Every solver, by the name that ``--solver`` takes."""

__all__ = [
    "SOLVERS",
    "Auto",
    "Evolutionary",
    "IntegerLinearProgram",
    "Lagrangian",
    "LocalSearch",
    "Solver",
]

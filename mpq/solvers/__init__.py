"""Problem -> Solution. Solvers see numbers only: no model, no file, no torch."""

from mpq.registry import Registry
from mpq.solvers._base import Solver
from mpq.solvers.evolutionary import Evolutionary
from mpq.solvers.ilp import IntegerLinearProgram

SOLVERS: Registry[Solver] = Registry(
    "solver",
    (
        IntegerLinearProgram,
        Evolutionary,
    ),
)
"""Every solver, by the name that ``--solver`` takes."""

__all__ = ["SOLVERS", "Evolutionary", "IntegerLinearProgram", "Solver"]

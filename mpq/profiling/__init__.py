"""A network and this machine -> how long every layer takes in every format that runs here."""

from mpq.profiling.correction import Agreement, Correction
from mpq.profiling.measuring import profile
from mpq.profiling.runtime import Program, Runtime
from mpq.profiling.runtimes import RUNTIMES
from mpq.profiling.timer import Timer

__all__ = ["RUNTIMES", "Agreement", "Correction", "Program", "Runtime", "Timer", "profile"]

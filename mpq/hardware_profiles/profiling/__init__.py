"""A network and this machine -> how long every layer takes in every format that runs here."""

from mpq.hardware_profiles.profiling._base import Program, Runtime
from mpq.hardware_profiles.profiling.compiled_network import CompiledNetwork
from mpq.hardware_profiles.profiling.correction import Correction, TimeErrors
from mpq.hardware_profiles.profiling.profile import Profiling
from mpq.hardware_profiles.profiling.runtimes import RUNTIMES
from mpq.hardware_profiles.profiling.timer import Timer

__all__ = [
    "RUNTIMES",
    "CompiledNetwork",
    "Correction",
    "Profiling",
    "Program",
    "Runtime",
    "TimeErrors",
    "Timer",
]

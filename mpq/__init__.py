"""Mixed-precision quantization search: a bit width for every layer, within a device's budget.

    task = mpq.Task(model, calibration, device="cortex-m7")
    result = mpq.search(task, {"weight_bytes": "300KiB", "latency": 2.5e-3})

Names are loaded when first used, so that importing the package is quick. What only plug-ins need
(base classes, layers, budgets) is in the sub-packages, and every error in ``mpq.errors``.
"""

import gc
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpq.backends import BACKENDS as BACKENDS
    from mpq.backends import export as export
    from mpq.backends import quantize as quantize
    from mpq.errors import InfeasibleError as InfeasibleError
    from mpq.errors import InputError as InputError
    from mpq.errors import MpqError as MpqError
    from mpq.errors import SolverError as SolverError
    from mpq.hardware_profiles import Profile as Profile
    from mpq.hardware_profiles import device_names as device_names
    from mpq.hardware_profiles import load_device as load_device
    from mpq.hardware_profiles.profiling import RUNTIMES as RUNTIMES
    from mpq.network.examples import Calibration as Calibration
    from mpq.network.metrics import METRICS as METRICS
    from mpq.network.network import find_layers as find_layers
    from mpq.network.synthetic import DATA_SOURCES as DATA_SOURCES
    from mpq.network.workload import Workload as Workload
    from mpq.problem.assignment import Assignment as Assignment
    from mpq.problem.cost_table import CostTable as CostTable
    from mpq.problem.limits import Limit as Limit
    from mpq.problem.problem import Problem as Problem
    from mpq.problem.solution import Solution as Solution
    from mpq.quantization.kv_cache import KVCache as KVCache
    from mpq.quantization.precision import Precision as Precision
    from mpq.quantization.ranges import Ranges as Ranges
    from mpq.report.frontier import Frontier as Frontier
    from mpq.rounding import ROUNDINGS as ROUNDINGS
    from mpq.sensitivity import ESTIMATORS as ESTIMATORS
    from mpq.solvers import SOLVERS as SOLVERS
    from mpq.transforms import TRANSFORMS as TRANSFORMS
    from mpq.tuning import TUNINGS as TUNINGS
    from mpq.workflows.compare import compare as compare
    from mpq.workflows.evaluate import evaluate as evaluate
    from mpq.workflows.frontier import frontier as frontier
    from mpq.workflows.load import load as load
    from mpq.workflows.objective import Objective as Objective
    from mpq.workflows.profile import profile as profile
    from mpq.workflows.result import SearchResult as SearchResult
    from mpq.workflows.rules import Rules as Rules
    from mpq.workflows.search import search as search
    from mpq.workflows.session import Session as Session
    from mpq.workflows.task import Task as Task
    from mpq.workflows.tune import tune as tune

_MODULES: dict[str, tuple[str, ...]] = {
    "errors": ("InfeasibleError", "InputError", "MpqError", "SolverError"),
    "network.examples": ("Calibration",),
    "network.network": ("find_layers",),
    "network.metrics": ("METRICS",),
    "network.synthetic": ("DATA_SOURCES",),
    "network.workload": ("Workload",),
    "quantization.kv_cache": ("KVCache",),
    "quantization.precision": ("Precision",),
    "quantization.ranges": ("Ranges",),
    "problem.assignment": ("Assignment",),
    "problem.cost_table": ("CostTable",),
    "problem.limits": ("Limit",),
    "problem.problem": ("Problem",),
    "problem.solution": ("Solution",),
    "rounding": ("ROUNDINGS",),
    "sensitivity": ("ESTIMATORS",),
    "solvers": ("SOLVERS",),
    "transforms": ("TRANSFORMS",),
    "tuning": ("TUNINGS",),
    "backends": ("BACKENDS", "export", "quantize"),
    "report.frontier": ("Frontier",),
    "hardware_profiles": ("Profile", "device_names", "load_device"),
    "hardware_profiles.profiling": ("RUNTIMES",),
    "workflows.rules": ("Rules",),
    "workflows.task": ("Task",),
    "workflows.objective": ("Objective",),
    "workflows.result": ("SearchResult",),
    "workflows.session": ("Session",),
    "workflows.load": ("load",),
    "workflows.search": ("search",),
    "workflows.frontier": ("frontier",),
    "workflows.compare": ("compare",),
    "workflows.evaluate": ("evaluate",),
    "workflows.tune": ("tune",),
    "workflows.profile": ("profile",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*sorted(_HOME)]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mpq")
    if name not in _HOME:
        raise AttributeError(f"module 'mpq' has no attribute {name!r}")
    return getattr(_imported(f"mpq.{_HOME[name]}"), name)


def _imported(name: str) -> ModuleType:
    # Modules stay: to look for garbage among what they make is a sixth of the time they take.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        if was_enabled:
            gc.enable()

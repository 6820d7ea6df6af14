"""Mixed-precision quantization search: a bit width for every layer, within a device's budget.

    result = mpq.search(model, calibration, limits=["weight_bytes=300KiB"])

Names are loaded when first used, so that importing the package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpq.assignment import Assignment
    from mpq.backends import apply
    from mpq.budget import Budget
    from mpq.calibration import Batch, Calibration
    from mpq.comparing import compare
    from mpq.comparison import EstimatorComparison
    from mpq.cost_table import CostTable
    from mpq.errors import InfeasibleError, InputError, MpqError
    from mpq.evaluation import Measurement, evaluate
    from mpq.frontier import Frontier, FrontierPoint
    from mpq.hardware_profiles import Profile, device_names, load_device
    from mpq.interactions import Interactions
    from mpq.layer import Layer
    from mpq.model import Network, find_layers
    from mpq.precision import Precision
    from mpq.problem import Problem
    from mpq.result import SearchResult
    from mpq.searching import search
    from mpq.sensitivity import ESTIMATORS
    from mpq.solution import Solution, Status
    from mpq.solvers import SOLVERS

_HOME = {
    "Assignment": "assignment",
    "apply": "backends",
    "Budget": "budget",
    "Batch": "calibration",
    "Calibration": "calibration",
    "EstimatorComparison": "comparison",
    "compare": "comparing",
    "CostTable": "cost_table",
    "InfeasibleError": "errors",
    "InputError": "errors",
    "MpqError": "errors",
    "Measurement": "evaluation",
    "evaluate": "evaluation",
    "Frontier": "frontier",
    "FrontierPoint": "frontier",
    "Profile": "hardware_profiles",
    "device_names": "hardware_profiles",
    "load_device": "hardware_profiles",
    "Interactions": "interactions",
    "Layer": "layer",
    "Network": "model",
    "find_layers": "model",
    "Precision": "precision",
    "Problem": "problem",
    "SearchResult": "result",
    "search": "searching",
    "ESTIMATORS": "sensitivity",
    "Solution": "solution",
    "Status": "solution",
    "SOLVERS": "solvers",
}

__all__ = [
    "ESTIMATORS",
    "SOLVERS",
    "Assignment",
    "Batch",
    "Budget",
    "Calibration",
    "CostTable",
    "EstimatorComparison",
    "Frontier",
    "FrontierPoint",
    "InfeasibleError",
    "InputError",
    "Interactions",
    "Layer",
    "Measurement",
    "MpqError",
    "Network",
    "Precision",
    "Problem",
    "Profile",
    "SearchResult",
    "Solution",
    "Status",
    "apply",
    "compare",
    "device_names",
    "evaluate",
    "find_layers",
    "load_device",
    "search",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mpq")
    if name not in _HOME:
        raise AttributeError(f"module 'mpq' has no attribute {name!r}")
    return getattr(import_module(f"mpq.{_HOME[name]}"), name)

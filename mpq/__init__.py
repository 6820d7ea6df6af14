"""Mixed-precision quantization search: a bit width for every layer, within a device's budget.

    result = mpq.search(model, calibration, limits=["weight_bytes=300KiB"])

Names are loaded when first used, so that importing the package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpq.backends import apply
    from mpq.errors import InfeasibleError, InputError, MpqError
    from mpq.hardware_profiles import Profile, device_names, load_device
    from mpq.network.examples import Batch, Calibration
    from mpq.network.layer import Layer
    from mpq.network.network import Network, find_layers
    from mpq.problem.assignment import Assignment
    from mpq.problem.budget import Budget
    from mpq.problem.cost_table import CostTable
    from mpq.problem.problem import Problem
    from mpq.problem.solution import Solution, Status
    from mpq.quantization.precision import Precision
    from mpq.report.estimators import EstimatorComparison
    from mpq.report.frontier import Frontier
    from mpq.report.measurement import Measurement
    from mpq.sensitivity import ESTIMATORS
    from mpq.solvers import SOLVERS
    from mpq.workflows.compare import compare
    from mpq.workflows.evaluate import evaluate
    from mpq.workflows.load import load
    from mpq.workflows.result import SearchResult
    from mpq.workflows.search import search
    from mpq.workflows.session import Session

_HOME = {
    "Assignment": "problem.assignment",
    "apply": "backends",
    "Budget": "problem.budget",
    "Batch": "network.examples",
    "Calibration": "network.examples",
    "EstimatorComparison": "report.estimators",
    "compare": "workflows.compare",
    "CostTable": "problem.cost_table",
    "InfeasibleError": "errors",
    "InputError": "errors",
    "MpqError": "errors",
    "Measurement": "report.measurement",
    "evaluate": "workflows.evaluate",
    "Frontier": "report.frontier",
    "Profile": "hardware_profiles",
    "device_names": "hardware_profiles",
    "load_device": "hardware_profiles",
    "Layer": "network.layer",
    "Network": "network.network",
    "find_layers": "network.network",
    "Precision": "quantization.precision",
    "Problem": "problem.problem",
    "SearchResult": "workflows.result",
    "search": "workflows.search",
    "Session": "workflows.session",
    "load": "workflows.load",
    "ESTIMATORS": "sensitivity",
    "Solution": "problem.solution",
    "Status": "problem.solution",
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
    "InfeasibleError",
    "InputError",
    "Layer",
    "Measurement",
    "MpqError",
    "Network",
    "Precision",
    "Problem",
    "Profile",
    "SearchResult",
    "Session",
    "Solution",
    "Status",
    "apply",
    "compare",
    "device_names",
    "evaluate",
    "find_layers",
    "load",
    "load_device",
    "search",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mpq")
    if name not in _HOME:
        raise AttributeError(f"module 'mpq' has no attribute {name!r}")
    return getattr(import_module(f"mpq.{_HOME[name]}"), name)

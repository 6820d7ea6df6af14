"""Model + data -> loss of every layer at every precision."""

from mpq.registry import Registry
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.hessian_trace import HessianTrace
from mpq.sensitivity.measured_kl import MeasuredKL
from mpq.sensitivity.output_sketch import OutputSketch
from mpq.sensitivity.weight_error import WeightError

ESTIMATORS: Registry[SensitivityEstimator] = Registry(
    "sensitivity estimator",
    (
        OutputSketch,
        MeasuredKL,
        HessianTrace,
        WeightError,
    ),
)
"""Every estimator, by the name that ``--sensitivity`` takes."""

__all__ = [
    "ESTIMATORS",
    "HessianTrace",
    "MeasuredKL",
    "OutputSketch",
    "Sensitivity",
    "SensitivityEstimator",
    "WeightError",
]

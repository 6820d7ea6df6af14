"""In: a network, examples, candidates (``Estimation``). Out: the loss of every layer at each.

Every estimator is one file here; what several of them compute lies in ``passes`` and ``curvature``.
"""

from mpq._support.registry import Registry
from mpq.sensitivity._base import (
    DivisibleEstimator,
    RefinableEstimator,
    Sensitivity,
    SensitivityEstimator,
)
from mpq.sensitivity.augmented_hessian import AugmentedHessian
from mpq.sensitivity.auto import AutoEstimator
from mpq.sensitivity.checked import CheckedCell, SpotCheck
from mpq.sensitivity.column_loss import ColumnLoss
from mpq.sensitivity.decoupled import Decoupled
from mpq.sensitivity.entropy import ActivationEntropy, HistogramKL
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.first_order import FirstOrder
from mpq.sensitivity.fisher import DiagonalFisher
from mpq.sensitivity.hessian_eigenvalue import HessianEigenvalue
from mpq.sensitivity.hessian_form import HessianForm
from mpq.sensitivity.hessian_trace import HessianTrace
from mpq.sensitivity.layer_input_modification import LayerInputModification
from mpq.sensitivity.layer_output import LayerOutput
from mpq.sensitivity.measured import Measured
from mpq.sensitivity.orthogonality import Orthogonality
from mpq.sensitivity.output_gradient import OutputGradient
from mpq.sensitivity.output_sketch import OutputSketch
from mpq.sensitivity.pairwise import Pairwise
from mpq.sensitivity.relevance import Relevance
from mpq.sensitivity.weight_error import WeightError
from mpq.sensitivity.z_score import ZScore
from mpq.sensitivity.zero_cost import ZeroCost

ESTIMATORS: Registry[SensitivityEstimator] = Registry(
    "sensitivity estimator",
    (
        AutoEstimator,
        OutputSketch,
        Measured,
        HessianTrace,
        Relevance,
        ActivationEntropy,
        AugmentedHessian,
        ColumnLoss,
        Decoupled,
        DiagonalFisher,
        FirstOrder,
        HessianEigenvalue,
        HessianForm,
        HistogramKL,
        LayerInputModification,
        LayerOutput,
        Orthogonality,
        OutputGradient,
        Pairwise,
        ZScore,
        ZeroCost,
        WeightError,
    ),
    group="mpq.estimators",
)
"""Every estimator, by the name that ``--sensitivity`` takes."""

__all__ = [
    "ESTIMATORS",
    "ActivationEntropy",
    "AugmentedHessian",
    "AutoEstimator",
    "CheckedCell",
    "ColumnLoss",
    "Decoupled",
    "DiagonalFisher",
    "DivisibleEstimator",
    "Estimation",
    "FirstOrder",
    "HessianEigenvalue",
    "HessianForm",
    "HessianTrace",
    "HistogramKL",
    "LayerInputModification",
    "LayerOutput",
    "Measured",
    "Orthogonality",
    "OutputGradient",
    "OutputSketch",
    "Pairwise",
    "RefinableEstimator",
    "Relevance",
    "Sensitivity",
    "SensitivityEstimator",
    "SpotCheck",
    "WeightError",
    "ZScore",
    "ZeroCost",
]

"""Which estimators differentiate: all but those that are named."""

from mpq import ESTIMATORS

WITHOUT_GRADIENTS = (
    "activation-entropy",
    "column-loss",
    "decoupled",
    "histogram-kl",
    "layer-input-modification",
    "layer-output",
    "measured",
    "orthogonality",
    "pairwise",
    "weight-error",
    "z-score",
    "zero-cost:proxy=l2-norm",
)
# Everything else that is registered, so that a new estimator is tested here unless it says why not.
DIFFERENTIATING = (
    *(name for name in ESTIMATORS.names() if name not in (*WITHOUT_GRADIENTS, "auto")),
    "hessian-trace:matrix=hessian",
    *(f"zero-cost:proxy={x}" for x in ("synflow", "fisher", "grasp", "grad-norm", "plain")),
    "zero-cost:formula=sum(abs(g)+h*square(a*w))",
)

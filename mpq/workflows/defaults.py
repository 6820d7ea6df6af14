"""What the verbs do where nothing else is said; the command line reads it without torch."""

from typing import Final

ESTIMATOR: Final = "auto"
"""Estimator of ``search`` and ``frontier``."""
SOLVER: Final = "auto"
"""Solver of ``search``, ``frontier`` and ``compare``."""
ESTIMATORS_COMPARED: Final = (
    "sketch",
    "sketch:interactions=false",
    "hessian-trace",
    "fisher",
    "output-gradient",
    "measured",
    "layer-output",
    "weight-error",
)
"""What ``compare`` compares."""
TUNING: Final = "scales"
"""What ``tune`` tunes."""
NUM_RANDOM: Final = 100
"""Random assignments near each limit of ``compare``: Spearman's rho is then known to 0.1 or so."""
MAX_COMPARED_LOSS: Final = 0.5
"""Loss above which networks are broken, so that their order says nothing of an estimator."""
NUM_GENERATIONS: Final = 40
"""Generations of ``evolve_proxy``."""
NUM_PROXIES: Final = 40
"""Formulas in each of them."""
NUM_POINTS: Final = 20
"""Limits that a frontier is solved for."""
RUNTIME: Final = "onnxruntime"
"""Runtime that ``profile`` measures."""
NUM_NETWORKS: Final = 24
"""Networks at mixed precisions that ``profile`` runs end to end."""
ROUNDS: Final = 60
"""How often ``profile`` runs everything."""
MAX_INTERVAL: Final = 0.1
"""Half width of a 95 % interval that ``profile`` accepts, relative to the median."""

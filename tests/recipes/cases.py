"""What the contract of recipes runs each with: limits of the demo, and what makes it quick."""

from collections.abc import Mapping
from typing import Final

TRACE: Final = "matrix=hessian,loss=cross-entropy"
DEMO_DATA: Final = ("--data", "mpq.demo:calibration")
QUICK: Final[Mapping[str, tuple[str, ...]]] = {
    "hawq": ("--sensitivity", "hessian-eigenvalue:max_iterations=2,inputs=false"),
    "hawq-v2": ("--sensitivity", f"hessian-trace:num_probes=2,{TRACE}"),
    "hawq-v3": ("--sensitivity", f"hessian-trace:num_probes=2,{TRACE},inputs=false"),
    "zeroq": DEMO_DATA,
    "calibtip": ("--rounding", "nearest", "--precisions", "w4a4,w8a8"),
    "ohq": DEMO_DATA,
    "layer-wise-quantization": ("--precisions", "w2a8,w8a8"),
    "evopress": (
        *("--solver", "level-switch:is_measured=true,num_trials=4", "--rounding", "nearest"),
        *("--precisions", "w4a8,w8a8"),
    ),
    "amq": (
        "--solver",
        "surrogate:is_measured=true,num_trials=4",
        "--precisions",
        "w4a8,w8a8",
    ),
    "quantune": (
        *("--solver", "boosted-trees:is_measured=true,num_trials=4"),
        *("--precisions", "w4a8,w4tza8,w8a8"),
    ),
    "simq-nas": (
        *("--solver", "surrogate:is_measured=true,num_trials=4"),
        *("--precisions", "w4a8,w8a8"),
    ),
    "apq": ("--solver", "surrogate:is_measured=true,num_trials=4", "--precisions", "w4a8,w8a8"),
}
"""Recipe to words of ``mpq search`` that it takes in tests besides; every recipe is here."""

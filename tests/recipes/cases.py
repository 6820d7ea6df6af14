"""What the contract of recipes runs each with: limits of the demo, and what makes it quick."""

from collections.abc import Mapping
from typing import Final

TRACE: Final = "matrix=hessian,loss=cross-entropy"
DEMO_DATA: Final = ("--data", "mpq.demo:calibration")
DEMO: Final = (
    *("--limit", "bit_operations=0.6x:w8a8"),
    *("--include", "stem.conv", "--include", "blocks.0.*", "--include", "head"),
)
"""Layers of the demo that are searched, so that a test takes a second, and a limit."""
SMALL_LLAMA: Final = (
    *("--model", "tests.recipes.small_llama:model", "--data", "tests.recipes.small_llama:data"),
    *("--eval-data", "tests.recipes.small_llama:data", "--kv-tokens", "100"),
    *("--limit", "kv_cache_bytes=3.5KB"),
)
NETWORKS: Final[Mapping[str, tuple[str, ...]]] = {"kvquant": SMALL_LLAMA}
"""Recipe to words that name what it is searched on; others have the demo."""
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
    "gradient-ptq": ("--rounding", "nearest", "--precisions", "w4a8,w8a8"),
    "pd-quant": (
        *("--rounding", "nearest", "--precisions", "w4a4,w8a8"),
        *("--activation-range", "minmax"),
    ),
    "lrp-qvit": ("--transform", "smooth", "--precisions", "w4a8,w8a8"),
    "adapt": ("--precisions", "w4a8,w8a8"),
    **dict.fromkeys(
        ("mixdq", "vidit-q"),
        (
            *("--sensitivity", "decoupled:groups=head=cosine;*=decibels", "--transform", "smooth"),
            *("--solver", "swept-budgets:groups=head;*,num_ratios=2,is_measured=true"),
            *("--precisions", "w4a8,w8a8"),
        ),
    ),
    "augmenting-hessians": (
        *("--sensitivity", "augmented-hessian:num_probes=1"),
        *("--precisions", "w4a8,w8a8"),
    ),
    "mptq-vit": (
        *("--solver", "measured-greedy:is_measured=true,num_trials=6", "--transform", "smooth"),
        *("--precisions", "w4a4,w8a8"),
    ),
    "pb-llm": ("--rounding", "nearest", "--precisions", "wbinary+s5%a8,wbinary+s20%a8,w8a8"),
    "ptq1.61": ("--rounding", "nearest", "--precisions", "wbinarya8,w4a8,w8a8"),
    "squeezellm": ("--rounding", "nearest", "--precisions", "w2a8,w4a8"),
    "spqr": ("--rounding", "nearest", "--precisions", "w2a8,w4a8"),
    "baq": (
        *("--rounding", "nearest", "--precisions", "w2a8,w8a8"),
        *("--split", "columns:4"),
    ),
    "fast-2-bit": ("--rounding", "nearest", "--precisions", "w2zg16a8,w8zg16a8"),
    "mixllm": ("--precisions", "w4a8,w8a8", "--split", "channels:4"),
    "lq-lora": ("--rounding", "nearest", "--precisions", "w2g4a8,w8g4a8"),
    "kvquant": (),
    "q-vlm": (),
    "gwq": ("--rounding", "nearest", "--precisions", "w2a8,w4a8"),
    "comet": ("--split", "activations:4", "--precisions", "w8a4dg4,w8a8dg4"),
    "quantmcu": (),
}
"""Recipe to words of ``mpq search`` that it takes in tests besides; every recipe is here."""

"""What the contract of recipes runs each on, and what little of some it replaces."""

from collections.abc import Mapping
from typing import Final

LAYERS: Final = ("--include", "stem.conv", "--include", "blocks.0.*", "--include", "head")
"""Of the demo, that are searched, so that a test takes a second."""
DEMO: Final = ("--limit", "bit_operations=0.6x:w8a8", *LAYERS)
AMPLE: Final = ("--limit", "weight_bytes=2x:w8a8", *LAYERS)
"""For candidates that are all dearer than the limit of others."""
DEMO_DATA: Final = ("--data", "mpq.demo:calibration")
SMALL_LLAMA: Final = (
    *("--model", "tests.recipes.small_llama:model", "--data", "tests.recipes.small_llama:data"),
    *("--eval-data", "tests.recipes.small_llama:data", "--kv-tokens", "100"),
    *("--limit", "kv_cache_bytes=3.5KB"),
)
NETWORKS: Final[Mapping[str, tuple[str, ...]]] = {
    "kvquant": SMALL_LLAMA,
    "squeezellm": ("--limit", "effective_bits=5", *LAYERS),
    # Its blocks of inputs are of 128, and layers of 144 alone are divided.
    "comet": ("--limit", "bit_operations=0.45x:w8a8", "--include", "blocks.5.project.*"),
    **dict.fromkeys(("quantune", "simq-nas", "lq-lora"), AMPLE),
}
"""Recipe to words that name what it is searched on, and a limit; others have ``DEMO``."""
DISTILLED: Final = "distilling its examples takes 20 s"
PROBES: Final = "50 probes of the Hessian are most of its 3 s"
NAMED: Final = "its groups go by names of layers that the demo does not have"
REPLACED: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "zeroq": (DISTILLED, DEMO_DATA),
    "ohq": (DISTILLED, DEMO_DATA),
    "quantune": (
        "its trials, as many as all others have, take 5 s",
        ("--solver", "boosted-trees:is_measured=true,num_trials=4"),
    ),
    "hawq-v2": (
        PROBES,
        ("--sensitivity", "hessian-trace:num_probes=2,matrix=hessian,loss=cross-entropy"),
    ),
    "augmenting-hessians": (
        PROBES,
        (
            "--sensitivity",
            "augmented-hessian:num_probes=1,matrix=hessian,loss=cross-entropy",
        ),
    ),
    "mixdq": (
        NAMED,
        (
            *("--sensitivity", "decoupled:groups=head=cosine;*=decibels"),
            "--solver",
            "swept-budgets:groups=head;*,low=0.46,high=1.36,num_ratios=10,keep=0.01,is_measured=true",
        ),
    ),
    "vidit-q": (
        NAMED,
        (
            *("--sensitivity", "decoupled:groups=head=cosine;stem*=psnr;*=decibels"),
            "--solver",
            "swept-budgets:groups=head;stem*;*,low=0.5,high=1.5,num_ratios=5,is_measured=true",
        ),
    ),
    "lq-lora": (
        "a product of rank 64 is more than layers of the demo have",
        ("--precisions", ",".join(f"wnf{b}g{g}sdq+r4a16" for b in (3, 4) for g in (16, 32, 64))),
    ),
}
"""Recipe to why it takes some words of ``mpq search`` besides, and these; others run as they are.

A part that a test replaces is one that no test has run: candidates of two recipes crashed in the
estimator of their own, while here they had cheaper ones.
"""

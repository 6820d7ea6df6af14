"""KVQuant: keys before their rotation by channel, values by token, the first token kept."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

KVQUANT: Final = Recipe(
    name="kvquant",
    version=1,
    summary="key-value cache: unrotated keys by channel, values by token, the first token kept",
    paper=Paper(
        "Hooper et al.",
        2024,
        "KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache Quantization",
        "2401.18079",
    ),
    formula="min over bits of keys and of values of sum_i F_ii (Q(a_i) - a_i)^2",
    sensitivity="fisher:labels=targets",
    solver="ilp",
    candidates=("fp32",),
    constraint="kv_cache_bytes",
    tie=("*k_cache", "*v_cache"),
    allow=(
        ("*k_cache", ("w32a4c", "w32a3c", "w32a2c")),
        ("*v_cache", ("w32a4d", "w32a3d", "w32a2d")),
    ),
    kv_cache=("w32a4c", "w32a3c", "w32a2c", "w32a4d", "w32a3d", "w32a2d"),
    kv_first=1,
    kv_before_rotation=True,
    choices=(
        Choice("estimator", "Fisher information x squared error", "the paper, on sensitivity"),
        Choice("labels", "those of the data; drawn ones: --sensitivity fisher", NOT_STATED),
        Choice("candidates", "weights as they came; keys and values of 4, 3 or 2 bits",
               "the paper, on the experiments"),
        Choice("keys", "before their rotation, a calibrated scale for every channel",
               "the paper, on per-channel and pre-RoPE keys"),
        Choice("values", "a scale for every token, found when it comes",
               "the paper, on per-token values"),
        Choice("first token", "kept as it came", "the paper, on attention sinks"),
        Choice("ranges", "from the least to the largest", NOT_STATED),
        Choice("solver", "one precision for all keys and one for all values, by an integer "
               "program", NOT_STATED),
    ),
    departures=(
        "Codes are evenly spaced, with a zero point; the paper's are spaced by weighted k-means.",
        "Q-Norm, which normalizes the centroids of such codes so that means and deviations stay, "
        "is not there: evenly spaced codes have no centroids.",
        "No outliers of a key or a value are kept apart, where the paper keeps 1 %.",
        "A token has a scale for every head.",
        "Keys and values may have different bits.",
    ),
)  # fmt: skip

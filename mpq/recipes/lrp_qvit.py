"""LRP-QViT: layers by their relevance for the answer, and more bits for those of higher rank."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

LRP_QVIT: Final = Recipe(
    name="lrp-qvit",
    version=1,
    summary="relevance propagated from the answer, more bits to more of it, inputs clipped",
    paper=Paper(
        "Ranjan and Savakis",
        2024,
        "LRP-QViT: Mixed-Precision Vision Transformer Quantization via Layer-wise Relevance "
        "Propagation",
        "2401.11243",
    ),
    formula="more bits to a larger mean_x sum_i |R_i| of a layer; the least weighted error so",
    sensitivity="relevance:rule=lrp",
    solver="ordered",
    candidates=tuple(f"w{bits}a{bits}" for bits in (3, 4, 5, 6, 7, 8)),
    constraint="a mean number of bits, or model size: effective_bits, weight_bytes",
    activation_range="percentile",
    transforms=("smooth",),
    choices=(
        Choice("estimator", "a layer's contribution by layer-wise relevance propagation",
               "the abstract, on the contribution score"),
        Choice("solver", "bits by the rank of the contribution; of such answers the one of the "
               "least contribution x relative error", NOT_STATED),
        Choice("candidates", "3 to 8 bits, the same for weight and input", NOT_STATED),
        Choice("inputs behind a LayerNorm", "outliers clipped, channels brought together",
               "the abstract, on clipped channel-wise quantization"),
        Choice("how far they are clipped", "as the range method percentile does", NOT_STATED),
        Choice("weights", "symmetric, a scale per output channel, to nearest", NOT_STATED),
    ),
    departures=(
        "Rules of propagation are AttnLRP's.",
        "All inputs are clipped by one rule; factors of channels behind a LayerNorm go into the "
        "weights, where calibration examples say that it helps.",
        "Products of activations are rounded with --activations all only.",
    ),
)  # fmt: skip

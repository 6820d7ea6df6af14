"""MixDQ: content by structural similarity, quality in decibels, budgets whose ratio is swept."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

MIXDQ: Final = Recipe(
    name="mixdq",
    version=1,
    summary="two groups of layers by metrics of their own, swept budgets, all answers measured",
    paper=Paper(
        "Zhao et al.",
        2024,
        "MixDQ: Memory-Efficient Few-Step Text-to-Image Diffusion Models with Metric-Decoupled "
        "Mixed Precision Quantization",
        "2405.17873",
    ),
    formula="max over b of sum_l SSIM_l(b_l), and of sum_l SQNR_l(b_l) dB, mean bits at k : 1",
    sensitivity="decoupled:groups=*ff*|*attn2*=ssim;*=decibels",
    solver="swept-budgets:groups=*ff*|*attn2*;*,low=0.46,high=1.36,num_ratios=10,keep=0.01,"
    "is_measured=true",
    candidates=tuple(f"w{w}a{a}" for w in (2, 4, 8) for a in (8, 16)),
    constraint="a mean number of bits of weights: weight_bytes",
    choices=(
        Choice("estimator", "one layer quantized: SSIM of what makes the content, SQNR in "
               "decibels of all others", "the paper, on metric-decoupled sensitivity"),
        Choice("groups", "cross-attention and feed-forward layers make the content",
               "the published code"),
        Choice("solver", "an integer program for each group, the sum of the metric as it is",
               "the published code"),
        Choice("ratios", "of mean bits, ten from 0.46 to 1.36", "the published code"),
        Choice("choice among answers", "by your score of the images, or the metric",
               "the published code, which goes by metrics and by eye"),
        Choice("candidates", "weights of 2, 4 or 8 bits", "the published code"),
        Choice("inputs", "8 bits, but those of the most sensitive 1 % in 16",
               "the published code; its 4 bits are not taken"),
        Choice("weights", "symmetric, a scale per output channel, to nearest", NOT_STATED),
    ),
    departures=(
        "A cell quantizes weight and input together; the paper has a table and a program for each.",
        "All layers may take 2 bits; the paper's layers of quality have 4 or 8.",
        "SSIM and decibels are of what the network gives for an example, not of decoded images: a "
        "score of yours may decode them (--sensitivity decoupled:groups=PATTERNS=own).",
        "Groups go by names of layers, in patterns of diffusion networks; others need their own "
        "(--sensitivity and --solver, groups=PATTERNS).",
        "The first token of a text is quantized as all are.",
        "One limit is swept, and not ten below it as well.",
    ),
)  # fmt: skip

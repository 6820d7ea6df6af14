"""ViDiT-Q: layers of a diffusion transformer by kind, each kind by a metric of its own."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

VIDIT_Q: Final = Recipe(
    name="vidit-q",
    version=1,
    summary="kinds of layers by metrics of their own, inputs token by token, channels smoothed",
    paper=Paper(
        "Zhao et al.",
        2024,
        "ViDiT-Q: Efficient and Accurate Quantization of Diffusion Transformers for Image and "
        "Video Generation",
        "2406.02540",
    ),
    formula="the least loss of each kind of layers by its own metric, budgets swept, all measured",
    sensitivity="decoupled:groups=*cross*|*attn2*=ssim;*temp*=psnr;*=decibels",
    solver="swept-budgets:groups=*cross*|*attn2*;*temp*;*,low=0.5,high=1.5,num_ratios=5,"
    "is_measured=true",
    candidates=("w4za8d", "w8za8d"),
    constraint="a mean number of bits of weights: weight_bytes",
    transforms=("smooth",),
    choices=(
        Choice("estimator", "kinds of layers decoupled, each by a metric of what it makes",
               "the paper, on metric-decoupled mixed precision"),
        Choice("groups", "cross-attention, temporal attention, all others", "the published code"),
        Choice("metrics", "SSIM, peak signal to noise, signal to noise, in the place of text "
               "alignment, flow and visual quality", NOT_STATED),
        Choice("solver", "an integer program for each kind, shares of the budget swept",
               NOT_STATED),
        Choice("candidates", "weights of 4 bits or 8, inputs of 8", "the abstract"),
        Choice("inputs", "a scale for every token, found when it is there",
               "the paper, on dynamic quantization"),
        Choice("channels", "brought together before rounding", "the paper, on channel balancing"),
        Choice("weights", "with a zero point, a scale per output channel, to nearest", NOT_STATED),
    ),
    departures=(
        "CLIP, flow and VQA need networks of their own: bring one as your score, and name it for "
        "its kind of layers (--sensitivity decoupled:groups=PATTERNS=own).",
        "Factors of channels are the same at all steps; a rotation is --transform smooth,rotate.",
        "Groups go by names of layers, in patterns of diffusion networks; others need their own "
        "(--sensitivity and --solver, groups=PATTERNS).",
        "Bits do not change from step to step.",
    ),
)  # fmt: skip

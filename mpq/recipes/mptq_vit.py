"""MPTQ-ViT: inputs shifted and smoothed, then greedy steps down that are measured one by one."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

MPTQ_VIT: Final = Recipe(
    name="mptq-vit",
    version=1,
    summary="inputs shifted and smoothed, layers lowered greedily, measured after every step",
    paper=Paper(
        "Tai and Wu",
        2024,
        "MPTQ-ViT: Mixed-Precision Post-Training Quantization for Vision Transformer",
        "2401.14895",
    ),
    formula="again and again the step down of the least (measured loss gained) / (cost saved)",
    sensitivity="weight-error",
    solver="measured-greedy:direction=down,is_measured=true",
    candidates=tuple(f"w{bits}a{bits}" for bits in (3, 4, 5, 6, 7, 8)),
    constraint="model size or a mean number of bits: weight_bytes, effective_bits, bit_operations",
    transforms=("shift", "smooth"),
    activation_range="mse",
    choices=(
        Choice("estimator", "none: whole networks are measured",
               "the paper, on greedy mixed precision"),
        Choice("solver", "greedy, by performance and compressibility",
               "the abstract, on greedy mixed precision"),
        Choice("performance", "divergence from the original on the calibration examples",
               NOT_STATED),
        Choice("candidates", "3 to 8 bits, the same for weight and input", NOT_STATED),
        Choice("inputs before rounding", "SmoothQuant with a bias that takes the asymmetry",
               "the abstract, on SmoothQuant with a bias term (SQ-b)"),
        Choice("ranges of inputs", "searched on the examples",
               "the abstract, on optimal scaling factors (OPT-m)"),
        Choice("weights", "symmetric, a scale per output channel, to nearest", NOT_STATED),
    ),
    departures=(
        "Shifts come before factors; a transformation is used where calibration examples say that "
        "it helps.",
        "OPT-m's ratio of two scale factors behind a GELU is one range by least squares.",
        "Products of activations are rounded with --activations all only.",
        "The table beside the answer is of weight errors, and not used by it.",
    ),
)  # fmt: skip

"""MixLLM: the output features that matter most to the whole network have 8 bits, the others 4."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

MIXLLM: Final = Recipe(
    name="mixllm",
    version=1,
    summary="salient output features of the whole network at 8 bits, about 10 %; others at 4",
    paper=Paper(
        "Zheng et al.",
        2024,
        "MixLLM: LLM Quantization with Global Mixed-precision between Output-features and "
        "Highly-efficient System Design",
        "2412.14590",
    ),
    formula="8 bits for the output features of the largest rise of the loss, of all layers; else 4",
    sensitivity="fisher:labels=targets",
    solver="ilp",
    candidates=("w4zg128a8sd", "w8zg128a8sd"),
    constraint="a share of the output features at 8 bits, 10 % in the paper: effective_bits",
    split="channels",
    rounding="nearest",
    choices=(
        Choice("estimator", "rise of the loss with one output feature quantized, by gradients",
               "the paper, on salience; which of its terms: from memory"),
        Choice("labels", "those of the data; drawn ones: --sensitivity fisher", NOT_STATED),
        Choice("candidates", "weights of 4 bits or 8, inputs of 8", "the abstract"),
        Choice("parts", "output features, compared across all layers", "the abstract"),
        Choice("groups", "weights with a zero point, a scale for 128 of them",
               "the paper, on the configuration; the size of groups: not stated"),
        Choice("inputs", "symmetric, a scale per token", "the paper, on the configuration"),
        Choice("solver", "the features that gain most for their bits, of all layers",
               "the paper, on the global view, which takes a share of the features"),
        Choice("weights", "to nearest", NOT_STATED),
    ),
    departures=(
        "Numbers of a feature do not interact in its price (diagonal Fisher information), and the "
        "gradient itself, whose mean is near 0, is left out; the paper's salience has both, as far "
        "as its ablations are known to us (the formula is from memory).",
        "A feature costs what its weights take, so that long ones have to gain more.",
        "Weights of 8 bits have zero points as those of 4 have.",
    ),
)  # fmt: skip

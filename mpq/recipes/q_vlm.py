"""Q-VLM: errors count by the entropy of what layers give, and blocks are quantized alike."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

Q_VLM: Final = Recipe(
    name="q-vlm",
    version=1,
    summary="error x entropy of what a layer gives, one precision for the layers of a block",
    paper=Paper(
        "Wang et al.",
        2024,
        "Q-VLM: Post-training Quantization for Large Vision-Language Models",
        "2410.08119",
    ),
    formula="min over b of sum_l entropy(y_l) x relative error of layer l at b_l, blocks alike",
    sensitivity="activation-entropy",
    solver="ilp",
    candidates=("w4a4", "w6a6", "w8a8"),
    constraint="a mean number of bits: effective_bits, or weight_bytes",
    tie_blocks=True,
    choices=(
        Choice("estimator", "entropy of a layer's output as what its errors depend on",
               "the paper, on cross-layer dependency; times the error: ours"),
        Choice("histograms", "256 bins over the range", NOT_STATED),
        Choice("candidates", "4, 6 or 8 bits, of weights and inputs",
               "the paper, on the experiments, which have one of them for the whole network; 6: "
               "not stated"),
        Choice("blocks", "the layers of a block have its bits",
               "the paper, on blocks, which it cuts by entropy"),
        Choice("solver", "an integer program, which the paper has none of", NOT_STATED),
        Choice("weights", "symmetric, a scale per output channel, to nearest", NOT_STATED),
        Choice("inputs", "from the least to the largest of the examples", NOT_STATED),
    ),
    departures=(
        "Bits are chosen, where the paper has one precision and searches the rounding of the "
        "layers of a block together.",
        "Blocks are the network's own, and not cut where entropy is low.",
        "The vision encoder is not tuned.",
        "An error is that of weights, and of a normal input, and not of the block's output.",
    ),
)  # fmt: skip

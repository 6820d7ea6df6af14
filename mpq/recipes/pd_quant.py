"""PD-Quant: the difference of predictions is what ranges, rounding and here bits are judged by."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

PD_QUANT: Final = Recipe(
    name="pd-quant",
    version=1,
    summary="divergence of predictions with one layer quantized, learned rounding",
    paper=Paper(
        "Liu et al.",
        2022,
        "PD-Quant: Post-Training Quantization based on Prediction Difference Metric",
        "2212.07048",
    ),
    formula="min over b of sum_l mean_x KL(f(x), f with layer l at b_l (x))",
    sensitivity="measured:score=divergence",
    solver="ilp",
    candidates=("w2a2", "w2a4", "w4a2", "w4a4"),
    constraint="model size or bit operations",
    activation_range="loss",
    rounding="adaround",
    ends="w8a8",
    choices=(
        Choice(
            "estimator", "difference of the network's predictions", "the abstract, on the metric"
        ),
        Choice("ranges of inputs", "by their effect on the prediction", "the abstract, on scales"),
        Choice("rounding", "learned", "the abstract, on rounding"),
        Choice(
            "candidates", "2 or 4 bits, of weights and of inputs", "the paper's tables of results"
        ),
        Choice("solver", "integer program; the paper has the same bits everywhere", NOT_STATED),
        Choice("first and last layer", "8 bits", NOT_STATED),
        Choice("weights", "symmetric, a scale per output channel", NOT_STATED),
    ),
    departures=(
        "The second moment of inputs is weighted, half of it, by squared gradients.",
        "Bits differ by layer: the metric is the paper's, the choice of bits by it is ours.",
        "Ranges count errors by gradients of the divergence, and are not tried one by one.",
        "Rounding is learned by the error of the layer's outputs, without the prediction's term.",
        "Activations are not corrected towards the statistics of BatchNorm.",
    ),
)

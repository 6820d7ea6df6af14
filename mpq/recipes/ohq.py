"""OHQ: latencies measured on the device, divergences without data, an integer program."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

OHQ: Final = Recipe(
    name="ohq",
    version=1,
    summary="measured latencies, KL divergence of one layer on distilled examples, integer program",
    paper=Paper("Huang et al.", 2023, "OHQ: On-chip Hardware-aware Quantization", "2309.01945"),
    formula="min over b of sum_l mean_x KL(f(x), f with layer l at b_l (x)), x made without data",
    sensitivity="measured:score=divergence",
    solver="ilp",
    candidates=("w4a8", "w8a8"),
    constraint="latency as the device takes it (mpq profile, then --device), and model size",
    source="batch-norm",
    choices=(
        Choice(
            "data", "none of the user's; distilled from BatchNorm", "the abstract; how: not stated"
        ),
        Choice(
            "estimator",
            "KL divergence of the outputs, one layer quantized",
            "the paper, on mask-guided quantization estimation (MQE)",
        ),
        Choice("solver", "integer linear program", "the abstract"),
        Choice(
            "costs",
            "measured on the device that the network will run on",
            "the paper, on on-chip quantization awareness (OQA)",
        ),
        Choice("candidates", "weights of 4 bits or 8, inputs of 8", NOT_STATED),
        Choice("weights", "symmetric, a scale per output channel, to nearest", NOT_STATED),
        Choice("inputs", "from the least to the largest of the examples", NOT_STATED),
    ),
    departures=(
        "Nothing is masked: every layer is measured with all of its weights.",
        "Your own examples say their shape, and are what answers are measured on.",
    ),
)

"""QuantMCU: bits of feature maps by the entropy that they lose, against computation saved."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

QUANTMCU: Final = Recipe(
    name="quantmcu",
    version=1,
    summary="8-bit weights, bits of inputs by the entropy lost against bit operations and peak RAM",
    paper=Paper(
        "Tao et al.",
        2024,
        "Value-Driven Mixed-Precision Quantization for Patch-Based Inference on Microcontrollers",
        "2401.13714",
    ),
    formula="min over b of sum_i [H(x_i) - H(Q_b(x_i))]_+ within bit operations and peak RAM",
    sensitivity="activation-entropy:loss=true",
    solver="ilp",
    candidates=("w8a2", "w8a4", "w8a8"),
    constraint="peak_ram of the device, and bit_operations in the place of the score's weight",
    choices=(
        Choice(
            "estimator",
            "entropy of a feature map less that of the rounded one",
            "the paper, on value-driven quantization search (VDQS)",
        ),
        Choice("bins", "256 over the range of the original", NOT_STATED),
        Choice(
            "score",
            "-lambda entropy lost + (1 - lambda) bit operations saved",
            "the paper, on value-driven quantization search (VDQS)",
        ),
        Choice("lambda", "what the limit on bit operations comes to", NOT_STATED),
        Choice("solver", "integer program: of all assignments the least entropy lost", NOT_STATED),
        Choice(
            "candidates",
            "weights of 8 bits, inputs of 2, 4 or 8",
            "the paper has 8 bits, and fewer for inputs; which: not stated",
        ),
        Choice("weights", "symmetric, a scale per output channel, to nearest", NOT_STATED),
        Choice("inputs", "from the least to the largest of the examples", NOT_STATED),
    ),
    departures=(
        "Lambda is not given: an assignment of the best scores has the least entropy lost at its "
        "bit operations, which is what you limit.",
        "An integer program meets all limits at once, where the paper goes through feature maps "
        "one by one until memory holds them.",
        "An assignment has one precision for a layer, with which all patches run: those with "
        "outliers do not stay at 8 bits.",
        "The limit peak_ram is that of the network as a whole; mpq patches plans the patches.",
    ),
)

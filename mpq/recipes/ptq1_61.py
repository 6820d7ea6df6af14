"""PTQ1.61: salient input columns in 4 bits, the others in signs."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

PTQ1_61: Final = Recipe(
    name="ptq1.61",
    version=1,
    summary="input columns in 4 bits or in signs, by what their errors do to a layer's outputs",
    paper=Paper(
        "Zhao et al.",
        2025,
        "PTQ1.61: Push the Real Limit of Extremely Low-Bit Post-Training Quantization Methods for "
        "Large Language Models",
        "2502.13179",
    ),
    formula="min over columns in 4 bits of the errors of outputs by columns, e_k^2 / u_k^2",
    sensitivity="weight-error",
    solver="ilp",
    candidates=("wbinarya16", "w4a16"),
    constraint="effective_bits=1.61, codes and scales and names of columns together",
    choices=(
        Choice("candidates", "signs, and 4 bits for salient columns",
               "the paper, on the structured mask"),
        Choice("parts", "single input channels, the same ones of all outputs",
               "the paper, on the structured mask"),
        Choice("salience", "what errors of a column do to the outputs, by the inputs it meets",
               "the paper, on the structured mask, goes by the magnitude of inputs; the inverse "
               "of their second moment, guided by gradients: ours"),
        Choice("estimator", "relative squared error of each layer's weight, shared out to columns",
               NOT_STATED),
        Choice("solver", "the least sum of errors within the limit", NOT_STATED),
        Choice("scales", "found with the signs, for the error of outputs",
               "the paper, on the optimisation of scaling factors"),
        Choice("rounding", "coordinate descent on codes and scales", NOT_STATED),
    ),
    departures=(
        "The weights are not made easier to quantize before (the paper's preprocessing).",
        "Scales are fitted in closed form, and not by gradient descent on blocks of layers; "
        "those of signs are the scales of 4 bits times one of 16 factors.",
        "Each layer has its own share of salient columns, where the paper has one for all.",
        "A convolution's columns are its input channels with their kernels.",
    ),
    weight_range="mse",
    rounding="coordinate-descent",
    split="columns",
)  # fmt: skip

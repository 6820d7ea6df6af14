"""BAQ: bits of every column in closed form, so that all columns lose alike, on GPTQ."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

BAQ: Final = Recipe(
    name="baq",
    version=2,
    summary="bits of every column so that all lose alike of what GPTQ leaves, in closed form",
    paper=Paper(
        "Zhang et al.",
        2025,
        "BAQ: Efficient Bit Allocation Quantization for Large Language Models",
        "2506.05664",
    ),
    formula="b_j = round(-1/2 log2(12 L d_j^2)), d_j of the Cholesky factor of the inverse moment",
    sensitivity="column-loss:by_layer=true",
    solver="ilp",
    candidates=("w0a16", "wbinarya16", *(f"w{bits}a16" for bits in range(2, 9))),
    constraint="a mean number of bits: effective_bits, or weight_bytes",
    rounding="gptq",
    split="columns",
    choices=(
        Choice("estimator", "steps^2 / 12 x what later inputs cannot make good, in units of each "
               "layer's own",
               "the paper, on the objective, and on a loss that columns of one layer share"),
        Choice("parts", "a column: an input of all output channels", "the paper, on the algorithm"),
        Choice("candidates", "0 bits, signs, and 2 to 8 bits",
               "the paper has whole numbers from 0 on; the most: not stated"),
        Choice("solver", "the optimum in whole bits, which is the rounded closed form, with the "
               "same mean bits in each layer", "the paper, on the closed form and equal losses"),
        Choice("weights", "by GPTQ, symmetric, a scale per output channel",
               "the paper, on the algorithm, which is GPTQ's; scales: not stated"),
        Choice("ranges", "from the least to the largest number", NOT_STATED),
    ),
    departures=(
        "A column of 0 bits loses its squared numbers, and one of 1 bit the errors of its signs, "
        "and no twelfth of a squared step, so that layers differ in mean bits where these occur.",
        "Steps are those of each format's own scales, which one bit more does not halve exactly.",
        "Within a layer the moment by which columns are compared is that of GPTQ here, half of it "
        "weighted by squared gradients.",
        "Which column has which bits counts in the bytes.",
        "All widths of a channel have one scale, times a factor of the width.",
    ),
)  # fmt: skip

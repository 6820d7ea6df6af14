"""PB-LLM: a share of salient weights beside signs."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

PB_LLM: Final = Recipe(
    name="pb-llm",
    version=1,
    summary="signs, and a share of salient weights beside them, by GPTQ",
    paper=Paper(
        "Shang et al.",
        2023,
        "PB-LLM: Partially Binarized Large Language Models",
        "2310.00034",
    ),
    formula="min over shares p of the relative squared error of sign weights without the p % that "
    "are salient",
    sensitivity="weight-error",
    solver="ilp",
    candidates=tuple(f"wbinary+s{percent}%a16" for percent in (5, 10, 20, 30)),
    constraint="a mean number of bits: effective_bits, or weight_bytes",
    choices=(
        Choice("candidates", "signs, and 5, 10, 20 or 30 % salient weights",
               "the paper, on the salient ratio; these four: ours"),
        Choice("salient weights", "by magnitude and the inverse Hessian, each by itself",
               "the paper, on the criterion of salience; how far a weight sticks out, as a "
               "factor: ours"),
        Choice("scales", "the mean magnitude of the weights that are not salient, for each row",
               "the paper, on the optimal scaling factor; one for each row: ours"),
        Choice("rounding", "GPTQ, signs and salient weights together",
               "the paper, on GPTQ of partly binary weights (PB-GPTQ)"),
        Choice("estimator", "relative squared error of each weight", NOT_STATED),
        Choice("solver", "the least sum of errors within the limit", NOT_STATED),
    ),
    departures=(
        "The second moment of inputs is weighted, half of it, by squared gradients.",
        "Salient weights are in fp16 and not in 8 bits, as what corrects their signs.",
        "Scales are made without the most salient weights: 0.25, 0.5, 1 or 2 % of them and so on, "
        "whichever errs least; the rest of the share is what then errs most.",
        "Where they are is counted: a column of each and a count for every row, or a bit for every "
        "weight.",
        "Each layer has its own share, where the paper has one for all.",
        "Nothing is trained after rounding (the paper's quantization-aware training).",
    ),
    weight_range="mse",
    rounding="gptq",
    steps=("The paper trains the answer with its rounding, and freezes the salient weights.",),
)  # fmt: skip

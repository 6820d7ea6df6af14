"""HAWQ-V2: mean trace times error of weights and inputs, on a frontier of ordered bits."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

HAWQ_V2: Final = Recipe(
    name="hawq-v2",
    version=1,
    summary="mean Hessian trace x squared error of weights and inputs, bits monotone in the traces",
    paper=Paper(
        "Dong et al.",
        2020,
        "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks",
        "1911.03852",
    ),
    formula="min over b of sum_l mean trace(H_l) ||Q_b - Q||^2, b monotone in mean trace(H_l)",
    sensitivity="hessian-trace:num_probes=50,matrix=hessian,loss=cross-entropy",
    solver="ordered",
    candidates=tuple(f"w{w}a{a}" for w in (2, 4, 8) for a in (2, 4, 8)),
    constraint="model size: the frontier's point of the least loss within it",
    choices=(
        Choice("estimator", "mean trace x squared error, of weights and of inputs",
               "the paper, on Omega, the sum of trace times squared error"),
        Choice("loss", "cross-entropy of the labels", "the paper, on the trace of the Hessian"),
        Choice("probes of the trace", "50 of Hutchinson's",
               "the paper's figure of how the trace converges"),
        Choice("candidates", "2, 4 or 8 bits, of weights and of inputs", NOT_STATED),
        Choice("order", "more bits to a larger mean trace", "the paper, on the Pareto frontier"),
        Choice("solver", "of all assignments in order the least sum within the limit",
               "the paper, on the Pareto frontier"),
        Choice("weights", "symmetric, a scale per output channel, to nearest", NOT_STATED),
        Choice("inputs", "a static scale per tensor, from the least to the largest", NOT_STATED),
    ),
    departures=(
        "A trace that is found negative prices nothing, and comes last in the order.",
        "An integer program finds the frontier's point, where the paper lists assignments.",
        "Fine-tuning of the quantized network is left to you (mpq export, or mpq tune).",
    ),
    steps=("The paper trains the answer with its rounding (mpq tune, or mpq export).",),
)  # fmt: skip

"""Augmenting Hessians: tensors in an order of curvature, lowered as far as accuracy allows."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

AUGMENTING_HESSIANS: Final = Recipe(
    name="augmenting-hessians",
    version=1,
    summary="weights and inputs apart, by trace + terms between layers, bisection on the accuracy",
    paper=Paper(
        "Schaefer et al.",
        2023,
        "Augmenting Hessians with Inter-Layer Dependencies for Mixed-Precision Post-Training "
        "Quantization",
        "2306.04879",
    ),
    formula="the most tensors, least mean trace(H_t) ||D_t||^2 + D_t sum_u H_tu D_u first, lowered",
    sensitivity="augmented-hessian:num_probes=50,matrix=hessian,loss=cross-entropy",
    solver="bisection:tensors=true",
    candidates=tuple(f"w{w}a{a}" for w in (4, 8, 16) for a in (4, 8, 16)),
    constraint="a drop of the accuracy: --minimize weight_bytes --max-accuracy-drop 0.01",
    choices=(
        Choice("estimator", "trace, and what layers do together", "the abstract"),
        Choice("order", "of tensors, weights and inputs apart", "the abstract, on tensors"),
        Choice("terms between layers", "second order, each tensor with all others at its candidate",
               NOT_STATED),
        Choice("error", "the trace counts times the squared error of rounding", NOT_STATED),
        Choice("loss", "cross-entropy of the labels", NOT_STATED),
        Choice("probes of the trace", "50 of Hutchinson's", NOT_STATED),
        Choice("candidates", "4, 8 or 16 bits, of weights and of inputs", NOT_STATED),
        Choice("solver", "bisection for how many of the order are lowered, on measured accuracy",
               "the abstract, on the search"),
        Choice("weights", "symmetric, a scale per output channel, to nearest", NOT_STATED),
        Choice("inputs", "a static scale per tensor, from the least to the largest", NOT_STATED),
    ),
    departures=(
        "With a limit, and no drop of the accuracy, the budget ends the order.",
        "Accuracy is measured on held-out examples; a metric or a score of yours may take its "
        "place.",
        "What the other tensors take back of a tensor's error is not counted on.",
    ),
)  # fmt: skip

"""HAWQ: layers by their largest curvature, and bits that fall along that order."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

HAWQ: Final = Recipe(
    name="hawq",
    version=1,
    summary="top Hessian eigenvalue / parameters orders the bits and, x error, the fine-tuning",
    paper=Paper(
        "Dong et al.",
        2019,
        "HAWQ: Hessian AWare Quantization of Neural Networks with Mixed-Precision",
        "1905.03696",
    ),
    formula="more bits to a larger lambda_max(H_l) / n_l; tuned by lambda_max(H_l) ||Q(W) - W||^2",
    sensitivity="hessian-eigenvalue:loss=cross-entropy,inputs=false",
    solver="ordered",
    candidates=("w2a4", "w3a4", "w4a4", "w6a4", "w8a4"),
    constraint="model size: its tables state a ratio of compression; any limit may be given",
    choices=(
        Choice("estimator", "largest eigenvalue of a block / its parameters",
               "the paper's equation of S_i, on the order of bits"),
        Choice("loss", "cross-entropy of the labels", "the paper, on second-order information"),
        Choice("power iterations", "at most 30, to 1 %", NOT_STATED),
        Choice("blocks", "single layers",
               "the paper's blocks have several layers; those of other networks: not stated"),
        Choice("candidates", "weights of 2, 3, 4, 6 or 8 bits, inputs of 4",
               "the paper's tables of results"),
        Choice("solver", "of all assignments in order the one of the least sum of lambda x error",
               NOT_STATED),
        Choice("weights", "symmetric, a scale per output channel, to nearest", NOT_STATED),
        Choice("inputs", "a static scale per tensor, from the least to the largest", NOT_STATED),
        Choice("order of tuning", "lambda x error, the largest first",
               "the paper's equation of Omega_i, on the order of fine-tuning"),
    ),
    departures=(
        "The paper turns the order into bits by hand; an integer program does here.",
        "The order of tuning is written down, and the tuning left to you.",
    ),
    steps=("The paper fine-tunes layer by layer; result.json has the order (provenance.recipe).",),
    orders_tuning=True,
)  # fmt: skip

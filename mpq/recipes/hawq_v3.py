"""HAWQ-V3: trace times error, 4 and 8 bits, an integer program."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

HAWQ_V3: Final = Recipe(
    name="hawq-v3",
    version=1,
    summary="Hessian trace x squared error, 4 or 8 bits, integer program",
    paper=Paper("Yao et al.", 2021, "HAWQ-V3: Dyadic Neural Network Quantization", "2011.10680"),
    formula="min over b of sum_l mean trace(H_l) ||Q_b(W_l) - W_l||^2, within the limits",
    sensitivity="hessian-trace:num_probes=50,matrix=hessian,loss=cross-entropy,inputs=false",
    solver="ilp",
    candidates=("w4sdyadica4", "w8sdyadica8"),
    ends="w8sdyadica8",
    constraint="model size, bit operations or latency, one or several, each a sum over layers",
    choices=(
        Choice(
            "estimator",
            "mean trace x squared error of the weights",
            "the paper, on the integer program",
        ),
        Choice(
            "loss",
            "cross-entropy of the labels",
            "the paper of HAWQ-V2, on the trace of the Hessian",
        ),
        Choice("probes of the trace", "50 of Hutchinson's", NOT_STATED),
        Choice(
            "candidates",
            "4 bits or 8, the same for weight and input",
            "the paper, on the integer program",
        ),
        Choice("first and last layer", "8 bits", "the published code"),
        Choice("ties", "layers that read one tensor", "the paper's figure 2, on transition layers"),
        Choice(
            "weights",
            "symmetric, a scale per output channel, to nearest",
            "the paper, on the method",
        ),
        Choice("inputs", "a static scale per tensor, from the least to the largest", NOT_STATED),
        Choice("scales", "dyadic, m / 2^e", "the paper, on dyadic arithmetic"),
        Choice("solver", "integer linear program (PuLP)", "the paper, on the integer program"),
    ),
    departures=(
        "Inputs have a zero point; behind a ReLU it is 0, and they are the paper's unsigned ones.",
        "Fine-tuning of the quantized network is left to you (mpq export, or mpq tune).",
    ),
    steps=("The paper trains the answer with its rounding (mpq tune, or mpq export).",),
)

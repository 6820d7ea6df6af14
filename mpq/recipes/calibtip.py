"""CalibTIP: AdaQuant layer by layer, measured losses, an integer program, then the biases."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

CALIBTIP: Final = Recipe(
    name="calibtip",
    version=1,
    summary="layers calibrated one by one, measured rise of the loss, integer program, biases",
    paper=Paper(
        "Hubara et al.",
        2020,
        "Improving Post Training Neural Quantization: Layer-wise Calibration and Integer "
        "Programming",
        "2006.10518",
    ),
    formula="min over b of sum_l (loss with layer l at b_l - loss), within the limit",
    sensitivity="measured:score=loss",
    solver="ilp",
    candidates=("w4a4", "w8a8"),
    constraint="model size, latency or operations",
    rounding="adaround",
    bias_correction=True,
    choices=(
        Choice("estimator", "rise of the cross-entropy with one layer quantized",
               "the paper, on the integer program"),
        Choice("candidates", "4 bits or 8, the same for weight and input",
               "the paper, on the experiments"),
        Choice("solver", "integer program", "the paper, on the integer program"),
        Choice("weights", "symmetric, a scale per output channel", NOT_STATED),
        Choice("inputs", "from the least to the largest", NOT_STATED),
        Choice("rounding", "by the error of the layer's outputs", "the paper, on AdaQuant"),
        Choice("later steps", "BatchNorm's statistics estimated again, biases tuned",
               "the paper, on para-normalization and bias tuning"),
    ),
    departures=(
        "The second moment of inputs is weighted, half of it, by squared gradients.",
        "AdaQuant moves weights, scales and biases freely; here weights go up or down (AdaRound).",
        "Biases and norms take back mean errors in closed form (--bias-correction), where unseen "
        "examples say that it helps.",
    ),
    steps=("The paper corrects biases and norms, which --bias-correction does here.",),
)  # fmt: skip

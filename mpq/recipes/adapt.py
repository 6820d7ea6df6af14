"""AdaPT: every layer at the fewest bits that leave its numbers' distribution as it is."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

ADAPT: Final = Recipe(
    name="adapt",
    version=1,
    summary="KL divergence of rounded weights' histograms, each layer's fewest bits within one",
    paper=Paper(
        "Kummer et al.",
        2021,
        "Adaptive Precision Training (AdaPT): A dynamic fixed point quantized training approach "
        "for DNNs",
        "2107.13490",
    ),
    formula="b_l = the fewest bits with KL(h(W_l), h(Q_b(W_l))) at most epsilon, for all layers",
    sensitivity="histogram-kl",
    solver="threshold",
    candidates=tuple(f"w{bits}a16" for bits in (2, 3, 4, 5, 6, 7, 8)),
    constraint="any: epsilon is the least that it allows; yours: --solver threshold:max_loss=0.01",
    choices=(
        Choice("estimator", "divergence of a weight's distribution when it is rounded",
               "the paper, on pushing precisions down"),
        Choice("solver", "for each layer the lowest precision without a loss of information",
               "the abstract"),
        Choice("epsilon", "the least within the limits", NOT_STATED),
        Choice("bins of a histogram", "128", NOT_STATED),
        Choice("candidates", "weights of 2 to 8 bits, inputs in 16 bits", NOT_STATED),
        Choice("weights", "symmetric, a scale per output channel, to nearest", NOT_STATED),
    ),
    departures=(
        "A trained network is quantized: precisions are not pushed up by the diversity of "
        "gradients, nor are weights made sparse.",
        "Numbers have scales of channels, where the paper's are of fixed point.",
        "A small share of both histograms is spread over all bins, so that none is empty.",
    ),
)  # fmt: skip

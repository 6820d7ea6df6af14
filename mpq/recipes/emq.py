"""EMQ: a proxy that was found by evolution, times rounding errors, and an integer program."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

EMQ: Final = Recipe(
    name="emq",
    version=1,
    summary="a formula of weights, gradients and curvature, evolved to rank measured assignments",
    paper=Paper(
        "Dong et al.",
        2023,
        "EMQ: Evolving Training-free Proxies for Automated Mixed Precision Quantization",
        "2307.10554",
    ),
    formula="min over b of sum_l proxy_l x relative rounding error of layer l at b_l",
    sensitivity="zero-cost:formula=log(log(sum(log(log(log(h)*log(log(w*sigmoid(g))))))))",
    solver="ilp",
    candidates=("w2a8", "w3a8", "w4a8"),
    constraint="model size, or operations",
    choices=(
        Choice("estimator", "a proxy found by evolution; the formula is ours: mpq evolve-proxy "
               "found it on measured assignments of ResNet-20 and of a small Llama",
               "the abstract; the paper's own formula: not stated"),
        Choice("evolution", "fitness is Spearman's correlation with a benchmark; selection "
               "prompts diversity, screening for compatibility (mpq evolve-proxy)", "the abstract"),
        Choice("inputs", "weights, gradients, activations, curvature",
               "the paper's figure of the search space"),
        Choice("candidates", "weights of 2, 3 or 4 bits, inputs of 8", NOT_STATED),
        Choice("solver", "integer linear program", NOT_STATED),
        Choice("labels", "drawn from the network's own answers", NOT_STATED),
        Choice("weights", "symmetric, a scale per output channel, to nearest", NOT_STATED),
        Choice("ranges of inputs", "from the least to the largest of the examples", NOT_STATED),
    ),
    departures=(
        "The proxy is the one that our evolution found, and not the paper's.",
        "It weighs relative rounding errors, as all proxies of one number per layer do here.",
        "A benchmark has what single assignments lose in divergence, and not trained accuracies.",
    ),
    steps=("The paper trains the answer with its rounding (mpq tune, or mpq export).",),
)  # fmt: skip

"""Quantune: the configuration of a whole network by boosted trees and measurements."""

from typing import Final

from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe

QUANTUNE: Final = Recipe(
    name="quantune",
    version=1,
    summary="boosted trees over scheme, granularity and precision of the body and of both ends",
    paper=Paper(
        "Lee et al.",
        2022,
        "Quantune: Post-training Quantization of Convolutional Neural Networks using Extreme "
        "Gradient Boosting for Fast Deployment",
        "2202.05048",
    ),
    formula="min over configurations of what the whole quantized network loses, measured",
    sensitivity="weight-error",
    solver="boosted-trees:is_measured=true",
    candidates=("w8za8", "w8a8s", "w8a8", "w8tza8", "w8ta8s", "w8ta8", "fp32"),
    constraint="none that we know of: any limit",
    tie_inner=True,
    choices=(
        Choice("estimator", "none: whole networks are measured", "the abstract"),
        Choice("solver", "gradient tree boosting says what to measure next", "the abstract"),
        Choice("label", "divergence from the original; --score accuracy: the paper's",
               "the abstract"),
        Choice("candidates", "8 bits; the original precision for mixed ones", NOT_STATED),
        Choice("scheme", "with a zero point, symmetric, or inputs alone with one",
               "the abstract, on schemes; which: not stated"),
        Choice("granularity", "a scale per channel or per tensor", "the abstract, on granularity"),
        Choice("mixed precision", "the first and the last layer apart from all others",
               "the abstract, on mixed precision; which layers: not stated"),
        Choice("clipping", "none; another: --activation-range", "the abstract; which: not stated"),
        Choice("calibration size", "all of --data", "the abstract, on calibration"),
        Choice("transfer", "trials of an earlier run, by the same metric and score, teach the "
               "trees, if you name its log (earlier=FILE)", NOT_STATED),
        Choice("trees", "100 of depth 3, a fifth of every batch at random, 60 measurements",
               NOT_STATED),
    ),
    departures=(
        "Clipping and the number of examples are settings of one search: each is a search of its "
        "own, which an earlier one by the same metric and score teaches "
        "(--solver boosted-trees:is_measured=true,earlier=FILE).",
        "Of the first and the last layer each may take any candidate.",
        "The trees are scikit-learn's, and see what is predicted to be lost as well.",
        "Scales that are powers of two are no candidates.",
    ),
)  # fmt: skip

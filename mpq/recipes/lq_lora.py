"""LQ-LoRA: bits and group sizes of NormalFloats by an integer program, with a low-rank part."""

from typing import Final

from mpq.recipes.recipe import Choice, Paper, Recipe

LQ_LORA: Final = Recipe(
    name="lq-lora",
    version=1,
    summary="NormalFloat bits and group sizes by Fisher-weighted error, and a product of rank 64",
    paper=Paper(
        "Guo et al.",
        2023,
        "LQ-LoRA: Low-rank Plus Quantized Matrix Decomposition for Efficient Language Model "
        "Finetuning",
        "2311.12023",
    ),
    formula="min over c of sum_l ||sqrt(F_l) (W_l - Q_c - L1 L2)||^2, within the memory",
    sensitivity="fisher:labels=targets",
    solver="ilp",
    candidates=tuple(f"wnf{bits}g{size}sdq+r64a16" for bits in (3, 4) for size in (16, 32, 64)),
    constraint="memory: weight_bytes, or effective_bits",
    rounding="nearest",
    choices=(
        Choice("estimator", "Fisher information x squared error that product and codes leave",
               "the paper, on the data-aware version"),
        Choice("labels", "those of the data; drawn ones: --sensitivity fisher",
               "the paper, on Fisher information"),
        Choice("candidates", "bits and sizes of groups, each layer its own",
               "the paper, on mixed configurations"),
        Choice("codes", "NormalFloat by the largest of a group, scales quantized a second time",
               "the paper, on NormalFloat and double quantization"),
        Choice("product", "rank 64, found in turn with the codes",
               "the paper, on the decomposition, and for the rank on the experiments"),
        Choice("solver", "integer linear program", "the paper, on the integer program"),
    ),
    departures=(
        "Bits are 3 and 4, groups of 16, 32 and 64; 2 and 8 bits of NormalFloat are not there.",
        "Second scales are integers of 8 bits, 256 with a step, and not chosen themselves.",
        "Product and codes leave the least squared error, as in the paper's decomposition without "
        "data; errors are weighted by Fisher information where layers are compared. They take "
        "turns twice.",
        "The product counts in the bytes, in 16 bits.",
        "A layer whose smaller side is below 64 has none of these candidates: give it others "
        "(--precisions or --allow).",
    ),
    steps=("The paper fine-tunes the product, and leaves the codes as they are.",),
)  # fmt: skip

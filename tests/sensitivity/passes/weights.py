"""Layers of every kind, with their inputs, and what rounding changes of their weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mpq.network.modules import weight_of
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity.passes.weight_changes import WeightChanges

FORMATS = [Precision.parse(text).weight for text in ("w2", "w4", "w8")]
NUM_EXAMPLES = 5


def numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(NUM_EXAMPLES, *shape)


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(6, 4), numbers(6)),
    "tokens": (lambda: nn.Linear(6, 4), numbers(3, 6)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), numbers(4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), numbers(4, 5)),
    "embedding": (
        lambda: nn.Embedding(7, 4), lambda: torch.randint(7, (NUM_EXAMPLES, 6))
    ),
}  # fmt: skip


def made(module: nn.Module) -> WeightChanges:
    original = weight_of(module).detach()
    quantizer = Quantizer(ActivationRanges({}))
    return WeightChanges("layer", module, original, ORIGINAL.weight, FORMATS, quantizer)

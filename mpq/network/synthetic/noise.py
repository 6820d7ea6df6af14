"""Standard normal inputs: the plainest data there are."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from mpq.network.examples import Calibration
from mpq.network.synthetic._base import (
    DataSource,
    batch_sizes,
    check_images,
    check_positive,
    dtype_of,
    parse_shape,
)


@final
@dataclass(frozen=True)
class Noise(DataSource):
    """Independent standard normal numbers, in the dtype of the model's weights.

    What every method without data is compared with: inputs that are normalised to mean 0 and
    variance 1, but that look like nothing the network was trained on.

    Args:
        shape: Shape of one example, such as ``3x32x32``.
        num_examples: How many examples are drawn, over all batches.
        batch_size: Examples per batch.
        seed: Seed of the numbers.
    """

    name: ClassVar[str] = "noise"
    summary: ClassVar[str] = "standard normal inputs, for comparison"

    shape: str = "3x32x32"
    num_examples: int = 64
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self.name, num_examples=self.num_examples, batch_size=self.batch_size)
        check_images(self.name, self.num_examples, self.shape)

    def calibration(self, model: nn.Module) -> Calibration:
        """See ``DataSource.calibration``; only the model's dtype is read."""
        generator = torch.Generator().manual_seed(self.seed)
        shape, dtype = parse_shape(self.name, self.shape), dtype_of(model)
        sizes = batch_sizes(self.num_examples, self.batch_size)
        # Drawn in float32 and cast, so that a seed means the same noise for every dtype.
        return Calibration([torch.randn(n, *shape, generator=generator).to(dtype) for n in sizes])

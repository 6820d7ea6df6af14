"""A source of calibration examples of another package: the demo's shape, all numbers alike."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from mpq.network.examples import Calibration
from mpq.network.synthetic import DataSource


@final
@dataclass(frozen=True)
class ToySource(DataSource):
    """Grey images of 8 x 8, the first one black.

    Args:
        num_examples: How many.
    """

    name: ClassVar[str] = "toy-source"
    summary: ClassVar[str] = "grey images"

    num_examples: int = 8

    def calibration(self, model: nn.Module) -> Calibration:
        """See ``DataSource.calibration``."""
        grey = torch.linspace(0, 1, self.num_examples).reshape(-1, 1, 1, 1)
        return Calibration(list(grey.expand(-1, 1, 8, 8).split(4)))

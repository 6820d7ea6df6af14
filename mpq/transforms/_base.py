"""The interface of every transformation."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, final

from torch import nn

from mpq._support.bounds import Bounded
from mpq.network.examples import Batch, Calibration
from mpq.network.metric import KL, OutputMetric
from mpq.network.modules import device_of
from mpq.network.reparametrization import Change
from mpq.quantization.numerics import OWN, Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import Ranges

NUM_TRACED: Final = 2
"""Examples of the traced pass, all tensors of which are held; of one, an axis might be squeezed."""


@final
@dataclass(frozen=True, eq=False)
class Transforming:
    """What a transformation is found for.

    Args:
        module: The network, as plain modules in evaluation mode; it stays as it is.
        data: Calibration examples.
        precision: At which factors are tried: one of the candidates, that rounds something.
        ranges: How ranges are chosen.
        numerics: How scales are stored and tokens rounded where the result is to run.
        metric: How outputs are compared.
        seed: Of whatever draws.
    """

    module: nn.Module
    data: Calibration
    precision: Precision
    ranges: Ranges = field(default_factory=Ranges)
    numerics: Numerics = OWN
    metric: OutputMetric = KL
    seed: int = 0

    @property
    def traced(self) -> Batch:
        """One or two examples, on the network's device."""
        batch = self.data.first_of_several().to(device_of(self.module))
        return batch.slice(0, min(NUM_TRACED, batch.size))

    def batches(self, num_examples: int) -> Iterator[Batch]:
        """The first examples, on the network's device."""
        left = num_examples
        for batch in self.data:
            yield batch.to(device_of(self.module)).slice(0, min(left, batch.size))
            left -= batch.size
            if left <= 0:
                return


@final
@dataclass(frozen=True, eq=False)
class Found:
    """An exact reparametrization.

    Args:
        changes: Of parameters; none where there is nothing to gain.
        num_sites: Where the network's graph allows the transformation.
        why_not: Weight of a layer whose inputs it cannot change, and why.
    """

    changes: tuple[Change, ...]
    num_sites: int
    why_not: Mapping[str, str]


class Transform(Bounded, ABC):
    """Other parameters with the same function, that lose less when they are rounded."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def found(self, on: Transforming) -> Found:
        """Looks at the traced graph, the weights and, where the transformation does, the data.

        Raises:
            ModelError: If a forward pass fails.
        """

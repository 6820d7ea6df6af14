"""Which positions of a layer's calls are looked at, and for how many each of them stands."""

from dataclasses import dataclass
from math import ceil, prod
from typing import Self, final

from torch import Tensor

from mpq.network.modules import weight_of
from mpq.network.weight_layout import layout_of
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.input_columns import Lattice
from mpq.sensitivity.passes.layer_moments import Seen


@final
@dataclass(frozen=True)
class Looking:
    """Looks at the same positions in every pass over the same examples.

    Args:
        num_examples: In all batches.
        positions: Per weight of a row, over all examples, that a convolution is looked at in at
            most; 0: all.
        partly: Layers that a part of the examples reaches.
    """

    num_examples: int
    positions: int
    partly: frozenset[str]

    @classmethod
    def of(cls, on: Estimation, positions: int) -> Self:
        """For the examples that an estimator is given."""
        return cls(on.data.num_examples, positions, frozenset(on.network.reach.partly))

    def seen(self, tap: Tap, x: Tensor, output: Tensor, first: int) -> Seen:
        """Who makes a call, and where it is looked at.

        Args:
            tap: The layer.
            x: What it reads.
            output: Of its output's shape.
            first: How many examples came before this batch.
        """
        is_one = len(x) == 1 and tap.by_example(x) is None
        # An expert that a single token was sent to reads that of one example.
        copies = tap.num_examples if is_one and tap.name not in self.partly else 1
        return Seen(copies, self._lattice(tap, x, output, first))

    def _lattice(self, tap: Tap, x: Tensor, output: Tensor, first: int) -> Lattice:
        """All positions, unless a convolution over whole examples has many."""
        weight = weight_of(tap.layer_module)
        is_whole = x.ndim == weight.ndim and len(x) == tap.num_examples
        if not (tap.layer.kind.startswith("conv") and is_whole and self.positions):
            return Lattice()
        inputs = layout_of(tap.layer_module).to_rows(weight).shape[1]
        total = self.num_examples * prod(output.shape[2:])
        return Lattice(ceil(total / (self.positions * inputs)), first)

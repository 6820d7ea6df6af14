"""The second moments of one layer, added up call by call."""

from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor, nn

from mpq._support.ranks import Ranks
from mpq.rounding.diagonal_blocks import add_to_diagonal
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.gram import Gram
from mpq.sensitivity.passes.input_columns import Lattice, input_columns, output_positions


@final
@dataclass(frozen=True)
class Seen:
    """Who makes a call.

    Args:
        copies: How many examples read the same input.
        lattice: Which positions of it are looked at.
    """

    copies: int
    lattice: Lattice

    @property
    def times(self) -> int:
        """How many positions each one stands for."""
        return self.copies * self.lattice.every


class LayerMoments(Protocol):
    """Sums over calls of a layer's plain and guided second moment; see ``second_moments``."""

    def add_plain(self, tap: Tap, x: Tensor, output: Tensor, seen: Seen) -> None:
        """A call in a forward pass.

        Args:
            tap: The call, as ``operator_call`` has it.
            x: What the operator reads.
            output: What it gives; its shape is looked at.
            seen: By which examples it is made.
        """

    def add(self, tap: Tap, x: Tensor, g: Tensor, seen: Seen) -> None:
        """A call in a backward pass, plain and guided by ``g``, the gradient of its output."""

    def forget_plain(self) -> None:
        """The plain moment begins anew."""

    def share(self, ranks: Ranks, is_guided: bool) -> None:
        """Adds what other processes have: plain moments, and guided ones where asked."""

    def plain(self) -> Tensor:
        """``[G, K, k]``."""

    def guided(self) -> Tensor:
        """``[G, K, k]``."""


@final
class MatrixMoments:
    """Of a linear layer or a convolution: what each weight of a row meets.

    Args:
        layer_module: The layer.
        shape: ``[G, K, k]``: groups of its rows, weights in a row, inputs of a block.
        is_guided: Whether backward passes are read; a guided moment takes memory.
    """

    def __init__(
        self, layer_module: nn.Module, shape: tuple[int, int, int], is_guided: bool
    ) -> None:
        self._shape = shape
        self._device = next(layer_module.parameters()).device
        self._plain = self._gram()
        self._guided = self._gram() if is_guided else None

    def _gram(self) -> Gram:
        return Gram(self._shape, self._device)

    def add_plain(self, tap: Tap, x: Tensor, output: Tensor, seen: Seen) -> None:
        """See ``LayerMoments``."""
        for _, columns in input_columns(tap.layer_module, x, output, seen.lattice):
            self._plain.add(columns, seen.times)

    def add(self, tap: Tap, x: Tensor, g: Tensor, seen: Seen) -> None:
        """See ``LayerMoments``."""
        assert self._guided is not None
        # Roots, so that the product with itself has the squares.
        sizes = output_positions(tap.layer_module, g).float().square().mean(dim=-1).sqrt_()
        for piece, columns in input_columns(tap.layer_module, x, g, seen.lattice):
            self._plain.add(columns, seen.times)
            size = sizes[piece].reshape(-1, len(columns)).t()  # [G, p]
            # Not as often as there are copies: their gradients are added up already.
            self._guided.add(columns * size.unsqueeze(1), seen.lattice.every)

    def forget_plain(self) -> None:
        """See ``LayerMoments``."""
        self._plain = self._gram()

    def share(self, ranks: Ranks, is_guided: bool) -> None:
        """See ``LayerMoments``."""
        self._plain.share(ranks)
        if is_guided and self._guided is not None:
            self._guided.share(ranks)

    def plain(self) -> Tensor:
        """See ``LayerMoments``."""
        return self._plain.matrix()

    def guided(self) -> Tensor:
        """See ``LayerMoments``."""
        return self._guided.matrix() if self._guided is not None else self._gram().matrix()


@final
class EmbeddingMoments:
    """Of an embedding: the identity, as often as a row of the table is looked up.

    Args:
        rows: Of the table, ``V``.
        shape: ``[1, E, k]``: numbers in a row, inputs of a block.
    """

    def __init__(self, rows: int, shape: tuple[int, int, int]) -> None:
        self._rows, self._shape = rows, shape
        self._inputs = shape[1]
        self._uses = self._squares = 0.0

    def add_plain(self, tap: Tap, x: Tensor, output: Tensor, seen: Seen) -> None:  # noqa: ARG002
        """See ``LayerMoments``."""
        self._uses += seen.copies * (output.numel() // self._inputs)

    def add(self, tap: Tap, x: Tensor, g: Tensor, seen: Seen) -> None:
        """See ``LayerMoments``."""
        self.add_plain(tap, x, g, seen)
        self._squares += float(g.float().square().sum()) / self._inputs

    def forget_plain(self) -> None:
        """See ``LayerMoments``."""
        self._uses = 0.0

    def share(self, ranks: Ranks, is_guided: bool) -> None:
        """See ``LayerMoments``."""
        found = ranks.gathered((self._uses, self._squares))
        self._uses = sum(uses for uses, _ in found)
        if is_guided:
            self._squares = sum(squares for _, squares in found)

    def plain(self) -> Tensor:
        """See ``LayerMoments``."""
        return self._identity(self._uses)

    def guided(self) -> Tensor:
        """See ``LayerMoments``."""
        return self._identity(self._squares)

    def _identity(self, total: float) -> Tensor:
        # Spread over all rows, of which each use meets one.
        found = torch.zeros(self._shape, dtype=torch.float32)
        add_to_diagonal(found, torch.tensor([total / self._rows], dtype=torch.float32))
        return found

"""Which calibration examples codes are found with, and the second moments of these."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Final, Self, final

from mpq.errors import GradientError
from mpq.network.examples import Calibration
from mpq.network.folds import folds, parts
from mpq.network.layer import Layer, weighted
from mpq.network.modules import weight_of
from mpq.network.weight_layout import layout_of
from mpq.rounding.diagonal_blocks import moment_shape
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes.moment_mixing import SecondMoments, sharing_a_weight
from mpq.sensitivity.passes.second_moments import PartialMoments

MOST_BYTES: Final = 2**32
"""That the second moments of all parts may take; else every share has passes of its own."""


@final
class MomentParts:
    """Second moments of parts of the examples, collected when they are first asked for.

    Args:
        on: The network, and all examples.
        data: Consecutive parts, which are all of them.
        seed: Of the probes that guide the second moments.
        most_bytes: That those of some layers may take, for which passes are made then; default: one
            pass is for all.
    """

    def __init__(
        self,
        on: Estimation,
        data: Sequence[Calibration],
        seed: int,
        most_bytes: int | None = None,
    ) -> None:
        self.on, self.data = on, data
        self._seed, self._why, self._most_bytes = seed, "", most_bytes

    @property
    def is_together(self) -> bool:
        """Whether the second moments of all layers are there at once."""
        return self._most_bytes is None

    @cached_property
    def _collected(self) -> PartialMoments:
        return self._collect(self.data, weighted(self.on.network.layers))

    def _collect(self, data: Sequence[Calibration], layers: Sequence[Layer]) -> PartialMoments:
        """Guided by the loss where it has gradients; else plain, and why."""
        if not self._why:
            try:
                return PartialMoments.of(self.on, data, seed=self._seed, layers=layers)
            except GradientError as error:
                # The cause alone: the error advises another estimator, which is of no matter here.
                self._why = f"the network cannot be differentiated: {error.cause}"
        return PartialMoments.of(self.on, data, guidance=0.0, layers=layers)

    def totals(self, indices: Sequence[int]) -> Iterator[SecondMoments]:
        """Of some parts, for some layers after the other, in the network's order.

        That of all parts is asked for once, after all others.
        """
        if self._most_bytes is None:
            is_last = len(indices) == len(self.data)
            yield self._told(self._collected.total(indices, is_last))
            return
        data = [self.data[i] for i in indices]
        for layers in _groups(self.on, self._most_bytes // len(data)):
            collected = self._collect(data, layers)
            yield self._told(collected.total(range(len(data)), is_last=True))

    def _told(self, found: SecondMoments) -> SecondMoments:
        if self._why:
            return replace(found, unguided=dict.fromkeys(found.values, self._why))
        return found


@final
@dataclass(frozen=True, eq=False)
class Shown:
    """Examples that codes are found with.

    Args:
        parts: What they are parts of.
        indices: Which of them.
    """

    parts: MomentParts
    indices: tuple[int, ...]

    @classmethod
    def all_of(cls, on: Estimation, seed: int, most_bytes: int | None = None) -> Self:
        """All examples, in one part; see ``MomentParts``."""
        return cls(MomentParts(on, [on.data], seed, most_bytes), (0,))

    @property
    def on(self) -> Estimation:
        """The network and all examples, of which these are some."""
        return self.parts.on

    @property
    def name(self) -> str:
        """Which of the examples these are."""
        sizes = [part.num_examples for part in self.parts.data]
        return f"parts {list(self.indices)} of {sizes}"

    @property
    def others(self) -> "Shown | None":
        """The other examples; ``None``: none, or their second moments take passes of their own."""
        left = tuple(i for i in range(len(self.parts.data)) if i not in self.indices)
        return Shown(self.parts, left) if left and self.parts.is_together else None

    def moments(self) -> Iterator[SecondMoments]:
        """Their second moments, see ``MomentParts.totals``."""
        return self.parts.totals(self.indices)


Share = tuple[Shown, Calibration]
"""Examples that codes are found with, and those that are left out."""


def shares(
    on: Estimation, share: float, seed: int, most_bytes: int | None = None
) -> tuple[Shown, list[Share]]:
    """All examples, and those that are left out in turn (``folds``) beside the others.

    All from one forward and one backward pass, if second moments of all parts fit into memory.

    Args:
        on: The network and the examples.
        share: Of them, that is left out.
        seed: Of the probes that guide the second moments.
        most_bytes: See ``MomentParts``.

    Raises:
        DataError: If there are fewer than two examples.
    """
    left_out = folds(on.data, share)
    data = parts(on.data, share)
    if (
        sum(moment_bytes(on, layer) for layer in weighted(on.network.layers)) * len(data)
        > MOST_BYTES
    ):
        apart = [
            (Shown.all_of(replace(on, data=seen), seed, most_bytes), unseen)
            for seen, unseen in left_out
        ]
        return Shown.all_of(on, seed, most_bytes), apart
    together = MomentParts(on, data, seed, most_bytes)
    every = tuple(range(len(data)))
    # The last part is left out first.
    sharing = [
        (Shown(together, tuple(i for i in every if i != len(data) - 1 - turn)), unseen)
        for turn, (_, unseen) in enumerate(left_out)
    ]
    return Shown(together, every), sharing


def moment_bytes(on: Estimation, layer: Layer) -> int:
    """Of plain and guided second moment of a layer, in float32."""
    layer_module = on.network.layer_module(layer.name)
    inputs = layout_of(layer_module).to_rows(weight_of(layer_module)).shape[1]
    return 8 * prod(moment_shape(layer.groups, inputs))


def _groups(on: Estimation, most_bytes: int) -> Iterator[list[Layer]]:
    """All layers in their order, as many as the bytes allow; at least those of one weight."""
    group: list[Layer] = []
    taken = 0
    for layers in sharing_a_weight(weighted(on.network.layers)):
        own = sum(moment_bytes(on, layer) for layer in layers)
        if group and taken + own > most_bytes:
            yield group
            group, taken = [], 0
        group, taken = [*group, *layers], taken + own
    yield group

"""Which calibration examples codes are found with, and the second moments of these."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Final, Self, final

from mpq.errors import GradientError
from mpq.network.examples import Calibration
from mpq.network.folds import folds, parts
from mpq.network.modules import weight_of
from mpq.network.weight_layout import layout_of
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes.moment_mixing import SecondMoments
from mpq.sensitivity.passes.second_moments import PartialMoments, moment_shape

MOST_BYTES: Final = 2**32
"""That the second moments of all parts may take; else every share has passes of its own."""


@final
class MomentParts:
    """Second moments of parts of the examples, collected when they are first asked for.

    Args:
        on: The network, and all examples.
        data: Consecutive parts, which are all of them.
        seed: Of the probes that guide the second moments.
    """

    def __init__(self, on: Estimation, data: Sequence[Calibration], seed: int) -> None:
        self.on, self.data = on, data
        self._seed, self._why = seed, ""

    @cached_property
    def _collected(self) -> PartialMoments:
        """Guided by the loss where it has gradients; else plain, and why."""
        try:
            return PartialMoments.of(self.on, self.data, seed=self._seed)
        except GradientError as error:
            # The cause alone: the error advises another estimator, which has nothing to do with it.
            self._why = f"the network cannot be differentiated: {error.cause}"
            return PartialMoments.of(self.on, self.data, guidance=0.0)

    def total(self, indices: Sequence[int]) -> SecondMoments:
        """Of some parts; that of all of them is asked for once, after all others."""
        found = self._collected.total(indices, is_last=len(indices) == len(self.data))
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
    def all_of(cls, on: Estimation, seed: int) -> Self:
        """All examples, in one part."""
        return cls(MomentParts(on, [on.data], seed), (0,))

    @property
    def on(self) -> Estimation:
        """The network and all examples, of which these are some."""
        return self.parts.on

    @property
    def name(self) -> str:
        """Which of the examples these are."""
        sizes = [part.num_examples for part in self.parts.data]
        return f"parts {list(self.indices)} of {sizes}"

    def moments(self) -> SecondMoments:
        """Their second moments, see ``MomentParts.total``."""
        return self.parts.total(self.indices)


Share = tuple[Shown, Calibration]
"""Examples that codes are found with, and those that are left out."""


def shares(on: Estimation, share: float, seed: int) -> tuple[Shown, list[Share]]:
    """All examples, and those that are left out in turn (``folds``) beside the others.

    All from one forward and one backward pass, if second moments of all parts fit into memory.

    Args:
        on: The network and the examples.
        share: Of them, that is left out.
        seed: Of the probes that guide the second moments.

    Raises:
        DataError: If there are fewer than two examples.
    """
    left_out = folds(on.data, share)
    data = parts(on.data, share)
    if _moment_bytes(on) * len(data) > MOST_BYTES:
        apart = [(Shown.all_of(replace(on, data=seen), seed), unseen) for seen, unseen in left_out]
        return Shown.all_of(on, seed), apart
    together = MomentParts(on, data, seed)
    every = tuple(range(len(data)))
    # The last part is left out first.
    sharing = [
        (Shown(together, tuple(i for i in every if i != len(data) - 1 - turn)), unseen)
        for turn, (_, unseen) in enumerate(left_out)
    ]
    return Shown(together, every), sharing


def _moment_bytes(on: Estimation) -> int:
    """Of plain and guided second moments of all layers, in float32."""
    found = 0
    for layer in on.network.layers:
        layer_module = on.network.layer_module(layer.name)
        inputs = layout_of(layer_module).to_rows(weight_of(layer_module)).shape[1]
        found += 8 * prod(moment_shape(layer.groups, inputs))
    return found

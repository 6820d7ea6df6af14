"""How far a runtime's outputs may be from the simulation's, and what is looked at before."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, final

from torch import Tensor

from mpq.backends.last_digits import LastDigits
from mpq.backends.layerwise import Stepwise, first_apart, traced
from mpq.backends.own_inputs import LookedAt, any_apart, by_channels, by_worst, codes_of
from mpq.backends.target import Target
from mpq.errors import ModelError
from mpq.problem.assignment import Assignment

Trace = Callable[[], Mapping[str, Tensor]]
"""Asks for what every layer of the runtime reads and gives, of ``Target.traced_batch``."""
MOST_UNSEEN: Final = 0.01
"""Standard deviations of the outputs: what is accepted at most where no layer can be looked at."""


@final
@dataclass(frozen=True)
class Accepted:
    """What outputs were held against.

    Args:
        difference: Of the worst example, or of the median one.
        warnings: Of layers that could not be looked at, though more than the tolerance is accepted.
    """

    difference: float
    warnings: tuple[str, ...] = ()


def accepted_of(
    target: Target,
    assignment: Assignment,
    differences: Tensor,
    spread: float,
    last_digits: LastDigits,
    trace: Trace,
) -> Accepted:
    """How far outputs may be apart.

    More than the target's tolerance is accepted only where no layer by itself is off: as far as the
    simulation moves by ties or last digits.

    Args:
        target: What wrote the files.
        assignment: What it wrote.
        differences: ``[N]`` largest difference of every example.
        spread: Standard deviation of the simulation's outputs.
        last_digits: Of the simulation.
        trace: Asked where outputs differ by more than the tolerance.

    Raises:
        ModelError: If they are further apart; names the first layer that is off.
    """
    worst, median = float(differences.max()), float(differences.median())
    is_median = target.has_ties(assignment)
    judged = median if is_median else worst
    accepted = Accepted(target.tolerance * spread)
    # A comparison with nan is false: what is not within is refused.
    if judged <= accepted.difference:
        return accepted
    layers = _Layers(target, assignment, last_digits, trace())
    looked = layers.looked_at()
    if not looked.named and layers.can_widen:
        accepted = _widened(accepted, looked, spread, last_digits, is_median)
    if judged <= accepted.difference:
        return accepted
    raise ModelError(
        f"{target.name}: its runtime's outputs differ from the simulation's by {worst:.3g} "
        f"(median {median:.3g}, accepted {accepted.difference:.3g}; their standard deviation is "
        f"{spread:.3g}), though all weights are decoded alike. "
        f"{layers.why(looked)}; nothing was written"
    )


def _widened(
    tight: Accepted, looked: LookedAt, spread: float, last_digits: LastDigits, is_median: bool
) -> Accepted:
    """What is accepted where no layer is off, as far as layers could be looked at."""
    if not looked.seen and not is_median:
        return tight
    if is_median:
        moved = last_digits.accepted_of_median()
        moved = moved if looked.seen else min(moved, MOST_UNSEEN * spread)
    else:
        moved = last_digits.accepted_of_worst(spread)
    if moved <= tight.difference:
        return tight
    unseen = [name for name in last_digits.layers if name not in looked.seen]
    more = f" and {len(unseen) - 3} more" if len(unseen) > 3 else ""
    told = f"{', '.join(map(repr, unseen[:3]))}{more} could not be looked at by themselves"
    warning = f"outputs are accepted by how far ties and last digits move them, and {told}"
    return Accepted(moved, (warning,) if unseen else ())


@final
class _Layers:
    """What the runtime's layers read and gave, beside the simulation's."""

    def __init__(
        self,
        target: Target,
        assignment: Assignment,
        last_digits: LastDigits,
        found: Mapping[str, Tensor],
    ) -> None:
        self._target, self._assignment, self._found = target, assignment, found
        self._last_digits, self._simulated = last_digits, last_digits.simulated
        self._is_median = target.has_ties(assignment)
        self._is_smooth = not self._is_median and not assignment.rounds_inputs
        self._batch = target.traced_batch(last_digits.batches)
        is_network = found and not isinstance(self._simulated, Stepwise)
        self._expected = self._traced() if is_network else {}

    @property
    def can_widen(self) -> bool:
        """Of inputs that are rounded with the very scale of the worst example there is no rule."""
        return self._is_median or self._is_smooth

    def looked_at(self) -> LookedAt:
        """Every layer on what it read itself."""
        if not self._found:
            return LookedAt("", frozenset())
        if isinstance(self._simulated, Stepwise):
            named = self._simulated.first_apart(self._batch, self._found)
            return LookedAt(named, frozenset(self._last_digits.layers))
        tolerance = self._target.tolerance
        judge = by_worst(tolerance)
        if self._is_median:
            judge = by_channels(tolerance, codes_of(self._assignment))
        return any_apart(self._simulated, self._expected, self._found, judge)

    def why(self, looked: LookedAt) -> str:
        """The first layer that is off, or what is known of it."""
        if not self._found:
            return "Its layers could not be looked at"
        return looked.named or self._first_apart() or "No single layer that is compared differs"

    def _first_apart(self) -> str:
        if not self._expected:
            return ""
        tolerance = self._target.tolerance
        if not self._is_smooth:
            # First of all by themselves: ties part the two networks wherever they fall.
            judge = by_worst(tolerance)
            looked = any_apart(self._simulated, self._expected, self._found, judge)
            return looked.named or first_apart(self._expected, self._found, tolerance)
        accepted = self._last_digits.accepted_of_layers(self._batch, self._expected)
        return first_apart(self._expected, self._found, tolerance, accepted)

    def _traced(self) -> dict[str, Tensor]:
        batch = self._batch
        return traced(self._simulated, lambda: self._simulated(*batch.args, **batch.kwargs))

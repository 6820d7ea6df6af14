"""The default: predicted where predictions hold, measured where they do not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, final

import numpy as np

from mpq.errors import GradientError, ModelError
from mpq.problem.interactions import Interactions
from mpq.quantization.precision import Precision
from mpq.sensitivity._base import DivisibleEstimator, RefinableEstimator, Sensitivity
from mpq.sensitivity.checked import SpotCheck
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.jumps import Jumps, raised_by_jumps
from mpq.sensitivity.measured import Measured
from mpq.sensitivity.output_sketch import OutputSketch
from mpq.sensitivity.spot_check import measured_rows, spot_check

_MANY: Final = 3
"""Layers that are off before no prediction is believed: of at most eight that were looked at."""
_FEW_CELLS: Final = 24
"""Of layers before a choice that are measured on all the data, as those that choose are."""


@final
@dataclass(frozen=True)
class AutoEstimator(RefinableEstimator, DivisibleEstimator):
    """The output sketch, checked by a few measurements, and repaired by measuring what failed.

    The sketch takes a forward and a backward pass, and is wrong where no gradient flows (rounding,
    ``detach``, comparisons), or where second order says little. So a handful of cells are measured
    (``spot_check``). A layer that nothing reaches a gradient of, and one whose prediction is far
    below its measurement or out of order, is measured at every precision; where several fail, all
    are. So is a layer by whose output something is chosen; those before it are where they are few,
    and raised by what a sample of them loses where they are many (``raised_by_jumps``). Where no
    gradient can be had at all, everything is measured, and the cause is named.

    Args:
        num_probes: Backward passes per batch that the sketch takes; 0: as many as it says.
        seed: Draws the sketch's signs and the cells that are measured.
    """

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = "the sketch, checked; measured where predictions fail (default)"
    prices_caches: ClassVar[bool] = True
    asks_workers: ClassVar[bool] = True
    prices_channels: ClassVar[bool] = True

    num_probes: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        # For its refusals.
        self._sketch()

    def _sketch(self) -> OutputSketch:
        return OutputSketch(num_probes=self.num_probes, seed=self.seed)

    def for_examples(self, num_examples: int) -> OutputSketch:
        """See ``SensitivityEstimator.for_examples``: what it begins with."""
        return self._sketch().for_examples(num_examples)

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``."""
        try:
            found = self._sketch().estimate(on)
        except GradientError as error:
            return self._measured(on, f"no gradient can be computed: {error.cause}")
        check = spot_check(on, found.table, self.seed)
        failed = {*check.no_gradient, *check.failing, *check.choosing}
        # Gradients of layers' calls alone say too little of a weight that functions read, too.
        failed |= {*on.network.reach.also_used}
        before = [name for name in check.before_choice if name not in failed]
        is_few = len(before) * len(on.tried) <= _FEW_CELLS
        jumps = raised_by_jumps(on, found.table, () if is_few else before)
        # Where routers fail, and what feeds them, it is known why: of the others they say nothing.
        known = {*check.choosing, *(check.before_choice if is_few or jumps.raised else ())}
        if len({*check.failing} - known) >= _MANY:
            return self._measured(on, "predictions and measurements part", check)
        failed |= {*(before if is_few else ())}
        return self._repaired(on, found, check, jumps, [n for n in on.names if n in failed])

    def collect(self, on: Estimation) -> None:
        """See ``DivisibleEstimator.collect``; what fails is measured in ``estimate``."""
        try:
            self._sketch().collect(on)
        except GradientError:
            Measured().collect(on)

    def estimate_at(self, on: Estimation, incumbent: Mapping[str, Precision]) -> Sensitivity:
        """See ``RefinableEstimator.estimate_at``: the sketch, whose rounds are judged by measuring.

        Raises:
            ModelError: If no gradient can be computed.
        """
        try:
            return self._sketch().estimate_at(on, incumbent)
        except GradientError as error:
            raise ModelError(
                f"--refine needs gradients, and the network cannot be differentiated: "
                f"{error.cause}; search without it"
            ) from error

    def _measured(self, on: Estimation, why: str, check: SpotCheck | None = None) -> Sensitivity:
        # First of all whether the network runs at all: then its own error is the better one.
        found = Measured().estimate(on)
        known = check or SpotCheck((), on.network.metric.unit, 0.0)
        passes = known.forward_passes + len(on.names) * len(on.tried)
        known = replace(
            known, fallback=why, repaired=on.names, no_gradient=(), forward_passes=passes
        )
        table = replace(found.table, name=self.name)
        return Sensitivity(table, None, found.standard_error, known)

    def _repaired(
        self,
        on: Estimation,
        found: Sensitivity,
        check: SpotCheck,
        jumps: Jumps,
        names: Sequence[str],
    ) -> Sensitivity:
        """With the rows of these layers measured, and those before a choice raised."""
        table = replace(jumps.table, name=self.name)
        passes = check.forward_passes + jumps.forward_passes
        check = replace(check, raised=jumps.raised, sampled=jumps.sampled, forward_passes=passes)
        # Standard errors are those of the gradients' part.
        error = None if jumps.raised else found.standard_error
        if not names:
            # Raised prices are those of layers as a whole.
            other = None if jumps.raised else found.by_channels
            return replace(found, table=table, standard_error=error, check=check, by_channels=other)
        rows = [on.names.index(name) for name in names]
        values = table.values.copy()
        values[rows] = measured_rows(on, names)
        passes += len(rows) * len(on.tried)
        silent = tuple(n for n, row in zip(names, values[rows], strict=True) if not row.any())
        repaired = replace(
            check, repaired=tuple(names), forward_passes=passes, without_effect=silent
        )
        interactions = _without(found.interactions, rows)
        channels = {n: parts for n, parts in found.channels.items() if n not in names}
        table = replace(table, values=values)
        # Of a row that is measured, the sketch still says how it is spread over steps.
        return Sensitivity(
            table, interactions, None, repaired, channels=channels, steps=found.steps
        )


def _without(interactions: Interactions | None, rows: Sequence[int]) -> Interactions | None:
    """A layer whose own row is wrong says nothing about pairs either."""
    if interactions is None:
        return None
    factor = np.array(interactions.factor)
    factor[:, rows] = 0.0
    return Interactions(factor, interactions.shrinkage)

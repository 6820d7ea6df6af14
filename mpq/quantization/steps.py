"""The steps of a diffusion network: which input says them, and which of them share ranges.

Loads no torch: a task and an assignment are made of it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import final

from mpq._support.bounds import check_whole
from mpq.errors import InputError


@final
@dataclass(frozen=True)
class Steps:
    """Which input of a network says the step of every example, and how steps are put together.

    A network that is run again and again (a denoiser, for every time step of a diffusion) reads
    other numbers at other steps. Inputs of its layers have a range for every cluster of steps then
    (Shang et al. 2022, arXiv:2211.15736, calibrate over steps; So et al. 2023, arXiv:2306.02316,
    have ranges by step; Huang et al. 2023, arXiv:2311.16503). Clusters are contiguous, and found in
    the calibration examples (``mpq.quantization.step_borders``).

    Args:
        argument: Name of the argument of ``forward`` that holds them, or its place, 0 for the
            first: a tensor ``[N]`` of numbers, or one number for all examples.
        clusters: How many clusters, ``T``; 1: one range for all steps.
        within: First and last step that the network will be run at: calibration examples that leave
            out much of that are warned of. Default: nothing is known of it.
        trial: Whether formats of inputs have ranges by cluster only if unseen calibration examples
            lose less by it, beyond chance.

    Raises:
        InputError: If there is no such place, fewer than one cluster, or no such range.
    """

    argument: str | int
    clusters: int = 4
    within: tuple[float, float] | None = None
    trial: bool = True

    def __post_init__(self) -> None:
        check_argument(self.argument)
        check_whole("clusters", self.clusters)
        if not isinstance(self.clusters, int) or self.clusters < 1:
            raise InputError(f"steps have at least 1 cluster, a whole number; got {self.clusters}")
        if self.within is None:
            return
        try:
            low, high = map(float, self.within)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"steps are within a first and a last one, such as (0, 999); got {self.within!r}"
            ) from error
        if not (isfinite(low) and isfinite(high) and low < high):
            raise InputError(f"steps go from a finite one up to another; got {low:g} to {high:g}")
        object.__setattr__(self, "within", (low, high))


def check_argument(argument: object) -> None:
    """Refuses what names no argument.

    Raises:
        InputError: If it is neither a name nor a place.
    """
    is_place = isinstance(argument, int) and not isinstance(argument, bool) and argument >= 0
    if not (is_place or (isinstance(argument, str) and argument.isidentifier())):
        raise InputError(
            "steps are read from an argument of forward: its name, such as 'timestep', or its "
            f"place, 0 for the first; got {argument!r}"
        )


@final
@dataclass(frozen=True)
class StepClusters:
    """Which steps share the ranges of inputs.

    Args:
        argument: As in ``Steps``.
        borders: ``[T - 1]`` rising: a step is in the cluster behind all borders up to it.

    Raises:
        InputError: If borders do not rise, or are not finite.

    >>> StepClusters("t", (10.5, 50.0)).of(49), StepClusters("t", (10.5, 50.0)).of(50)
    (1, 2)
    """

    argument: str | int
    borders: tuple[float, ...]

    def __post_init__(self) -> None:
        check_argument(self.argument)
        rises = all(a < b for a, b in zip(self.borders, self.borders[1:], strict=False))
        if not (self.borders and rises and all(map(isfinite, self.borders))):
            raise InputError(
                f"borders between clusters of steps are finite and rise; got {list(self.borders)}"
            )

    @property
    def count(self) -> int:
        """``T``."""
        return len(self.borders) + 1

    def of(self, step: float) -> int:
        """The cluster of a step, from 0 on."""
        return bisect_right(self.borders, step)

    def members(self, steps: Sequence[float]) -> list[list[int]]:
        """``[T]`` of examples with these steps, which are in each cluster."""
        found: list[list[int]] = [[] for _ in range(self.count)]
        for place, step in enumerate(steps):
            found[self.of(step)].append(place)
        return found

    def spelled(self, cluster: int) -> str:
        """A cluster for people: its number, and which steps.

        >>> StepClusters("t", (10.5, 50.0)).spelled(1)
        'cluster 1 (steps from 10.5 to below 50)'
        """
        parts = [f"from {self.borders[cluster - 1]:g}"] if cluster else []
        parts += [f"to below {self.borders[cluster]:g}"] if cluster < self.count - 1 else []
        return f"cluster {cluster} (steps {' '.join(parts)})"

"""The range that a format's grid covers, and the interface of what chooses it.

torch is imported only where tensors come: an assignment names its range method, and its file is
read without torch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, ClassVar, final

from mpq._support.bounds import Bounded
from mpq.errors import InputError
from mpq.quantization.input_codes import MAX_OCTAVES
from mpq.quantization.number_format import NumberFormat

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class ActivationRange:
    """Calibrated range of a layer's input: what a static format needs.

    Args:
        low: Smallest number that is represented.
        high: Largest number that is represented.
        octaves: How often the scale of a twin format's finer range is halved.
        channels: Range of each input channel, where channels have scales.
        first: Range of the first position of sequences, where it has one of its own.
        steps: ``[T]`` ranges for each cluster of a diffusion's steps, where these have their own;
            all else is of all steps then.

    Raises:
        InputError: If an end is not finite, or they are the wrong way round, or octaves are not
            between 0 and 15, or a cluster of steps has clusters.
    """

    low: float
    high: float
    octaves: int = 0
    channels: tuple[tuple[float, float], ...] = ()
    first: tuple[float, float] | None = None
    steps: "tuple[ActivationRange, ...]" = ()

    def __post_init__(self) -> None:
        # Also false for nan, which is neither above nor below.
        if not -inf < self.low <= self.high < inf:
            raise InputError(
                f"a range goes from a finite number up to another; got {self.low} to {self.high}"
            )
        if not 0 <= self.octaves <= MAX_OCTAVES:
            raise InputError(f"a scale is halved 0 to {MAX_OCTAVES} times; got {self.octaves}")
        for low, high in (*self.channels, *([] if self.first is None else [self.first])):
            ActivationRange(low, high)
        if any(each.steps for each in self.steps):
            raise InputError("a cluster of steps has one range, and no clusters")

    @property
    def with_zero(self) -> "ActivationRange":
        """The range that a grid of it covers: zeros of padding and of a ReLU have to stay 0."""
        return replace(self, low=min(self.low, 0.0), high=max(self.high, 0.0))

    @property
    def extras(self) -> tuple[object, ...]:
        """What it says besides both ends, if anything."""
        return tuple(x for x in (self.octaves, self.channels, self.first, self.steps) if x)


class RangeMethod(Bounded, ABC):
    """Chooses the range that a format's grid covers; numbers beyond it saturate.

    Weights and calibrated activations go through the same method: a row of a weight is whatever
    shares a scale, an activation is one row of what was observed of it.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    reads_extremes_only: ClassVar[bool] = False
    """Whether the smallest and largest number of a row suffice; then only these are observed."""

    reads_gradients: ClassVar[bool] = False
    """Whether numbers of inputs count by squared gradients: see ``weighted_ends``."""

    @abstractmethod
    def ends(
        self, rows: "Tensor", number: NumberFormat, symmetric: bool
    ) -> tuple["Tensor", "Tensor"]:
        """Range of each row for a format.

        Args:
            rows: ``[O, K]``, floating point; the numbers of a row share a scale.
            number: A format that needs a scale.
            symmetric: Whether zero is the middle.

        Returns:
            ``[O]`` low and ``[O]`` high, float32.
        """

    def fraction_ends(self, rows: "Tensor", number: NumberFormat) -> tuple["Tensor", "Tensor"]:
        """Range of each row for integers whose zero point is a fraction, and need not hold 0.

        Args:
            rows: As in ``ends``.
            number: An integer format.
        """
        rows = rows.float()
        # Around their middle, so that a shrunken range is not moved towards 0.
        middle = (rows.amin(dim=1) + rows.amax(dim=1)) / 2
        low, high = self.ends(rows - middle[:, None], number, False)
        return low + middle, high + middle

    def weighted_ends(
        self,
        rows: "Tensor",
        weights: "Tensor",  # noqa: ARG002
        number: NumberFormat,
        symmetric: bool,
    ) -> tuple["Tensor", "Tensor"]:
        """The same where some numbers count more; all alike, where a method takes no weights.

        Args:
            rows: As in ``ends``.
            weights: ``[O, K]``, at least 0.
            number: As in ``ends``.
            symmetric: As in ``ends``.
        """
        return self.ends(rows, number, symmetric)

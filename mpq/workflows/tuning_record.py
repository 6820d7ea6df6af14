"""What became of tuning an answer."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import final


@final
@dataclass(frozen=True)
class TuningRecord:
    """What tuning gave, whether or not the answer has it.

    Args:
        what: What was tuned, as ``mpq.TUNINGS`` spells it.
        is_kept: Whether the answer has it.
        why: Why not; empty: it has.
        share: Of the calibration examples, that the search kept from rounding and prices for this;
            0: it kept none, and held-out examples take their place.
        num_choosing: Unseen examples that chose the epoch.
        num_deciding: Others of them, that decided whether it is kept.
        loss: What the tuned network loses on these, in the metric's unit; ``None``: no epoch was
            better than none.
        loss_before: What it lost there before.
        epochs: Losses on the examples that chose: before, and after each epoch.
        best: Which of them was taken.
        num_measured: Held-out examples that a tuned answer is measured on, which nothing was chosen
            or decided by.
        left: Layers and vectors that are not tuned, and why.
        still: Layers whose scales alone are tuned where codes are, and why.
    """

    what: str
    is_kept: bool
    why: str = ""
    share: float = 0.0
    num_choosing: int = 0
    num_deciding: int = 0
    loss: float | None = None
    loss_before: float | None = None
    epochs: tuple[float, ...] = ()
    best: int = 0
    num_measured: int = 0
    left: Mapping[str, str] = field(default_factory=dict)
    still: Mapping[str, str] = field(default_factory=dict)

    def sentences(self, unit: str) -> Iterator[str]:
        """What people should know.

        Args:
            unit: Of the losses.
        """
        told = "kept" if self.is_kept else f"not kept: {self.why}"
        if self.loss is not None and self.loss_before is not None:
            told += (
                f"; {self.num_deciding} unseen examples lose {self.loss:.3g} {unit} with it, "
                f"{self.loss_before:.3g} without (epoch {self.best} of {len(self.epochs) - 1}, "
                f"chosen by {self.num_choosing} others)"
            )
        elif self.epochs:
            told += (
                f"; {self.num_choosing} unseen examples lose {self.epochs[0]:.3g} {unit} without "
                f"it, {min(self.epochs[1:], default=self.epochs[0]):.3g} after the best epoch"
            )
        yield f"tuning ({self.what}) {told}"
        if not self.share and self.num_deciding:
            yield (
                f"these are {self.num_choosing + self.num_deciding} of the held-out examples; what "
                f"is measured of a tuned answer is measured on the other {self.num_measured}"
            )
        for what, whys in (("not tuned", self.left), ("scales alone are tuned", self.still)):
            if whys:
                counts = Counter(whys.values())
                yield f"{what}: " + "; ".join(f"{n}, as {why}" for why, n in counts.items())

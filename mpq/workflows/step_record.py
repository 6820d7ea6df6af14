"""What a result says of the steps of a diffusion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, final

from mpq.quantization.steps import StepClusters


@final
@dataclass(frozen=True)
class StepRecord:
    """What became of the steps of a search.

    Args:
        clusters: Which steps share ranges.
        num_calibration: ``[T]`` calibration examples of each cluster.
        num_held_out: ``[T]`` held-out examples of each.
        shared: Layers whose inputs have one range for all steps, as their rows are not those of
            examples.
        unhelped: Formats of inputs, such as ``a8``, that have one range for all steps, as unseen
            examples did not say that several help, and why.
    """

    clusters: StepClusters
    num_calibration: tuple[int, ...]
    num_held_out: tuple[int, ...]
    shared: tuple[str, ...] = ()
    unhelped: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of ``dataclasses.asdict``, of an object that fits the schema."""
        clusters = StepClusters(data["clusters"]["argument"], tuple(data["clusters"]["borders"]))
        counts = tuple(data["num_calibration"]), tuple(data["num_held_out"])
        return cls(clusters, *counts, tuple(data["shared"]), dict(data["unhelped"]))

    @property
    def sentences(self) -> tuple[str, ...]:
        """What people should know."""
        counts = ", ".join(
            f"{self.clusters.spelled(t)}: {count} calibration examples, {held_out} held out"
            for t, (count, held_out) in enumerate(
                zip(self.num_calibration, self.num_held_out, strict=True)
            )
        )
        found = [
            f"steps are in {self.clusters.count} clusters, for which inputs have ranges; {counts}"
        ]
        if self.unhelped:
            told = "; ".join(f"{name} ({why})" for name, why in self.unhelped.items())
            found.append(f"one range for all steps in these formats: {told}")
        if self.shared:
            found.append(f"one range for all steps, as examples share rows: {_some(self.shared)}")
        return tuple(found)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

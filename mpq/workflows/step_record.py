"""What a result says of the steps of a diffusion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """

    clusters: StepClusters
    num_calibration: tuple[int, ...]
    num_held_out: tuple[int, ...]
    shared: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of ``dataclasses.asdict``, of an object that fits the schema."""
        clusters = StepClusters(data["clusters"]["argument"], tuple(data["clusters"]["borders"]))
        counts = (tuple(data[name]) for name in ("num_calibration", "num_held_out", "shared"))
        return cls(clusters, *counts)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What people should know."""
        counts = ", ".join(
            f"{self.clusters.spelled(t)}: {count} calibration examples, {held_out} held out"
            for t, (count, held_out) in enumerate(
                zip(self.num_calibration, self.num_held_out, strict=True)
            )
        )
        found = [f"inputs have ranges for each of {self.clusters.count} clusters; {counts}"]
        if self.shared:
            found.append(f"one range for all steps, as examples share rows: {_some(self.shared)}")
        return tuple(found)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

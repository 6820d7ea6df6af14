"""Assignments and what each was measured to lose: a benchmark for whatever predicts losses."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, final

from mpq._support import schema_versions
from mpq._support.files import write_files
from mpq._support.json_object import (
    json_object,
    known,
    measured_loss,
    read_as,
    require_version,
)
from mpq._support.schema import read_schema, validate
from mpq.errors import FileFormatError

if TYPE_CHECKING:
    import pandas as pd

RANDOM: Final = "random"
"""Shape of an assignment that was drawn."""
_WHAT: Final = "benchmark of measured assignments"


@final
@dataclass(frozen=True)
class MeasuredAssignment:
    """One assignment.

    Args:
        limit: The limit that it is near, as it was written.
        shape: ``random``, or how its bits run along the network, such as ``rising``.
        columns: ``[L]`` a layer's precision each, as its place among the candidates.
        loss: Measured on held-out examples, in the benchmark's unit.
        accuracy: Measured there; ``None`` without targets.
    """

    limit: str
    shape: str
    columns: tuple[int, ...]
    loss: float
    accuracy: float | None


@final
@dataclass(frozen=True)
class LossBenchmark:
    """What ``mpq compare --save-bench`` writes.

    Args:
        fingerprint: Of the network's layers, which tells it from others.
        layers: ``[L]`` names.
        candidates: ``[B]`` precisions.
        unit: Of the losses.
        max_loss: Assignments that lose more count in no correlation.
        num_held_out: Examples that losses were measured on.
        rows: The assignments.
    """

    fingerprint: str
    layers: tuple[str, ...]
    candidates: tuple[str, ...]
    unit: str
    max_loss: float
    num_held_out: int
    rows: tuple[MeasuredAssignment, ...]

    @property
    def counted(self) -> tuple[MeasuredAssignment, ...]:
        """Those that lose no more than ``max_loss``."""
        return tuple(row for row in self.rows if row.loss <= self.max_loss)

    def table(self) -> "pd.DataFrame":
        """A row for every assignment, with a column of precisions for every layer."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "limit": row.limit,
                    "shape": row.shape,
                    f"measured_{self.unit}": row.loss,
                    "measured_accuracy": row.accuracy,
                    **{
                        name: self.candidates[column]
                        for name, column in zip(self.layers, row.columns, strict=True)
                    },
                }
                for row in self.rows
            ]
        )

    def to_json(self) -> str:
        """Everything, a line for every assignment."""
        head = known({"schema_version": schema_versions.LOSS_BENCHMARK, **asdict(self)})
        rows = ",\n  ".join(json.dumps(row) for row in head.pop("rows"))
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        return "{\n" + ",\n".join([*lines, f' "rows": [\n  {rows}\n ]']) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From ``to_json``.

        Raises:
            FileFormatError: If it is no such file, or its parts do not fit together.
        """
        data = json_object(text, _WHAT)
        require_version(data, _WHAT, schema_versions.LOSS_BENCHMARK)
        validate(data, read_schema("mpq.report", "loss_benchmark.schema.json"), _WHAT)
        del data["schema_version"]
        lists = {key: tuple(data[key]) for key in ("layers", "candidates")}
        rows, most = tuple(map(_row, data["rows"])), measured_loss(data["max_loss"])
        found = cls(**{**data, **lists, "rows": rows, "max_loss": most})
        for row in found.rows:
            if len(row.columns) != len(found.layers) or max(row.columns) >= len(found.candidates):
                raise FileFormatError(
                    f"not a {_WHAT}: a row has the columns {list(row.columns)}, where there are "
                    f"{len(found.layers)} layers and {len(found.candidates)} candidates"
                )
        return found

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """From a file.

        Raises:
            FileFormatError: If it cannot be read, or is no such file; names it.
        """
        return read_as(Path(path), cls.from_json)

    def save(self, path: Path | str) -> Path:
        """Writes the JSON.

        Raises:
            OutputError: If it cannot be written.
        """
        path = Path(path)
        return write_files(path.parent, {path.name: self.to_json().encode()})[0]


def _row(data: dict[str, Any]) -> MeasuredAssignment:
    read = {"columns": tuple(data["columns"]), "loss": measured_loss(data["loss"])}
    return MeasuredAssignment(**{**data, **read})

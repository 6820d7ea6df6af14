"""What evolving proxies found: a formula, how well it ranks, and how it was come by."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self, final

from mpq._support import schema_versions
from mpq._support.files import write_files
from mpq._support.json_object import (
    json_object,
    known,
    number_or_nan,
    read_as,
    require_version,
)
from mpq._support.schema import read_schema, validate

_WHAT: Final = "evolved proxy"


@final
@dataclass(frozen=True)
class EvolvedProxy:
    """The answer of ``evolve_proxy``.

    Args:
        formula: For ``zero-cost:formula=``.
        labels: Whose labels its gradients were taken for.
        spearman: Its rank correlation with every benchmark, in their order.
        known: Formula of a handcrafted proxy to the same of it; evolution begins at these.
        best: Mean rank correlation of the best after every generation.
        num_tried: Formulas whose correlation was looked at.
        screened: Reason to how many were left out for it before that.
        seed: Of every draw.
    """

    formula: str
    labels: str
    spearman: tuple[float, ...]
    known: Mapping[str, tuple[float, ...]]
    best: tuple[float, ...]
    num_tried: int
    screened: Mapping[str, int]
    seed: int

    @property
    def estimator(self) -> str:
        """As ``--sensitivity`` takes it."""
        labels = "" if self.labels == "sampled" else f",labels={self.labels}"
        return f"zero-cost:formula={self.formula}{labels}"

    def to_json(self) -> str:
        """Everything, and the estimator's spelling; null where a formula says nothing.

        ``evolved_proxy.schema.json`` describes it.
        """
        version = {"schema_version": schema_versions.EVOLVED_PROXY}
        data = {**version, "estimator": self.estimator, **asdict(self)}
        return json.dumps(known(data), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of ``to_json``.

        Raises:
            FileFormatError: If the text is no such file, or of another version.
        """
        data = json_object(text, _WHAT)
        require_version(data, _WHAT, schema_versions.EVOLVED_PROXY)
        validate(data, read_schema("mpq.report", "evolved_proxy.schema.json"), _WHAT)
        del data["schema_version"], data["estimator"]
        spearman, best = _numbers(data["spearman"]), _numbers(data["best"])
        known_ones = {formula: _numbers(values) for formula, values in data["known"].items()}
        return cls(**{**data, "spearman": spearman, "best": best, "known": known_ones})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads what ``save`` wrote.

        Raises:
            FileFormatError: If there is no such file, or it is another one.
        """
        return read_as(Path(path), cls.from_json)

    def save(self, folder: Path | str) -> list[Path]:
        """Writes proxy.json.

        Raises:
            OutputError: If the folder cannot be written to.
        """
        return write_files(Path(folder), {"proxy.json": self.to_json().encode()})


def _numbers(values: list[Any]) -> tuple[float, ...]:
    return tuple(map(number_or_nan, values))

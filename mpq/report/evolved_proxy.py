"""What evolving proxies found: a formula, how well it ranks, and how it was come by."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from mpq._support.files import write_files
from mpq._support.json_object import known


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
        """Everything, and the estimator's spelling; null where a formula says nothing."""
        return json.dumps(known({"estimator": self.estimator, **asdict(self)}), indent=1) + "\n"

    def save(self, folder: Path | str) -> list[Path]:
        """Writes proxy.json.

        Raises:
            OutputError: If the folder cannot be written to.
        """
        return write_files(Path(folder), {"proxy.json": self.to_json().encode()})

"""Calls of a score that a comparison keeps beside what else it measures."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from mpq._support.rows import Rows, remember
from mpq.network.network import Network
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity.estimation import Estimation, ScoreDrop


@final
@dataclass(frozen=True, eq=False)
class KeptCalls:
    """Drops of a score, of which one estimator asks; each is kept as soon as it is known.

    Args:
        rows: Where they are kept.
        name: Of the estimator, and of the score where it asks several.
        drop: The score's.
    """

    rows: Rows
    name: str
    drop: ScoreDrop

    def __call__(
        self, network: Network, quantizer: Quantizer, precisions: Mapping[str, Precision]
    ) -> float:
        """See ``ScoreDrop``."""
        chosen = ", ".join(f"layer {name} {p}" for name, p in sorted(precisions.items()))

        def ask() -> dict[str, float]:
            return {"drop": self.drop(network, quantizer, precisions)}

        found: dict[str, Any] = remember(self.rows, f"score by {self.name}, {chosen}", ask)
        return float(found["drop"])


def with_kept_calls(on: Estimation, rows: Rows, estimator: str) -> Estimation:
    """The same question, of whose scores what is known is kept in rows.

    An estimator knows nothing of what another one asked: each takes its own time.
    """
    own, by_name = on.score_drop, on.named_drop

    def named(name: str) -> ScoreDrop:
        assert by_name is not None
        return KeptCalls(rows, f"{estimator}, {name}", by_name(name))

    return replace(
        on,
        score_drop=None if own is None else KeptCalls(rows, estimator, own),
        named_drop=None if by_name is None else named,
    )

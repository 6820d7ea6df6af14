"""What a search was asked for beside its task, as its result says it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

from mpq.problem.limits import Limit
from mpq.workflows.objective import Objective


@final
@dataclass(frozen=True)
class Asked:
    """Limits and objective, whether a command or a call named them.

    Args:
        limits: Resource to the amount as it was written, as ``mpq.search`` takes it; of what was
            minimised the amount that was found is a budget of the problem, and no limit here.
        objective: What was made small instead of the loss; ``None``: the loss was.
        safeguard: Whether another answer could take the place of the solver's.
    """

    limits: Mapping[str, float | str]
    objective: Objective | None = None
    safeguard: bool = True

    @classmethod
    def of(cls, limits: Sequence[Limit], objective: Objective | None, safeguard: bool) -> Self:
        """Of a search."""
        return cls({limit.resource: limit.amount for limit in limits}, objective, safeguard)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Self | None:
        """Of result.json; ``None``: an older one, that does not say it."""
        if data is None:
            return None
        objective = data["objective"]
        found = None if objective is None else Objective(**objective)
        return cls(dict(data["limits"]), found, data["safeguard"])

    @property
    def sentences(self) -> Iterator[tuple[str, str]]:
        """A name and a value, for people."""
        limits = ", ".join(f"{name}={amount}" for name, amount in self.limits.items())
        made_small = "the loss" if self.objective is None else self.objective.sentence
        yield "what was made small", made_small
        yield "limits that were asked for", limits or "none"

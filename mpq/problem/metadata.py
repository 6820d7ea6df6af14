"""How an assignment came about: what it says beside its layers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, final


@final
@dataclass(frozen=True)
class UsedBudget:
    """A limit and what the assignment uses of it."""

    resource: str
    unit: str
    limit: float
    used: float


@final
@dataclass(frozen=True)
class UsedRecipe:
    """The published system that an assignment was found by, as ``mpq recipes`` lists it.

    Args:
        name: Of the recipe.
        version: Of the recipe: another one makes other choices.
        overrides: What was chosen otherwise than by the recipe, a sentence each.
        tuning_order: Layers in the order in which the paper fine-tunes them; empty: it has none.
    """

    name: str
    version: int
    overrides: tuple[str, ...] = ()
    tuning_order: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What was followed, and what was not, for people."""
        told = f"recipe {self.name}, version {self.version}"
        if self.overrides:
            told += f", but for {'; '.join(self.overrides)}"
        if self.tuning_order:
            told += f"; to be fine-tuned in this order: {', '.join(self.tuning_order[:5])}"
            told += f" and {len(self.tuning_order) - 5} more" if self.tuning_order[5:] else ""
        return told

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Self | None:
        """Inverse of ``asdict``; ``None``: there was none."""
        if data is None:
            return None
        lists = {name: tuple(data.get(name, ())) for name in ("overrides", "tuning_order")}
        return cls(data["name"], data["version"], **lists)


@final
@dataclass(frozen=True)
class Metadata:
    """How an assignment came about; everything may be unknown.

    Args:
        device: Name of the hardware profile.
        batch_size: Examples at once that latency and energy were priced for.
        phase: That resources were priced for: ``prefill``, ``decode``, or neither.
        tokens: Length of the prompt that resources were priced for; unset: as traced.
        budgets: Every limit, with what the assignment uses of it.
        estimator: Name of the sensitivity estimator.
        predicted_loss: By the estimator, in ``loss_unit``.
        loss_unit: Unit of ``predicted_loss`` and ``bound``, usually nats.
        measured_loss: On held-out examples, in ``measured_unit``.
        measured_unit: Unit of the metric: nats for the KL divergence.
        measured_accuracy: On held-out examples with targets.
        score: Name of the user's own score.
        measured_score: What it says of the network.
        num_held_out: How many examples those were.
        solver: Name of the solver, with its backend: ``ilp (HiGHS)``.
        solver_status: How it ended: a member of ``Status``, in lower case.
        bound: Proved lower bound of the predicted loss.
        gap: Relative distance of the predicted loss from the bound.
        seed: Seed of estimator and solver.
        allow_randomness: Where the network's generators started in every pass, if it draws.
        metric: How outputs were compared, as ``METRICS.build`` takes it.
        mpq_version: Version of mpq that found it.
        torch_version: Version of torch that it was found with.
        recipe: The published system that it was found by; unset: by none.
    """

    device: str | None = None
    batch_size: int = 1
    phase: str | None = None
    tokens: int | None = None
    budgets: tuple[UsedBudget, ...] = ()
    estimator: str | None = None
    predicted_loss: float | None = None
    loss_unit: str | None = None
    measured_loss: float | None = None
    measured_unit: str | None = None
    measured_accuracy: float | None = None
    score: str | None = None
    measured_score: float | None = None
    num_held_out: int | None = None
    solver: str | None = None
    solver_status: str | None = None
    bound: float | None = None
    gap: float | None = None
    seed: int | None = None
    allow_randomness: int | None = None
    metric: str | None = None
    mpq_version: str | None = None
    torch_version: str | None = None
    recipe: UsedRecipe | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found, of_few = asdict(self), ("recipe", "score", "measured_score")
        # Files without them are read by earlier versions as well.
        return {name: x for name, x in found.items() if x is not None or name not in of_few}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of ``to_dict``, of what the schema describes."""
        budgets = tuple(UsedBudget(**budget) for budget in data["budgets"])
        recipe = UsedRecipe.from_dict(data.get("recipe"))
        return cls(**{**data, "budgets": budgets, "recipe": recipe})

"""How an assignment came about, for who reads its file."""

from dataclasses import dataclass
from typing import final


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

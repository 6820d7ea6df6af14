"""What callbacks are told of a result: the event that has it, with flat numbers for tables."""

from typing import TypeVar

from mpq._support.events import tell
from mpq.callbacks.results import Finished
from mpq.hardware_profiles import NetworkProfile
from mpq.problem.metadata import Metadata
from mpq.report.estimators import EstimatorComparison
from mpq.report.evolved_proxy import EvolvedProxy
from mpq.report.frontier import Frontier
from mpq.report.recipes import RecipeComparison
from mpq.workflows.result import SearchResult

Result = TypeVar(
    "Result", SearchResult, Frontier, EstimatorComparison, RecipeComparison, NetworkProfile,
    EvolvedProxy,
)  # fmt: skip


def announced(result: Result) -> Result:
    """The same result, of which whoever listens was told.

    Raises:
        CallbackError: If one of them fails.
    """
    tell(Finished(result, *_flat(result)))
    return result


def _flat(
    result: SearchResult
    | Frontier
    | EstimatorComparison
    | RecipeComparison
    | NetworkProfile
    | EvolvedProxy,
) -> tuple[dict[str, str | int | float], dict[str, float]]:
    """Settings and metrics."""
    if isinstance(result, SearchResult):
        return _of_search(result.assignment.metadata)
    if isinstance(result, Frontier):
        settings: dict[str, str | int | float] = {"resource": result.resource}
        return settings, {"num_points": len(result.points), "hypervolume": result.hypervolume}
    if isinstance(result, NetworkProfile):
        seconds = result.latency.values[:, 0].sum() + result.latency.constant
        return dict(result.machine), {f"latency_s/{result.latency.precisions[0]}": float(seconds)}
    if isinstance(result, EvolvedProxy):
        ranks = {f"spearman/{place}": value for place, value in enumerate(result.spearman)}
        return {"formula": result.formula, "labels": result.labels, "seed": result.seed}, {
            "num_tried": result.num_tried,
            **ranks,
        }
    counts: dict[str, str | int | float] = {
        "num_calibration": result.num_calibration,
        "num_held_out": result.num_held_out,
    }
    if isinstance(result, RecipeComparison):
        return counts, {f"loss/{row.recipe}/{row.limit}": row.divergence for row in result.rows}
    found = result.table().set_index("estimator")["spearman"]
    return counts, {f"spearman/{name}": float(x) for name, x in found.items()}


def _of_search(made: Metadata) -> tuple[dict[str, str | int | float], dict[str, float]]:
    settings = {
        "device": made.device,
        "estimator": made.estimator,
        "solver": made.solver,
        "recipe": made.recipe and made.recipe.name,
        "seed": made.seed,
        "batch_size": made.batch_size,
        **{f"limit/{budget.resource}_{budget.unit}": budget.limit for budget in made.budgets},
    }
    metrics = {
        "predicted_loss": made.predicted_loss,
        "measured_loss": made.measured_loss,
        "measured_accuracy": made.measured_accuracy,
        "measured_score": made.measured_score,
        **{f"used/{budget.resource}_{budget.unit}": budget.used for budget in made.budgets},
    }
    return (
        {name: x for name, x in settings.items() if x is not None},
        {name: x for name, x in metrics.items() if x is not None},
    )

"""What `mpq compare` was asked for: estimators on random assignments, or whole recipes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from mpq.cli import options as o
from mpq.cli.methods import written_out
from mpq.cli.task_options import DEMO_COMPARED_LIMITS, TaskOptions
from mpq.cli.watching import Kept, kept_in
from mpq.workflows import defaults

if TYPE_CHECKING:
    from mpq.report.estimators import EstimatorComparison
    from mpq.report.recipes import RecipeComparison


@dataclass(frozen=True, eq=False)
class CompareOptions:
    """Which estimators or recipes are compared, and on what."""

    asked: TaskOptions = field(default_factory=TaskOptions)
    recipes: o.Recipes = None
    estimators: o.Estimators = None
    solver: o.SolverName = defaults.SOLVER
    random: o.RandomAssignments = defaults.NUM_RANDOM
    max_loss: o.MaxLoss = defaults.MAX_COMPARED_LOSS
    refine: o.Refine = 0
    save_bench: o.SaveBench = None
    output: o.Output = Path("mpq-compare")
    # No option: see ``MethodOptions``.
    context: typer.Context = cast("typer.Context", None)  # noqa: RUF009

    @property
    def _limits(self) -> list[str]:
        """As given; the built-in network comes with some."""
        return self.asked.limit or (DEMO_COMPARED_LIMITS if self.asked.source.is_demo else [])

    @property
    def kept(self) -> list[Kept]:
        """What an interruption leaves on disk."""
        if self.recipes:
            return kept_in(self.asked.ranges.cache)
        from mpq.workflows.compare import JOURNAL

        # Reports of an earlier comparison may lie beside it.
        return [Kept("what was measured so far", self.output / JOURNAL)]

    def run(self) -> "EstimatorComparison":
        """Runs the comparison."""
        from mpq.workflows.compare import compare

        return compare(
            self.asked.task(self.asked.device),
            self._limits,
            estimators=self.estimators or defaults.ESTIMATORS_COMPARED,
            solver=self.solver,
            num_random=self.random,
            max_loss=self.max_loss,
            refine=self.refine,
            # Measurements are kept there as they are made: the same command again resumes.
            folder=self.output,
            save_bench=self.save_bench,
        )

    def run_recipes(self) -> "RecipeComparison":
        """Searches by every recipe, and by default.

        Raises:
            InputError: If there are options of comparing estimators.
        """
        from mpq.errors import InputError
        from mpq.recipes import recipe_of
        from mpq.workflows.compare_recipes import compare_recipes

        names = ("estimators", "solver", "random", "max_loss", "refine", "save_bench")
        if any(getattr(self, name) != getattr(CompareOptions, name) for name in names):
            raise InputError(
                "--recipe compares whole searches: --estimator, --solver, --random, --max-loss, "
                "--refine and --save-bench are for comparing estimators"
            )
        task = self.asked.task(self.asked.device)
        # Data are the same for all, and a recipe that makes its own is asked for that.
        given = written_out(self.context) - {"calibration"}
        settings = {name for recipe in self.recipes or () for name in recipe_of(recipe).settings}
        return compare_recipes(
            task, self._limits, self.recipes or (), keep=sorted(given & settings)
        )

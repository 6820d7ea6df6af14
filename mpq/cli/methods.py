"""How a search is done, by options of its own or by those of a recipe."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import typer

from mpq.cli import options as o
from mpq.workflows import defaults
from mpq.workflows.task import Task

if TYPE_CHECKING:
    from mpq.workflows.follow import Way

_SETTINGS = {"precisions": "candidates", "data": "calibration", "transform": "transforms"}
"""Options whose setting is called otherwise."""


@dataclass(frozen=True, eq=False)
class MethodOptions:
    """Estimator and solver, or the recipe that has them."""

    recipe: o.RecipeName = None
    sensitivity: o.Sensitivity = defaults.ESTIMATOR
    solver: o.SolverName = defaults.SOLVER
    refine: o.Refine = 0
    safeguard: o.Safeguard = True
    # No option: typer gives a command its context, which tells what was written out.
    context: typer.Context = cast("typer.Context", None)  # noqa: RUF009

    def way(self, task: Task, data: str | None = None) -> "Way":
        """How the task is searched.

        Args:
            task: As asked for.
            data: What ``--data`` names.

        Raises:
            InputError: If there is no such recipe; its subclasses say what.
        """
        from mpq.recipes import recipe_of
        from mpq.workflows.follow import USERS, Way, follow
        from mpq.workflows.own_examples import source_of

        asked = Way(task, self.sensitivity, self.solver, self.safeguard, self.refine)
        if self.recipe is None:
            return asked
        asked = replace(asked, examples=source_of(data or "") or USERS)
        given = written_out(self.context)
        own = recipe_of(self.recipe).settings
        return follow(self.recipe, asked, [name for name in own if name in given])

    @property
    def makes_examples(self) -> bool:
        """Whether the recipe makes the calibration examples.

        Raises:
            UnknownNameError: If there is no such recipe.
        """
        from mpq.recipes import recipe_of

        return self.recipe is not None and bool(recipe_of(self.recipe).source)


def written_out(context: typer.Context | None) -> frozenset[str]:
    """Settings that the user gave, as by default or not."""
    if context is None:
        return frozenset()
    given = (
        name
        for name in context.params
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    )
    return frozenset(_SETTINGS.get(name, name) for name in given)

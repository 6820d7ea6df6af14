"""Published systems beside each other and beside our default, on the user's own network."""

import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from mpq._support.events import Callback, listening
from mpq._support.paired_gains import standard_error
from mpq._support.phases import recorded_phases
from mpq._support.progress import track
from mpq.callbacks.plans import planned_as_whole
from mpq.errors import InputError, MpqError
from mpq.problem.limits import Limit, Limits, written_limits
from mpq.recipes import recipe_of
from mpq.report.recipe_rows import DEFAULT, RecipeRow
from mpq.report.recipes import RecipeComparison
from mpq.workflows.comparison_forecast import RECIPES, tell_recipes
from mpq.workflows.follow import Way, follow
from mpq.workflows.made_here import made_here
from mpq.workflows.outcome import announced
from mpq.workflows.recipe_calls import recipe_calls
from mpq.workflows.result import SearchResult
from mpq.workflows.search import searched
from mpq.workflows.setup import Prepared
from mpq.workflows.task import Task, check_task


def compare_recipes(
    task: Task,
    limits: Limits,
    recipes: Sequence[str],
    callbacks: Sequence[Callback] = (),
    keep: Collection[str] = (),
) -> RecipeComparison:
    """Searches by every recipe and by default within every limit, and measures all alike.

    The answers are measured on the same held-out examples. What a recipe cannot do is its result.

    Args:
        task: As in ``mpq.search``; what it has otherwise than by default stands for all.
        limits: Each a budget of its own, as in ``mpq.compare``.
        recipes: Names of ``mpq.recipes.RECIPES``; one that is named twice is run once.
        callbacks: Who is told what happens meanwhile (``mpq.callbacks``): none changes the answer.
        keep: Settings that stand for all recipes though they are as by default, as in
            ``mpq.search``; of a recipe that does not settle one it means nothing.

    Raises:
        InputError: If there is no limit or no recipe, or something given cannot be used.
        InfeasibleError: If the default cannot meet a limit.
    """
    check_task(task, "compare")
    recipes = tuple(dict.fromkeys(recipes))
    for name in recipes:
        recipe_of(name)
    parsed = dict(written_limits(limits))
    if not parsed or not recipes:
        raise InputError("give at least one limit and one recipe to compare")
    with listening(callbacks), recorded_phases() as phases:
        # Split once: a recipe with examples of its own would hold out others than the rest.
        prepared = Prepared.untransformed(task)
        calibration, held_out = prepared.calibration, prepared.held_out
        task = replace(task, calibration=calibration, held_out=held_out)
        asked = [(text, name) for text in parsed for name in (DEFAULT, *recipes)]
        kinds: list[str | None] = [None, *recipes]
        calls = recipe_calls(prepared, task, kinds, list(parsed.values()), keep)
        tell_recipes(prepared, parsed[asked[0][0]], Way(task).method(), len(asked), calls)
        with planned_as_whole():
            rows = [
                _row(task, text, parsed[text], name, keep) for text, name in track(asked, RECIPES)
            ]
        unit, counts = prepared.network.metric.unit, (calibration, held_out)
        made = made_here(phases)
        seen, unseen = (x.num_examples for x in counts)
        return announced(RecipeComparison(tuple(rows), unit, seen, unseen, made))


def _row(task: Task, text: str, limit: Limit, name: str, keep: Collection[str]) -> RecipeRow:
    start = time.perf_counter()
    try:
        way = Way(task) if name == DEFAULT else follow(name, Way(task), keep)
        with way.naming():
            result = way.noted(searched(way.task, [limit], way.method())[0])
    except MpqError as error:
        if name == DEFAULT:
            raise
        return RecipeRow(name, text, error=str(error))
    seconds = time.perf_counter() - start
    measured, used = result.measured, result.provenance.recipe
    return RecipeRow(
        name, text, measured.divergence, standard_error(measured.by_example), measured.accuracy,
        _costs(result), seconds, () if used is None else used.overrides, score=measured.score,
    )  # fmt: skip


def _costs(result: SearchResult) -> dict[str, float]:
    """Column to what the answer uses of every budget."""
    columns = result.columns
    return {f"{b.resource}_{b.unit}": b.used(columns) for b in result.problem.budgets}

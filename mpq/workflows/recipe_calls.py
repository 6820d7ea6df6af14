"""How often the user's own score is asked in a comparison of recipes."""

from collections import Counter
from collections.abc import Collection, Sequence
from warnings import catch_warnings, simplefilter

from mpq._support.events import unheard
from mpq._support.phases import phase
from mpq.callbacks.plans import PLANNING, is_plan_wanted
from mpq.errors import MpqError
from mpq.problem.limits import Limit
from mpq.workflows.follow import Way, follow
from mpq.workflows.score_calls import OF_ANSWERS, PlannedCalls, ScoreCalls
from mpq.workflows.setup import Prepared
from mpq.workflows.task import Task


def recipe_calls(
    prepared: Prepared,
    task: Task,
    recipes: Sequence[str | None],
    limits: Sequence[Limit],
    keep: Collection[str],
) -> PlannedCalls | None:
    """How often it is asked at most; ``None``: the task has none, or nobody listens.

    Args:
        prepared: The default's, whose judge is clocked.
        task: As it is searched.
        recipes: Names; ``None``: the default.
        limits: Each of which all are searched within.
        keep: As in ``compare_recipes``.
    """
    judge, score = prepared.judges.on_held_out, task.own_score
    if judge is None or score is None or not is_plan_wanted():
        return None
    # Every search asks about the original anew, and one call is clocked before.
    counts = Counter({OF_ANSWERS: int(score.call_s is None)})
    with phase(PLANNING), unheard(), catch_warnings():
        simplefilter("ignore")  # of limits, of which the searches themselves warn
        for name in recipes:
            # No examples are made for a count.
            try:
                way = follow(name, Way(task), [*keep, "calibration"] if name else ())
                each, asked = Prepared.untransformed(way.task), ScoreCalls(score, way.method())
                for limit in limits:
                    constraints = each.constraints([limit])
                    problem = each.indifferent(constraints)
                    counts.update(asked.planned(each, judge, problem).counts)
            except MpqError:  # what a recipe cannot do is its result
                continue
        return PlannedCalls.of(judge, counts)

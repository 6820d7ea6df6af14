"""A recipe and what is asked besides: what is said otherwise than by default stands."""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, final

from mpq.errors import InputError, UnknownNameError
from mpq.problem.metadata import UsedRecipe
from mpq.quantization.kv_cache import KVCache
from mpq.quantization.ranges import Ranges
from mpq.recipes import Recipe, recipe_of
from mpq.recipes.recipe import NEVER
from mpq.sensitivity import SensitivityEstimator
from mpq.solvers import Solver
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.method import Method
from mpq.workflows.objective import Objective
from mpq.workflows.own_examples import own_examples
from mpq.workflows.recipe_errors import naming
from mpq.workflows.result import SearchResult
from mpq.workflows.rules import Rules
from mpq.workflows.task import Task

Estimator: TypeAlias = str | SensitivityEstimator
Solving: TypeAlias = str | Solver
USERS: Final = "the user's examples"
"""What calibration examples are called that no source made."""


@final
@dataclass(frozen=True, eq=False)
class Way:
    """How a task is searched: by its own settings, or by a recipe's.

    Args:
        task: With a recipe, as that has it.
        sensitivity: As in ``mpq.search``.
        solver: As in ``mpq.search``.
        safeguard: As in ``mpq.search``.
        refine: As in ``mpq.search``.
        examples: What the task's calibration examples are, in a word: a source that made them.
        recipe: That is followed; ``None``: none.
        overrides: What is done otherwise than by the recipe.
        own: Settings that are the recipe's.
    """

    task: Task
    sensitivity: Estimator = ESTIMATOR
    solver: Solving = SOLVER
    safeguard: bool = True
    refine: int = 0
    examples: str = USERS
    recipe: Recipe | None = None
    overrides: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()

    def method(self, objective: Objective | None = None) -> Method:
        """Estimator and solver, built.

        Raises:
            InputError: If they do not go together.
        """
        built = Method.of(self.sensitivity, self.solver, self.task.seed, objective, self.refine)
        return replace(built, safeguard=self.safeguard)

    def naming(self) -> AbstractContextManager[None]:
        """Within this block errors name the recipe, and what of it they are about."""
        return nullcontext() if self.recipe is None else naming(self.recipe, self.own)

    def noted(self, result: SearchResult) -> SearchResult:
        """The result, which says by what recipe it was found."""
        if self.recipe is None:
            return result
        order = tuning_order(result) if self.recipe.orders_tuning else ()
        used = UsedRecipe(self.recipe.name, self.recipe.version, self.overrides, order)
        metadata = replace(result.assignment.metadata, recipe=used)
        return replace(
            result,
            assignment=replace(result.assignment, metadata=metadata),
            provenance=replace(result.provenance, recipe=used),
        )


def follow(recipe: str | Recipe | None, way: Way, keep: Collection[str] = ()) -> Way:
    """The same task as a recipe has it.

    What is asked otherwise than by default stands, and is an override that the result names.

    Args:
        recipe: Its name, or the recipe; ``None``: none.
        way: What is asked.
        keep: Settings (``Recipe.settings``) that stand though they are as by default.

    Raises:
        UnknownNameError: If there is no such recipe, or no such setting.
        InputError: If there is a setting to keep and no recipe.
            Settings that do not fit, too: the error names the recipe.
        ModelError: If the recipe makes its own examples, and cannot for this network.
    """
    if recipe is None:
        if keep:
            raise InputError("keep names settings that a recipe leaves alone: give a recipe")
        return way
    recipe = recipe_of(recipe) if isinstance(recipe, str) else recipe
    asked = _asked(way)
    for name in keep:
        if name not in asked:
            raise UnknownNameError("setting of a recipe", name, asked)
    taken, own_names, overrides = dict(asked), set[str](), []
    for name, own in recipe.settings.items():
        is_kept = name in keep or asked[name] != _DEFAULTS.get(name, asked[name])
        if not is_kept:
            taken[name] = own
            own_names.add(name)
        elif asked[name] != own:
            said = DEFAULT if name == "candidates" and asked[name] is None else asked[name]
            overrides.append(f"{name}: {_spelled(said)} instead of {_spelled(own)}")
    if recipe.kv_cache and way.task.kv_cache is None:
        raise InputError(
            f"recipe {recipe.name} is of the key-value cache of a language model: say for how many "
            "tokens (kv_cache=mpq.KVCache(tokens=32768), --kv-tokens 32768)"
        )
    with naming(recipe, own_names):
        task = _task(way.task, taken, "calibration" in own_names)
        if task.kv_cache is not None:
            task = replace(task, kv_cache=_cache(task.kv_cache, taken))
    return Way(
        task, taken["sensitivity"], taken["solver"], taken["safeguard"], taken["refine"],
        way.examples, recipe, tuple(overrides), frozenset(own_names),
    )  # fmt: skip


def tuning_order(result: SearchResult) -> tuple[str, ...]:
    """Layers by what each loses in the answer, the most first."""
    values, columns = result.problem.loss.values, result.columns
    lost = {name: values[row, columns[row]] for row, name in enumerate(result.problem.loss.layers)}
    return tuple(sorted(lost, key=lambda name: -lost[name]))


DEFAULT: Final = "default"
"""How an override calls candidates that are left to us."""
_DEFAULTS: Mapping[str, Any] = {
    **NEVER,
    "sensitivity": ESTIMATOR,
    "solver": SOLVER,
    "candidates": None,
    "weight_range": Ranges.weight,
    "activation_range": Ranges.activation,
    "rounding": Task.rounding,
    "transforms": (),
    "ends": Rules.ends,
    "find_ties": Rules.find_ties,
    "tie": (),
    "tie_blocks": Rules.tie_blocks,
    "tie_inner": Rules.tie_inner,
    "bias_correction": Task.bias_correction,
    "tune": Task.tune,
    "split": Task.split,
    "safeguard": True,
    "allow": (),
    "kv_cache": tuple(map(str, KVCache(1).precisions)),
    "kv_first": KVCache.first,
    "kv_before_rotation": KVCache.before_rotation,
}


_RULES = ("ends", "find_ties", "tie", "tie_blocks", "tie_inner", "allow")
"""Settings that are rules of the task."""


def _asked(way: Way) -> dict[str, Any]:
    """Settings as they are asked for; examples by a word."""
    task = way.task
    given = task.given_precisions
    return {
        "sensitivity": way.sensitivity,
        "solver": way.solver,
        "candidates": None if given is None else tuple(map(str, given)),
        "weight_range": task.ranges.weight,
        "activation_range": task.ranges.activation,
        "rounding": task.rounding,
        "transforms": tuple(task.transforms),
        "ends": None if task.rules.ends is None else str(task.rules.fixed_ends),
        "find_ties": task.rules.find_ties,
        "tie": tuple(task.rules.tie),
        "tie_blocks": task.rules.tie_blocks,
        "tie_inner": task.rules.tie_inner,
        "bias_correction": task.bias_correction,
        "tune": task.tune,
        "split": task.split,
        "safeguard": way.safeguard,
        "calibration": way.examples,
        "refine": way.refine,
        "sequential_rounding": task.sequential_rounding,
        "recalibrate": task.recalibrate,
        "activations": task.activations,
        "allow": tuple((p, tuple(map(str, some))) for p, some in task.rules.allowed),
        **_asked_cache(task.kv_cache),
    }


def _asked_cache(cache: KVCache | None) -> dict[str, Any]:
    """As by default where there is none: whether there has to be one, ``follow`` says."""
    cache = KVCache(1) if cache is None else cache
    return {
        "kv_cache": tuple(map(str, cache.precisions)),
        "kv_first": cache.first,
        "kv_before_rotation": cache.before_rotation,
    }


def _task(task: Task, taken: Mapping[str, Any], own_data: bool) -> Task:
    calibration, held_out = task.calibration, task.held_out
    if own_data:
        # What is given then says the shape of an example, and is measured on.
        held_out = calibration if held_out is None else held_out
        calibration = own_examples(task, taken["calibration"])
    return replace(
        task,
        calibration=calibration,
        held_out=held_out,
        candidates=taken["candidates"],
        transforms=taken["transforms"],
        ranges=Ranges(taken["weight_range"], taken["activation_range"]),
        rules=replace(task.rules, **{name: taken[name] for name in _RULES}),
        **{name: taken[name] for name in ("rounding", "bias_correction", "tune", "split")},
    )


def _cache(cache: KVCache, taken: Mapping[str, Any]) -> KVCache:
    return replace(
        cache,
        candidates=taken["kv_cache"],
        first=taken["kv_first"],
        before_rotation=taken["kv_before_rotation"],
    )


def _spelled(value: Any) -> str:
    if value is None:
        return "none"
    if not isinstance(value, tuple):
        # A predicate is called by its name: where it lies in memory differs from run to run.
        return str(getattr(value, "__qualname__", value))
    pairs = (x if isinstance(x, tuple) else (x,) for x in value)
    return ",".join("=".join(map(_spelled, pair)) for pair in pairs) or "none"

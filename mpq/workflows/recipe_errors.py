"""What went wrong while a recipe was followed, told with what of the recipe it is about."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from mpq.errors import (
    InfeasibleError,
    InputError,
    LimitError,
    PrecisionError,
    ScoreError,
    SolverError,
)
from mpq.recipes import Recipe
from mpq.recipes.recipe import OPTIONS

LAYERS: Final = (
    *("candidates", "ends", "allow", "tie", "tie_blocks", "tie_inner", "split"),
    "kv_cache",
)
"""Settings that say what layers may take."""
_RAISED_IN: Final[Mapping[str, tuple[str, ...]]] = {
    "mpq.workflows.task": LAYERS,
    "mpq.workflows.own_examples": ("calibration",),
    "mpq.network.synthetic": ("calibration",),
    "mpq.sensitivity": ("sensitivity",),
    "mpq.rounding": ("rounding",),
    "mpq.transforms": ("transforms",),
    "mpq.tuning": ("tune",),
    "mpq.solvers": ("solver",),
}
"""Package of a part to the setting that names the part."""


@contextmanager
def naming(recipe: Recipe, own: Collection[str]) -> Iterator[None]:
    """What fails within this block names the recipe, and those of its settings that it is about.

    The error is of the same class. What is wrong with limits, scores, workers or callbacks is no
    matter of a recipe, and stays as it is.

    Args:
        recipe: That is followed.
        own: Settings that are the recipe's, and not given besides.
    """
    try:
        yield
    except (LimitError, ScoreError):
        raise
    except (InputError, InfeasibleError, SolverError) as error:
        about = [name for name in _settings_of(error) if name in own]
        # Some classes are made of more than their text, which therefore is changed in place.
        error.args = (f"recipe {recipe.name}: {error}{_hint(recipe, about)}",)
        raise


def _settings_of(error: Exception) -> tuple[str, ...]:
    """Settings that an error is about.

    Those of the part that raised it: the outermost, where one calls another. Parts are asked by
    workflows and know nothing of recipes, so that only the place tells.
    """
    if isinstance(error, InfeasibleError | PrecisionError):
        return LAYERS
    trace = error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        for package, settings in _RAISED_IN.items():
            if module == package or module.startswith(f"{package}."):
                return settings
        trace = trace.tb_next
    return tuple(name for name in LAYERS if OPTIONS[name] in str(error))


def _hint(recipe: Recipe, about: Collection[str]) -> str:
    """Names settings of the recipe by the options that go before them; empty: there are none."""
    is_said = {name: recipe.settings.get(name) != "none" for name in about}
    told = [recipe.words[name] for name in about if is_said[name] and recipe.words.get(name)]
    if not told:
        return ""
    return f"; the recipe has {' '.join(told)}: what you give yourself goes first"

"""Published systems by their names: each a value in a file of its own, and all of them here."""

from typing import Final

from mpq._support.registry import ValueRegistry
from mpq.errors import UnknownNameError
from mpq.recipes.amq import AMQ
from mpq.recipes.apq import APQ
from mpq.recipes.calibtip import CALIBTIP
from mpq.recipes.evopress import EVOPRESS
from mpq.recipes.hawq import HAWQ
from mpq.recipes.hawq_v2 import HAWQ_V2
from mpq.recipes.hawq_v3 import HAWQ_V3
from mpq.recipes.layer_wise import LAYER_WISE
from mpq.recipes.ohq import OHQ
from mpq.recipes.quantune import QUANTUNE
from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe
from mpq.recipes.simq_nas import SIMQ_NAS
from mpq.recipes.zeroq import ZEROQ

RECIPES: Final[ValueRegistry[Recipe]] = ValueRegistry(
    "recipe",
    (
        HAWQ,
        HAWQ_V2,
        HAWQ_V3,
        ZEROQ,
        CALIBTIP,
        OHQ,
        LAYER_WISE,
        EVOPRESS,
        AMQ,
        QUANTUNE,
        SIMQ_NAS,
        APQ,
    ),
    "mpq.recipes",
)
"""Every recipe, by the name that ``--recipe`` takes."""

__all__ = ["NOT_STATED", "RECIPES", "Choice", "Paper", "Recipe", "recipe_of"]


def recipe_of(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UnknownNameError: If there is none.
    """
    found = RECIPES.get(name)
    if found is None:
        raise UnknownNameError("recipe", name, RECIPES)
    return found

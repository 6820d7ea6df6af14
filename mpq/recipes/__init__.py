"""Published systems by their names: each a value in a file of its own, and all of them here."""

from typing import Final

from mpq._support.registry import ValueRegistry
from mpq.errors import UnknownNameError
from mpq.recipes.adapt import ADAPT
from mpq.recipes.amq import AMQ
from mpq.recipes.apq import APQ
from mpq.recipes.augmenting_hessians import AUGMENTING_HESSIANS
from mpq.recipes.baq import BAQ
from mpq.recipes.calibtip import CALIBTIP
from mpq.recipes.comet import COMET
from mpq.recipes.evopress import EVOPRESS
from mpq.recipes.fast_2_bit import FAST_2_BIT
from mpq.recipes.gradient_ptq import GRADIENT_PTQ
from mpq.recipes.gwq import GWQ
from mpq.recipes.hawq import HAWQ
from mpq.recipes.hawq_v2 import HAWQ_V2
from mpq.recipes.hawq_v3 import HAWQ_V3
from mpq.recipes.kvquant import KVQUANT
from mpq.recipes.layer_wise import LAYER_WISE
from mpq.recipes.lq_lora import LQ_LORA
from mpq.recipes.lrp_qvit import LRP_QVIT
from mpq.recipes.mixdq import MIXDQ
from mpq.recipes.mixllm import MIXLLM
from mpq.recipes.mptq_vit import MPTQ_VIT
from mpq.recipes.ohq import OHQ
from mpq.recipes.pb_llm import PB_LLM
from mpq.recipes.pd_quant import PD_QUANT
from mpq.recipes.ptq1_61 import PTQ1_61
from mpq.recipes.q_vlm import Q_VLM
from mpq.recipes.quantmcu import QUANTMCU
from mpq.recipes.quantune import QUANTUNE
from mpq.recipes.recipe import NOT_STATED, Choice, Paper, Recipe
from mpq.recipes.simq_nas import SIMQ_NAS
from mpq.recipes.spqr import SPQR
from mpq.recipes.squeezellm import SQUEEZELLM
from mpq.recipes.vidit_q import VIDIT_Q
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
        MPTQ_VIT,
        AUGMENTING_HESSIANS,
        PB_LLM,
        PTQ1_61,
        SQUEEZELLM,
        SPQR,
        GWQ,
        BAQ,
        FAST_2_BIT,
        MIXLLM,
        LQ_LORA,
        KVQUANT,
        Q_VLM,
        COMET,
        GRADIENT_PTQ,
        PD_QUANT,
        LRP_QVIT,
        ADAPT,
        MIXDQ,
        VIDIT_Q,
        QUANTMCU,
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

"""Inference by patches: the first layers of a convolutional network, piece by piece of the image.

In: a network and an example. Out: what patches take of memory and arithmetic, and the same output.
"""

from mpq.network.patch_rules import PatchRules
from mpq.network.patches.outliers import OutlierPatches, patch_classes
from mpq.network.patches.plan import PatchPlan
from mpq.network.patches.run import largest_difference, run_in_patches
from mpq.network.patches.search import FoundPatches, find_patches

__all__ = [
    "FoundPatches",
    "OutlierPatches",
    "PatchPlan",
    "PatchRules",
    "find_patches",
    "largest_difference",
    "patch_classes",
    "run_in_patches",
]

"""Which cut and how many patches: the least memory, for a given share of arithmetic done twice."""

from dataclasses import dataclass
from typing import Any, final

from torch import nn

from mpq.errors import InputError
from mpq.network.patch_rules import PatchRules
from mpq.network.patches.chain import Chain
from mpq.network.patches.plan import PatchPlan, Planner
from mpq.network.patches.recording import Recorded


@final
@dataclass(frozen=True)
class FoundPatches:
    """Plans of a network, and the best of them.

    Args:
        plans: Within the share recomputed, the one that holds the least first.
        best: The first of them, if the network holds less by it than without patches.
        whole_ram_bytes: What it holds without.
        num_left_out: Plans that compute more than the share twice.
        end: Why patches go no further than they do; empty: they go to the output.
    """

    plans: tuple[PatchPlan, ...]
    best: PatchPlan | None
    whole_ram_bytes: int
    num_left_out: int
    end: str

    @property
    def frontier(self) -> tuple[PatchPlan, ...]:
        """Plans than which none holds less and computes as little; the least memory first."""
        found: list[PatchPlan] = []
        for plan in self.plans:
            if not found or plan.recomputed_macs < found[-1].recomputed_macs:
                found.append(plan)
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "whole_ram_bytes": self.whole_ram_bytes,
            "best": None if self.best is None else self.best.to_dict(),
            "plans": [plan.to_dict() for plan in self.plans],
            "num_left_out": self.num_left_out,
            "end": self.end,
        }


def find_patches(model: nn.Module, data: Any, rules: PatchRules | None = None) -> FoundPatches:
    """Plans patches for the first layers of a convolutional network (Lin et al. 2021, MCUNetV2).

    The plane of an operation's output is split into patches. Each needs a window of every image
    before it, wider by what kernels reach over; neighbours compute the overlap twice. All cuts and
    all numbers of patches are tried. MCUNetV2 (arXiv:2110.15352) searches the architecture as well
    and moves receptive fields behind the cut; here the network stays as it is.

    Args:
        model: The user's network, in evaluation mode; it stays as it is.
        data: One batch, as ``Batch.of`` takes it; images of the size that will be run.
        rules: What patches may be.

    Raises:
        ModelError: If the network does not begin with layers that run window by window, or the cut
            that is asked for lies behind other ones; with the layer's name.
        UnknownNameError: If there is no operation of the cut's name.
        InputError: If no plane is as large as the number of patches.
    """
    rules = rules or PatchRules()
    chain = Chain.of(Recorded.of(model, data))
    planner = Planner.of(chain, rules.bits, rules.is_input_streamed)
    cuts = chain.sensible_cuts if rules.cut is None else (chain.position(rules.cut),)
    plans = [
        planner.plan(cut, count)
        for cut in cuts
        for count in rules.counts
        if count <= min(_plane(chain, cut))
    ]
    if not plans:
        raise InputError(
            f"no plane that can be cut has {rules.counts.start} rows and columns, for so many "
            f"patches per axis{f'; patches end where {chain.end}' if chain.end else ''}"
        )
    within = [plan for plan in plans if plan.recomputed_share <= rules.most_recomputed]
    within.sort(key=lambda x: (x.ram_bytes, x.recomputed_macs, x.num_patches, x.position))
    whole = max(planner.held)
    is_less = bool(within) and within[0].ram_bytes < whole
    best = within[0] if is_less else None
    return FoundPatches(tuple(within), best, whole, len(plans) - len(within), chain.end)


def _plane(chain: Chain, cut: int) -> tuple[int, int]:
    recorded = chain.recorded
    plane = recorded.images[recorded.operations[cut].writes[0]].plane
    assert plane is not None
    return plane

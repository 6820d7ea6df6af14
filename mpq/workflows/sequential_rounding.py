"""Whether an answer is rounded again, layer by layer: where unseen examples say that it helps."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, final

import numpy as np

from mpq._support.arrays import Array
from mpq._support.paired_gains import LEVEL, is_above_chance, relative_gains
from mpq.network.examples import Calibration
from mpq.network.folds import folds
from mpq.quantization.precision import Precision
from mpq.rounding import AutoRounding, WeightRounding
from mpq.sensitivity import Estimation
from mpq.workflows.codes_cache import CodesCache
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.in_order import InOrder
from mpq.workflows.own_codes import OwnCodes
from mpq.workflows.rounded_weights import rounded_by_all
from mpq.workflows.shown_examples import Shown
from mpq.workflows.trial_record import TrialRecord

UNSEEN_SHARE: Final = 0.25
"""Of the calibration examples, that neither rounding of the trial sees."""


@final
@dataclass(frozen=True)
class SequentialRounding(TrialRecord):
    """What became of rounding an answer again, layer by layer.

    Args:
        left: Layers whose codes are those of the parallel rounding in any case, and why.
    """

    left: Mapping[str, str] = field(default_factory=dict)

    def sentences(self, unit: str) -> Iterator[str]:
        """What people should know.

        Args:
            unit: Of the losses.
        """
        made = "rounded again layer by layer, for the inputs of the network quantized so far"
        yield f"sequential rounding: {self.told(made, unit)}"
        if self.left:
            whys = Counter(self.left.values())
            counts = "; ".join(f"{n} as {why}" for why, n in whys.items())
            yield f"layers that sequential rounding leaves as they are: {counts}"


def round_again(
    on: Estimation,
    precisions: Mapping[str, Precision],
    rounding: WeightRounding,
    seed: int,
    own: OwnCodes,
    accepts: Callable[[], bool] = lambda: True,
    kept: CodesCache | None = None,
) -> SequentialRounding:
    """Rounds an answer's weights in the order of calls, and keeps the codes where they help.

    That is decided on the last quarter of the calibration examples: with codes from the others,
    those that are made in order must lose less there than those made in parallel, beyond chance
    (Student's t of paired examples, one-sided, 2.5 %). Where they do not, on all: every quarter
    with codes from the others (2.5 % again). The codes that are kept are made from all.

    Args:
        on: Network, calibration examples, and the quantizer with the parallel rounding's codes.
        precisions: Layer name to precision, of all layers.
        rounding: How codes are found.
        seed: Of the probes that guide the second moments.
        own: Where codes are kept for this assignment.
        accepts: Whether the assignment, with the codes that are kept, meets what else is asked.
        kept: Where codes are looked up and kept on disk; ``None``: nowhere.
    """
    in_order = InOrder(on, precisions, rounding, seed, kept=kept)
    if not in_order.layers:
        # None at all where the parallel rounding left all weights to nearest.
        why = "no weight of the answer, rounded with regard to data, can be rounded again"
        return SequentialRounding(False, why, left=in_order.left)
    if on.data.num_examples < 2:
        why = "there is a single calibration example, or one batch whose rows mix"
        return SequentialRounding(False, why, left=in_order.left)
    tried = trial(in_order)
    if not tried.is_kept:
        return tried
    codes, left = in_order.codes()
    own.keep(precisions, codes)
    if not accepts():
        own.forget(precisions)
        why = "with the new codes the answer does not keep the objective's limit on the loss"
        return replace(tried, is_kept=False, why=why)
    return replace(tried, left=left)


def trial(in_order: InOrder) -> SequentialRounding:
    """Both roundings, from some of the examples, on the others; on all in turn, if need be."""
    rounding = in_order.rounding
    share = rounding.share if isinstance(rounding, AutoRounding) else UNSEEN_SHARE
    first, *others = folds(in_order.on.data, share)
    found = [_left_out(in_order, *first)]
    if not _is_better(found):
        found += [_left_out(in_order, *parts) for parts in others]
    is_better = _is_better(found)
    why = "" if is_better else "unseen examples do not lose less by it, beyond chance"
    before, after = (np.concatenate(losses) for losses in zip(*found, strict=True))
    losses = float(after.mean()), float(before.mean())
    return SequentialRounding(is_better, why, len(after), *losses, left=in_order.left)


def _is_better(losses: Sequence[tuple[Array, Array]]) -> bool:
    gains = [relative_gains(before, after) for before, after in losses]
    return is_above_chance(np.concatenate(gains), LEVEL / 2)  # asked twice at most


def _left_out(in_order: InOrder, seen: Calibration, unseen: Calibration) -> tuple[Array, Array]:
    """``[N]`` losses of unseen examples by both roundings: parallel, and in order."""
    on, precisions, network = in_order.on, in_order.precisions, in_order.on.network
    shown = replace(on, data=seen)
    used = {p.weight for p in precisions.values()}
    chosen = dict.fromkeys(f for _, f in on.quantizer.stored if f in used)
    stored = rounded_by_all(
        Shown.all_of(shown, in_order.seed),
        in_order.rounding,
        list(chosen),
        in_order.seed,
        in_order.kept,
    ).stored
    parallel = replace(on.quantizer, stored=stored)
    again, _ = replace(in_order, on=replace(shown, quantizer=parallel)).codes()
    original = Reference(network.module, unseen, network.metric, network.allow_randomness)
    before, after = (
        Evaluator(network, replace(parallel, stored=cells), original).measure(precisions)
        for cells in (stored, {**stored, **again})
    )
    return before.by_example, after.by_example

"""Whether the answer's ranges are chosen again, for what its quantized layers read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, final

from mpq._support.paired_gains import is_above_chance, relative_gains
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges, needs_range
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.quantization.tensor_format import TensorFormat
from mpq.workflows.calibrated_ranges import SHARE, ranges_by
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.own_codes import Known, OwnCodes
from mpq.workflows.trial_record import TrialRecord

NOTHING: Final = "no layer of the answer reads inputs with calibrated ranges"
SINGLE: Final = "there is a single calibration example, or one batch whose rows mix, to try it on"


@final
@dataclass(frozen=True)
class Recalibration(TrialRecord):
    """What became of choosing an answer's ranges again."""

    def sentence(self, unit: str) -> str:
        """What people should know.

        Args:
            unit: Of the losses.
        """
        made = "ranges of inputs chosen again, for the network as it is quantized"
        return f"recalibration: {self.told(made, unit)}"


@final
@dataclass(frozen=True, eq=False)
class Recalibrating:
    """An answer, and how its ranges are chosen.

    Args:
        network: The original network.
        data: Calibration examples.
        quantizer: What assignments are quantized with.
        methods: Format to the range method.
        precisions: Layer name to precision, of all layers.
        seed: Of the probes that gradients are of.
    """

    network: Network
    data: Calibration
    quantizer: Quantizer
    methods: Mapping[TensorFormat, str]
    precisions: Mapping[str, Precision]
    seed: int

    def kept(self, own: OwnCodes, accepts: Callable[[], bool] = lambda: True) -> Recalibration:
        """Chooses the answer's ranges again, and keeps them where they help.

        Inputs are observed in the network as it is quantized, weights and inputs, in a pass over
        the examples for each range method. That new ranges help is decided on the last quarter of
        the calibration examples: both are chosen from the others, in the float network and in the
        quantized one, and the new ones must lose less there, beyond chance (Student's t of paired
        examples, one-sided, 5 %). Those that are kept are chosen from all examples.

        Args:
            own: Where codes are kept for this assignment, and ranges.
            accepts: Whether the assignment with the new ranges meets what else is asked.
        """
        if not any(needs_range(p.activation) for p in self.precisions.values()):
            return Recalibration(False, NOTHING)
        if self.data.num_examples < 2:
            return Recalibration(False, SINGLE)
        quantizer = own.quantizer(self.precisions, self.quantizer)
        tried = self._trial(quantizer)
        if not tried.is_kept:
            return tried
        own.keep_ranges(self.precisions, self.ranges(self.data, quantizer))
        if not accepts():
            own.forget_ranges(self.precisions)
            why = "with the new ranges the answer does not keep the objective's limit on the loss"
            return replace(tried, is_kept=False, why=why)
        return tried

    def _trial(self, quantizer: Quantizer) -> Recalibration:
        """Ranges of both kinds, from some of the examples, on the others."""
        seen, unseen = self.data.split(SHARE)
        used = dict.fromkeys(p.activation for p in self.precisions.values())
        methods = {f: by for f, by in self.methods.items() if f in used}
        plain = _with(quantizer, ranges_by(self.network, seen, methods, self.seed).known)
        again = _with(plain, self.ranges(seen, plain))
        network = self.network
        original = Reference(network.module, unseen, network.metric, network.allow_randomness)
        before, after = (
            Evaluator(network, each, original).measure(self.precisions) for each in (plain, again)
        )
        is_better = is_above_chance(relative_gains(before.by_example, after.by_example))
        why = "" if is_better else "unseen examples do not lose less by it, beyond chance"
        return Recalibration(
            is_better, why, unseen.num_examples, after.divergence, before.divergence
        )

    def ranges(self, data: Calibration, quantizer: Quantizer) -> Known:
        """Ranges of what layers read in the quantized network, of the formats that they have.

        Args:
            data: Examples.
            quantizer: What the network is quantized with.
        """
        used = {(name, p.activation) for name, p in self.precisions.items()}
        formats = {tensor_format for _, tensor_format in used}
        methods = {f: by for f, by in self.methods.items() if f in formats}
        with quantized(self.network, self.precisions, quantizer):
            found = ranges_by(self.network, data, methods, self.seed)
        return {cell: found.known[cell] for cell in found.known if cell in used}


def _with(quantizer: Quantizer, known: Known) -> Quantizer:
    return replace(quantizer, ranges=ActivationRanges({**quantizer.ranges.known, **known}))

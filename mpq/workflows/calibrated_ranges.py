"""The ranges of all layers' inputs, by the method that a task asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, final

from mpq._support.paired_gains import is_above_chance, relative_gains
from mpq._support.progress import track
from mpq._support.ranks import Ranks
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.loss_range import LossWeighted
from mpq.quantization.observer import ActivationRanges, Observe, needs_range, observe_inputs
from mpq.quantization.precision import ORIGINAL, Precision, spell_activation
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.ranges import RANGE_METHODS, Ranges
from mpq.quantization.tensor_format import TensorFormat
from mpq.sensitivity.passes.weighted_inputs import WeightedInputs
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator

SHARE: Final = 0.25
"""Of the calibration examples, that ``loss`` is tried on and no range is found with."""


@final
@dataclass(frozen=True, eq=False)
class CalibratedRanges:
    """What a range method found.

    Args:
        ranges: Of every layer and static format.
        unhelped: Formats of inputs, such as ``a8``, that have the ranges of ``mse`` instead of
            ``loss``, to why.
        methods: Format to the method that its ranges are by.
        steps_unhelped: Formats that have one range for all steps, where others have some, to why.
    """

    ranges: ActivationRanges
    unhelped: Mapping[str, str] = field(default_factory=dict)
    methods: Mapping[TensorFormat, str] = field(default_factory=dict)
    steps_unhelped: Mapping[str, str] = field(default_factory=dict)


def calibrated_ranges(
    network: Network,
    data: Calibration,
    candidates: Sequence[Precision],
    method: str,
    seed: int,
    ranks: Ranks | None = None,
) -> CalibratedRanges:
    """Ranges of every layer for the static formats among the candidates.

    Takes a forward pass over the examples. ``loss`` takes a forward and a backward pass. Its trial
    takes both over three quarters of them, a forward pass over these, and two over the rest for
    every format; and where it helped in some formats alone, one more forward pass.

    Args:
        network: Whose layers' inputs are observed.
        data: Calibration examples.
        candidates: Precisions that may be used.
        method: As ``RANGE_METHODS`` takes it.
        seed: Of the probes that gradients are of.
        ranks: Who shares the forward pass; passes with gradients and trials are each rank's own.

    Raises:
        GradientError: If the method needs gradients and the network has none.
    """
    built, by = RANGE_METHODS.build(method), Calibrating(network, candidates, seed)
    is_tried = bool(by.formats) and isinstance(built, LossWeighted) and built.trial
    unhelped = by.unhelped(data, method) if is_tried else {}
    methods = {f: Ranges.activation if f in unhelped else method for f in by.formats}
    told = {spell_activation(f): why for f, why in unhelped.items()}
    return CalibratedRanges(ranges_by(network, data, methods, seed, ranks), told, methods)


def ranges_by(
    network: Network,
    data: Calibration,
    methods: Mapping[TensorFormat, str],
    seed: int,
    ranks: Ranks | None = None,
) -> ActivationRanges:
    """Ranges of every layer, a pass over the examples for each method.

    Args:
        network: Whose layers' inputs are observed, quantized or not.
        data: Calibration examples.
        methods: Format to its method, without a trial.
        seed: Of the probes that gradients are of.
        ranks: As in ``calibrated_ranges``.
    """
    known = dict[tuple[str, TensorFormat], ActivationRange]()
    for method in dict.fromkeys(methods.values()):
        candidates = _alone([f for f, by in methods.items() if by == method])
        known |= Calibrating(network, candidates, seed, ranks).ranges(data, method).known
    return ActivationRanges(known)


@final
@dataclass(frozen=True, eq=False)
class Calibrating:
    """One network and the candidates whose formats ranges are of."""

    network: Network
    candidates: Sequence[Precision]
    seed: int
    ranks: Ranks | None = None

    @property
    def formats(self) -> list[TensorFormat]:
        """Formats of inputs that need ranges, each once."""
        found = (c.activation for c in self.candidates if needs_range(c.activation))
        return list(dict.fromkeys(found))

    def ranges(self, data: Calibration, method: str) -> ActivationRanges:
        """By a method as it is, without a trial."""
        reads_gradients = RANGE_METHODS.build(method).reads_gradients
        observe: Observe = partial(observe_inputs, ranks=self.ranks)
        if reads_gradients:
            observe = WeightedInputs(self.seed)
        return ActivationRanges.calibrate(self.network, data, self.candidates, method, observe)

    def unhelped(self, data: Calibration, method: str) -> dict[TensorFormat, str]:
        """Formats in which examples lose less by ``mse``, or by chance alone, and what they lost.

        Both are found on three quarters of the examples, and tried on the rest with weights as they
        came: it is the inputs that are asked about.
        """
        if data.num_examples < 2:
            why = "there is a single calibration example, or one batch whose rows mix, to try it on"
            return dict.fromkeys(self.formats, why)
        seen, unseen = data.split(SHARE)
        network = self.network
        original = Reference(network.module, unseen, network.metric, network.allow_randomness)
        plain, other = (
            Evaluator(network, Quantizer(self.ranges(seen, name)), original)
            for name in (Ranges.activation, method)
        )
        found = {}
        for tried in track(_alone(self.formats), "trying ranges"):
            uniform = plain.uniform(tried)
            was, now = (e.measure(uniform).by_example for e in (plain, other))
            gains = relative_gains(was, now)
            if not is_above_chance(gains):
                found[tried.activation] = (
                    f"unseen examples did not lose less by it, beyond chance ({gains.mean():+.0%})"
                )
        return found


def _alone(formats: Sequence[TensorFormat]) -> list[Precision]:
    """Precisions that round inputs and leave weights as they came."""
    return [Precision(ORIGINAL.weight, f) for f in formats]

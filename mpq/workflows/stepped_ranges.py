"""Ranges by clusters of steps, in the formats in which unseen examples say that they help."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from mpq._support.paired_gains import is_above_chance, relative_gains
from mpq._support.progress import track
from mpq._support.ranks import Ranks
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import ORIGINAL, Precision, spell_activation
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.running_clusters import RunningClusters
from mpq.quantization.tensor_format import TensorFormat
from mpq.workflows.calibrated_ranges import SHARE, CalibratedRanges, ranges_by
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.step_plan import StepPlan


@final
@dataclass(frozen=True, eq=False)
class SteppedRanges:
    """One network with its clusters of steps, and how its ranges are found.

    Args:
        network: Whose layers' inputs are observed; it has steps.
        plan: The clusters.
        methods: Format to its range method, without a trial.
        seed: Of the probes that gradients are of.
        ranks: Who shares passes over the examples.
    """

    network: Network
    plan: StepPlan
    methods: Mapping[TensorFormat, str]
    seed: int
    ranks: Ranks | None = None

    def beside(self, whole: CalibratedRanges, data: Calibration, trial: bool) -> CalibratedRanges:
        """Ranges of all steps, and beside them those of each cluster where these help.

        Of few examples a cluster has fewer: its range may leave out what comes rarely. So both are
        found on three quarters of the examples, tried on the rest with weights as they came, and
        formats (``a8``) have ranges by cluster if the rest loses less, beyond chance (Student's t
        of paired examples, one-sided, 5 %).

        Args:
            whole: Of all steps.
            data: The calibration examples.
            trial: Whether it is tried; else all formats have them.
        """
        unhelped = self._unhelped(data) if trial else {}
        helped = {f: by for f, by in self.methods.items() if f not in unhelped}
        ranges = self._stepped(whole.ranges, self.plan.parts, helped)
        told = {spell_activation(f): why for f, why in unhelped.items()}
        return replace(whole, ranges=ranges, steps_unhelped=told)

    def _stepped(
        self,
        whole: ActivationRanges,
        parts: Sequence[Calibration],
        methods: Mapping[TensorFormat, str],
    ) -> ActivationRanges:
        found = [ranges_by(self.network, x, methods, self.seed, self.ranks).known for x in parts]
        stepped = {
            cell: replace(x, steps=tuple(known[cell] for known in found))
            for cell, x in whole.known.items()
            if cell[0] in self.plan.divided and cell[1] in methods
        }
        return ActivationRanges({**whole.known, **stepped})

    def _unhelped(self, data: Calibration) -> dict[TensorFormat, str]:
        seen, unseen = data.split(SHARE)
        network, running = self.network, self.network.steps
        assert running is not None
        plain = ranges_by(network, seen, self.methods, self.seed, self.ranks)
        stepped = self._stepped(plain, self.plan.parts_of(network, seen), self.methods)
        steps = RunningClusters(running, self.plan.record.clusters)
        original = Reference(network.module, unseen, network.metric, network.allow_randomness)
        one = Evaluator(network, Quantizer(plain), original)
        several = Evaluator(network, Quantizer(stepped, steps=steps), original)
        found = {}
        for tensor_format in track(list(self.methods), "trying ranges by step"):
            uniform = one.uniform(Precision(ORIGINAL.weight, tensor_format))
            gains = relative_gains(*(e.measure(uniform).by_example for e in (one, several)))
            if not is_above_chance(gains):
                found[tensor_format] = (
                    f"unseen examples did not lose less by it, beyond chance ({gains.mean():+.0%})"
                )
        return found

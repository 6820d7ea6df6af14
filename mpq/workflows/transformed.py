"""A task's network after its transformations, as far as unseen examples say that they help."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self, final

import numpy as np
import torch
from torch import Tensor, nn

from mpq._support.arrays import Array
from mpq._support.paired_gains import is_above_chance, relative_gains
from mpq._support.progress import track
from mpq.errors import ModelError
from mpq.network.behaviour import answers
from mpq.network.examples import Calibration
from mpq.network.modules import device_of, share_parameters
from mpq.network.network import Network
from mpq.network.reparametrization import Reparametrization
from mpq.network.reparametrized import reparametrized
from mpq.network.same_start import begin_alike
from mpq.quantization.numerics import OWN
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.transforms import Found, Transform, Transforming
from mpq.workflows.calibrated_ranges import Calibrating
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator

if TYPE_CHECKING:
    from mpq.workflows.task import Task

SHARE: Final = 0.25
"""Of the calibration examples, that transformations are judged on and not found with."""
SINGLE: Final = "there is a single calibration example, or one batch whose rows mix, to judge it on"
"""Why none is used then."""
EQUAL: Final = 1e-5
"""How far outputs may move, relative to the largest; of coarser dtypes than float32 more."""


@final
@dataclass(frozen=True, eq=False)
class TransformedModel:
    """A model with other parameters and the same function.

    Args:
        model: As it is searched; the user's own where nothing is transformed.
        network: Its layers.
        reparametrization: What was done; ``None``: nothing.
        untransformed: Transformation and weight, such as ``smooth fc1.weight``, to why the graph
            does not allow it there.
        unhelped: Transformation to why it is not used.
    """

    model: nn.Module
    network: Network
    reparametrization: Reparametrization | None = None
    untransformed: Mapping[str, str] = field(default_factory=dict)
    unhelped: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        task: "Task",
        network: Network,
        data: Calibration,
        find: Callable[[nn.Module], Network],
    ) -> "TransformedModel":
        """Tries the task's transformations in order, each on what those before it left.

        Held beside the network are the parameters that are changed, and while trying the rounded
        weights of the layers that are transformed.

        Args:
            task: Whose transformations are asked for.
            network: The model's own, before.
            data: Calibration examples, cut as the network needs it.
            find: Finds the layers of a model.

        Raises:
            ModelError: If a transformation changes the network's outputs; says by how much.
        """
        start = cls(task.model, network)
        tried = _spread(task.precisions)
        if not task.transforms or not tried:
            return start
        if data.num_examples < 2:
            return replace(start, unhelped=dict.fromkeys(task.transforms, SINGLE))
        judge = _Judge.of(task, data, tried)
        for spelled, transform in zip(task.transforms, task.built_transforms, strict=True):
            start = start._then(spelled, transform, judge, find)
        return start

    def _then(
        self,
        spelled: str,
        transform: Transform,
        judge: "_Judge",
        find: Callable[[nn.Module], Network],
    ) -> "TransformedModel":
        found = judge.found(transform, self.model)
        why_not = {f"{transform.name} {weight}": why for weight, why in found.why_not.items()}
        known = replace(self, untransformed={**self.untransformed, **why_not})
        why = _nothing(found)
        if not why:
            # From the model as it came, once, as whoever repeats it does: to the bit, in any dtype.
            made = (self.reparametrization or Reparametrization(())).then(spelled, found.changes)
            model = reparametrized(judge.task.model, made.changes)
            judge.check_equal(transform.name, model)
            other = find(model)
            why = judge.why_unhelped(self.network, other)
        if why:
            return replace(known, unhelped={**self.unhelped, spelled: why})
        return replace(known, model=model, network=other, reparametrization=made)


def _nothing(found: Found) -> str:
    if not found.num_sites:
        why = next(iter(found.why_not.items()), None)
        return "the network has no place for it" + (f": {why[0]} {why[1]}" if why else "")
    return "" if found.changes else "on calibration examples no change loses less than none"


def _spread(precisions: Sequence[Precision]) -> list[Precision]:
    """Those of the fewest, the middle and the most bits, that round something.

    Without the branches that weights may have, which are fitted to what a transformation leaves.
    """
    plain = dict.fromkeys(replace(p, weight=p.weight.plain) for p in precisions)
    rounding = [p for p in plain if not (p.weight.is_exact and p.activation.is_exact)]
    by_bits = sorted(rounding, key=lambda p: p.weight.number.bits + p.activation.number.bits)
    places = {0, len(by_bits) // 2, len(by_bits) - 1} if by_bits else set()
    return [by_bits[i] for i in sorted(places)]


@final
@dataclass(frozen=True, eq=False)
class _Judge:
    """What transformations are found with, and what they are judged on.

    Args:
        task: Whose network it is.
        data: All examples, which ranges are calibrated on.
        seen: Those that they are found with.
        unseen: Others.
        tried: Precisions that all layers are rounded to.
        reference: The original's answers to the unseen ones.
    """

    task: "Task"
    data: Calibration
    seen: Calibration
    unseen: Calibration
    tried: Sequence[Precision]
    reference: Reference

    @classmethod
    def of(cls, task: "Task", data: Calibration, tried: Sequence[Precision]) -> Self:
        """Splits the examples, and runs the original on some of them."""
        seen, unseen = data.split(SHARE)
        plain = share_parameters(task.model)
        reference = Reference(plain, unseen, task.output_metric, task.allow_randomness)
        return cls(task, data, seen, unseen, tried, reference)

    def found(self, transform: Transform, model: nn.Module) -> Found:
        """What a transformation makes of a model."""
        task = self.task
        module = begin_alike(share_parameters(model), task.allow_randomness)
        middle = self.tried[len(self.tried) // 2]
        numerics = OWN if task.target is None else task.target.arithmetic
        on = Transforming(
            module, self.seen, middle, task.ranges, numerics, task.output_metric, task.seed
        )
        return transform.found(on)

    def check_equal(self, name: str, model: nn.Module) -> None:
        """Refuses a transformation that changes what the network computes.

        Raises:
            ModelError: Says by how much.
        """
        seed, metric = self.task.allow_randomness, self.task.output_metric
        modules = [begin_alike(share_parameters(m), seed) for m in (self.task.model, model)]
        for batch in self.seen:
            placed = batch.to(device_of(model))
            before, after = (answers(module, placed, metric) for module in modules)
            apart, allowed = _relative(before, after), max(EQUAL, 8 * _eps(before, model))
            if not apart <= allowed:
                raise ModelError(
                    f"--transform {name} changes the network's outputs by {apart:.3g} of the "
                    f"largest, more than {allowed:.3g}: the network does something that a trace of "
                    "two examples does not show; search without it"
                )

    def why_unhelped(self, before: Network, after: Network) -> str:
        """Why a transformation is not used; empty: it is."""
        nearest, other = self._evaluator(before), self._evaluator(after)
        gains = [_gain(nearest, other, p) for p in track(self.tried, "trying transformations")]
        if is_above_chance(np.mean(gains, axis=0)):
            return ""
        told = ", ".join(
            f"{gain.mean():+.0%} at {p}" for p, gain in zip(self.tried, gains, strict=True)
        )
        return (
            "on calibration examples that it had not seen, the network lost more, or less by "
            f"chance (loss saved: {told})"
        )

    def _evaluator(self, network: Network) -> Evaluator:
        task = self.task
        # On all examples, as before and after alike: an expert may be reached by the unseen alone.
        by = Calibrating(network, self.tried, task.seed)
        ranges = by.ranges(self.data, task.ranges.activation)
        numerics = OWN if task.target is None else task.target.arithmetic
        quantizer = Quantizer(ranges, task.ranges.weight, numerics)
        return Evaluator(network, quantizer, self.reference)


def _gain(before: Evaluator, after: Evaluator, precision: Precision) -> Array:
    """``[N]`` what every example loses less, in units of the larger mean loss."""
    uniform = before.uniform(precision)
    was, now = (e.measure(uniform).by_example for e in (before, after))
    return relative_gains(was, now)


def _relative(before: Tensor, after: Tensor) -> float:
    apart = (before.double() - after.double()).abs().max()
    return float(apart) / (float(before.double().abs().max()) or 1.0)


def _eps(outputs: Tensor, model: nn.Module) -> float:
    """Of the coarsest dtype on the way, where that is coarser than float32."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} | {outputs.dtype}
    coarse = [torch.finfo(d).eps for d in dtypes if d in (torch.float16, torch.bfloat16)]
    return max(coarse, default=0.0)

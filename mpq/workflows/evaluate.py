"""What a quantized network really does on held-out examples."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from mpq._support.arrays import Array
from mpq._support.pages import is_streaming
from mpq.backends import quantize
from mpq.backends.simulate import check_folding
from mpq.backends.streamed import why_run_streamed
from mpq.errors import DataError
from mpq.network.behaviour import check_again
from mpq.network.blocks import without_caches
from mpq.network.examples import IGNORED_TARGET, Batch, Calibration
from mpq.network.mapped import streaming
from mpq.network.metric import KL, OutputMetric
from mpq.network.metrics import METRICS
from mpq.network.modules import device_of, share_parameters
from mpq.network.outputs import check_same_shape, position_weights
from mpq.network.randomness import random_state_kept
from mpq.network.same_start import begin_alike
from mpq.network.targets import class_targets, cross_entropy
from mpq.problem.assignment import Assignment
from mpq.quantization.fingerprint import checksum
from mpq.report.measurement import Measurement


@final
class Reference:
    """The original network's answers, which others are compared with.

    Outputs of all examples are kept in memory.

    Args:
        module: The full-precision network, as the user gave it.
        data: The examples, which have to be the same in every pass.
        metric: How far outputs are from the original's, and in which unit.
        seed: Where the generators start in every pass; ``None``: they are left alone.
        is_repeatable: Whether it is known that every batch gives the same answer twice, as
            ``Network.of`` finds of its data.

    Raises:
        ModelError: If a batch gives another answer the second time: which one, and by how much.
    """

    def __init__(
        self,
        module: nn.Module,
        data: Calibration,
        metric: OutputMetric = KL,
        seed: int | None = None,
        is_repeatable: bool = False,
    ) -> None:
        self.data, self.metric = data, metric
        sums, self._outputs = _Sums(), list[Tensor]()
        with torch.no_grad():
            # A copy, as a forward pass may write buffers and counters of the user's.
            own = begin_alike(share_parameters(module), seed)
            for index, batch in enumerate(self._batches(own)):
                outputs = self._answers(own, batch)
                # What is drawn may be met here first, and would be taken for a loss.
                where = f"batch {index} of the examples to measure on"
                if not is_repeatable:
                    check_again(own, batch, outputs, metric, seed, where)
                # Kept, so that every network that is compared takes one pass and not two.
                self._outputs.append(outputs)
                sums.add(batch, self._targets(batch, outputs))
        self.original: Measurement = sums.measurement(metric)
        """The original itself: nothing apart from its own answers, by definition."""

    def compare(self, module: nn.Module) -> Measurement:
        """Runs another network, whose passes begin alike, on the same examples.

        Raises:
            ModelError: If its output is not finite.
            DataError: If the data gives other batches than before.
        """
        sums = _Sums()
        with torch.no_grad():
            for index, batch in enumerate(self._batches(module)):
                self._compare(sums, index, batch, module)
        return sums.measurement(self.metric)

    def _compare(self, sums: "_Sums", index: int, batch: Batch, module: nn.Module) -> None:
        # By itself, so that no answers are left while those to the next batch are made.
        outputs = self._answers(module, batch)
        apart = self.metric.divergence(self._same_shape(index, outputs), outputs)
        weighted = (apart * position_weights(batch, outputs)).sum(dim=1)  # [N]
        sums.add(batch, self._targets(batch, outputs), weighted.cpu().numpy())

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the answers."""
        return checksum(self._outputs)

    @cached_property
    def uninformed(self) -> float:
        """Divergence of one answer to everything, the mean of the original's outputs.

        A network that is further apart than that is broken: it matters little by how much.
        """
        rows = [outputs.flatten(0, 1) for outputs in self._outputs]  # [N P, C]
        answer = sum(r.double().sum(dim=0) for r in rows) / max(sum(map(len, rows)), 1)
        total, count = 0.0, 0
        for batch, outputs in zip(self.data, self._outputs, strict=True):
            same = torch.as_tensor(answer).to(outputs.dtype).expand_as(outputs)
            apart = self.metric.divergence(outputs, same)
            total += float((apart * position_weights(batch.to(outputs.device), outputs)).sum())
            count += batch.size
        return total / max(count, 1)

    def _batches(self, module: nn.Module) -> Iterator[Batch]:
        """On the module's device."""
        device = device_of(module)
        return (batch.to(device) for batch in self.data)

    def _answers(self, module: nn.Module, batch: Batch) -> Tensor:
        """``[N, P, C]``."""
        return batch.as_examples(self.metric.positions(module(*batch.args, **batch.kwargs)))

    def _targets(self, batch: Batch, outputs: Tensor) -> tuple[int, int, float]:
        """Only classes have an accuracy."""
        has_classes = self.metric.is_classification
        return _against_targets(batch, outputs) if has_classes else (0, 0, 0.0)

    def _same_shape(self, index: int, outputs: Tensor) -> Tensor:
        # Other numbers in the same shapes are found by ``Calibration``, which keeps checksums.
        if index >= len(self._outputs):
            raise DataError(
                "the data gave other batches than at first; the function must yield the same "
                "examples every time it is called"
            )
        check_same_shape(self._outputs[index], outputs)
        return self._outputs[index]


@dataclass
class _Sums:
    """Sums over the batches so far."""

    divergences: list[Array] = field(default_factory=list)  # [N] of every batch
    examples: int = 0
    targets: int = 0
    hits: int = 0
    cross_entropy: float = 0.0

    def add(
        self,
        batch: Batch,
        against_targets: tuple[int, int, float],
        divergences: Array | None = None,
    ) -> None:
        counted, hits, cross_entropy = against_targets
        # Of the original itself nothing is compared: its divergence is 0 by definition.
        self.divergences.append(np.zeros(batch.size) if divergences is None else divergences)
        self.examples += batch.size
        self.targets += counted
        self.hits += hits
        self.cross_entropy += cross_entropy

    def measurement(self, metric: OutputMetric) -> Measurement:
        by_example = np.concatenate(self.divergences)
        return Measurement(
            # Of all examples and not of batches: the last batch may have fewer.
            divergence=float(by_example.sum()) / self.examples,
            # By targets and not by examples: a sequence has one for every position.
            accuracy=self.hits / self.targets if self.targets else None,
            cross_entropy_nats=self.cross_entropy / self.targets if self.targets else None,
            num_examples=self.examples,
            metric=metric,
            by_example=by_example,
        )


@random_state_kept()
def evaluate(
    model: nn.Module,
    assignment: Assignment,
    data: Any,
    metric: str | OutputMetric | None = None,
    allow_randomness: int | None = None,
    memory: int | str | None = None,
) -> dict[str, Measurement]:
    """The original network and the one in the assigned formats, on the same examples.

    If the search fixed the generators of a network that draws, so does this. A network that would
    not fit into memory beside its rounded weights is streamed from its files, with the same
    numbers; its weights are then rounded in every call.

    Args:
        model: The network that the assignment was found for, in evaluation mode.
        assignment: What to apply; see ``mpq.quantize``.
        data: Held-out examples, read twice; see ``Calibration``.
        metric: How outputs are compared: a name of ``mpq.network.metrics.METRICS``, or a metric;
            default: as in the search.
        allow_randomness: See ``Task``; default: as in the search.
        memory: See ``Task``.

    Returns:
        ``original`` and ``quantized``.

    Raises:
        InputError: If the network does not fit into ``memory`` and cannot be streamed.
        MismatchError: If the assignment belongs to another network.
    """
    with streaming(bool(why_run_streamed(model, memory, assignment))):
        return _evaluated(model, assignment, data, metric, allow_randomness)


def _evaluated(
    model: nn.Module,
    assignment: Assignment,
    data: Any,
    metric: str | OutputMetric | None,
    allow_randomness: int | None,
) -> dict[str, Measurement]:
    # First of all, since an assignment of another network is refused without a pass over the data.
    quantized = quantize(model, assignment)
    if is_streaming():
        without_caches(quantized)
    asked = metric or assignment.metadata.metric or KL
    chosen = METRICS.build(asked) if isinstance(asked, str) else asked
    assignment = assignment.compared_by(None, allow_randomness)
    seed = assignment.metadata.allow_randomness
    examples = Calibration.of(data)
    check_folding(model, assignment, examples.first().to(device_of(model)), chosen)
    reference = Reference(model, examples, chosen, seed)
    compared = reference.compare(begin_alike(quantized, seed))
    return {"original": reference.original, "quantized": compared}


def _against_targets(batch: Batch, logits: Tensor) -> tuple[int, int, float]:
    """Targets counted, hits among them, summed negative log-likelihood in nats."""
    if batch.targets is None:
        return 0, 0, 0.0
    targets = class_targets(batch, logits, "accuracy")
    counted = targets != IGNORED_TARGET
    hits = (logits.argmax(dim=-1) == targets) & counted
    return int(counted.sum()), int(hits.sum()), float(cross_entropy(targets, logits).sum())

"""What a quantized network really does on held-out examples."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from math import inf
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor, nn

from mpq._support.events import Callback, listening, tell
from mpq._support.pages import is_streaming
from mpq._support.phases import phase
from mpq._support.ranks import Ranks
from mpq.backends import quantize
from mpq.backends.simulate import check_folding
from mpq.backends.streamed import why_run_streamed
from mpq.callbacks.results import Finished
from mpq.errors import InputError
from mpq.network.behaviour import check_again
from mpq.network.blocks import without_caches
from mpq.network.examples import IGNORED_TARGET, Batch, Calibration
from mpq.network.halving import halved
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
from mpq.workflows.kept_answers import KeptAnswers, most_kept_bytes
from mpq.workflows.passes import tell_passes, told_of
from mpq.workflows.score import Judge, Score
from mpq.workflows.sums import OnTargets, Sums

QUANTIZED: Final = "quantized"


@final
class Reference:
    """The original network's answers, which others are compared with.

    They are kept as far as they take no more than a share of memory (``most_kept_bytes``): to the
    other examples it answers again, whenever a network is compared. Of one that draws all are kept.

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
        self.data, self.metric, self._seed = data, metric, seed
        self._known = KeptAnswers(0.0)
        # A copy, as a forward pass may write buffers and counters of the user's.
        own = begin_alike(share_parameters(module), seed)
        answered = partial(self._answered, own, is_repeatable)
        self.original: Measurement = halved("measuring the original", data, answered, self._uncut)
        """The original itself: nothing apart from its own answers, by definition."""
        self._own = None if self._known.is_whole else own

    @property
    def _uncut(self) -> str:
        return "" if self._seed is None else "the network draws for whole batches"

    def _answered(self, own: nn.Module, is_repeatable: bool, data: Calibration) -> Measurement:
        """Keeps the answers to the data."""
        room = most_kept_bytes(device_of(own)) if self._seed is None else inf
        sums, self.data, self._known = Sums(), data, KeptAnswers(room)
        with torch.no_grad():
            for index, batch in enumerate(self._batches(own, data)):
                outputs = self._answers(own, batch)
                # What is drawn may be met here first, and would be taken for a loss.
                where = f"batch {index} of the examples to measure on"
                if not is_repeatable:
                    check_again(own, batch, outputs, self.metric, self._seed, where)
                # Kept, so that every network that is compared takes one pass and not two.
                self._known.add(batch.start, outputs)
                # Of the original itself nothing is compared: its divergence is 0 by definition.
                sums.add(batch, np.zeros(batch.size), self._targets(batch, outputs))
        return sums.measurement(self.metric)

    def compare(self, module: nn.Module) -> Measurement:
        """Runs another network, whose passes begin alike, on the same examples.

        Raises:
            ModelError: If its output is not finite.
            DataError: If the data gives other batches than before.
        """
        return self.sums(module).measurement(self.metric)

    def sums(self, module: nn.Module) -> Sums:
        """What ``compare`` adds up, batch by batch; it raises what that does."""

        def added(data: Calibration) -> Sums:
            self._cut(data)
            sums = Sums()
            with torch.no_grad():
                for batch in self._batches(module, data):
                    self._compare(sums, batch, module)
            return sums

        return halved("measuring", self.data, added, self._uncut)

    def _cut(self, data: Calibration) -> None:
        """The answers to the same examples, as many at once as in the data."""
        if data.at_once is not None and data.at_once != self.data.at_once:
            self.data, self._known = data, self._known.cut(data.at_once)

    def _compare(self, sums: Sums, batch: Batch, module: nn.Module) -> None:
        # By itself, so that no answers are left while those to the next batch are made.
        known = self._original(batch)
        outputs = self._answers(module, batch)
        check_same_shape(known, outputs)
        apart = self.metric.divergence(known, outputs)
        weighted = (apart * position_weights(batch, outputs)).sum(dim=1)  # [N]
        sums.add(batch, weighted.cpu().numpy(), self._targets(batch, outputs))

    def with_its_examples(self) -> "Reference":
        """The same, with examples in memory: the user's function may not be where it is sent."""
        found = copy(self)
        found.data = Calibration(list(self.data))
        # They begin elsewhere among the examples that are sent alone.
        found._known = self._known.moved(batch.start for batch in found.data)
        return found

    def on_share(self, share: float, seed: int) -> "Reference":
        """On some of the examples, at least one, in memory, of as few batches as hold so many.

        Args:
            share: Of the examples, 0 to 1.
            seed: Draws which.
        """
        places = self._known.drawn(share, np.random.default_rng(seed))
        batches, answers = list[Batch](), KeptAnswers(inf)
        for batch in self.data:
            if batch.start in places:
                some = places[batch.start]
                answers.add(sum(each.size for each in batches), self._original(batch)[some])
                batches.append(batch.take(some))
        found = copy(self)
        found.data, found._known = Calibration(batches), answers
        return found

    @property
    def num_batches(self) -> int:
        """How many batches the examples came in, uncut."""
        assert self.data.num_batches is not None  # the original has seen them all
        return self.data.num_batches

    def share(self, ranks: Ranks) -> "Reference":
        """Of a rank's own batches alone."""
        found = copy(self)
        found.data = self.data.share(ranks)
        return found

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the answers."""
        return checksum(outputs for _, outputs in self._all())

    @cached_property
    def uninformed(self) -> float:
        """Divergence of one answer to everything, the mean of the original's outputs.

        A network that is further apart than that is broken: it matters little by how much.
        """
        answer, rows = torch.zeros(()), 0
        for _, outputs in self._all():
            flat = outputs.flatten(0, 1)  # [N P, C]
            answer, rows = answer + flat.double().sum(dim=0).cpu(), rows + len(flat)
        total, count = 0.0, 0
        for batch, outputs in self._all():
            same = (answer / max(rows, 1)).to(outputs).expand_as(outputs)
            apart = self.metric.divergence(outputs, same)
            total += float((apart * position_weights(batch, outputs)).sum())
            count += batch.size
        return total / max(count, 1)

    def _all(self) -> Iterator[tuple[Batch, Tensor]]:
        """Every batch, and the original's answers to it."""
        for batch in self.data:
            known = self._original(batch)
            yield batch.to(known.device), known

    def _batches(self, module: nn.Module, data: Calibration) -> Iterator[Batch]:
        """On the module's device."""
        device = device_of(module)
        return (batch.to(device) for batch in data)

    def _answers(self, module: nn.Module, batch: Batch) -> Tensor:
        """``[N, P, C]``."""
        return batch.as_examples(self.metric.positions(module(*batch.args, **batch.kwargs)))

    def _targets(self, batch: Batch, outputs: Tensor) -> OnTargets:
        """Only classes have an accuracy."""
        has_classes = self.metric.is_classification
        return _against_targets(batch, outputs) if has_classes else OnTargets()

    def _original(self, batch: Batch) -> Tensor:
        """What the original answers to a batch."""
        # Other numbers in the same shapes are found by ``Calibration``, which keeps checksums.
        known = self._known.at(batch.start)
        if known is not None:
            return known
        assert self._own is not None  # it stays where it has to answer again
        with torch.no_grad():
            return self._answers(self._own, batch.to(device_of(self._own)))


@random_state_kept()
def evaluate(
    model: nn.Module,
    assignment: Assignment,
    data: Any,
    metric: str | OutputMetric | None = None,
    allow_randomness: int | None = None,
    memory: int | str | None = None,
    score: str | Score | None = None,
    callbacks: Sequence[Callback] = (),
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
        score: See ``Task``; not of a network that is streamed.
        callbacks: Who is told what happens meanwhile (``mpq.callbacks``): none changes the answer.

    Returns:
        ``original`` and ``quantized``.

    Raises:
        InputError: If the network does not fit into ``memory`` and cannot be streamed.
        MismatchError: If the assignment belongs to another network.
    """
    streamed = why_run_streamed(model, memory, assignment)
    if streamed and score is not None:
        raise InputError(f"{streamed}. score (--score) is not asked so: leave it out")
    with streaming(bool(streamed)), listening(callbacks):
        return _evaluated(model, assignment, data, metric, allow_randomness, score)


def _evaluated(
    model: nn.Module,
    assignment: Assignment,
    data: Any,
    metric: str | OutputMetric | None,
    allow_randomness: int | None,
    score: str | Score | None,
) -> dict[str, Measurement]:
    # First of all, since an assignment of another network is refused without a pass over the data.
    quantized = quantize(model, assignment)
    if is_streaming():
        without_caches(quantized)
    asked = metric or assignment.metadata.metric or KL
    chosen = METRICS.build(asked) if isinstance(asked, str) else asked
    assignment = assignment.compared_by(None, allow_randomness)
    seed = assignment.metadata.allow_randomness
    examples = told_of(Calibration.of(data))
    device = device_of(model)
    first = examples.first().to(device)
    check_folding(model, assignment, first, chosen)
    with phase("original"):
        reference = Reference(model, examples, chosen, seed)
    quantized = begin_alike(quantized, seed)
    tell_passes({QUANTIZED: quantized}, first, reference.original.num_examples, device)
    with phase(QUANTIZED):
        compared = reference.compare(quantized)
    found = {"original": reference.original, QUANTIZED: compared}
    if score is not None:
        found = _scored(found, score, examples, model, quantized)
    tell(Finished(found, {"metric": METRICS.spell(chosen)}, _flat(found[QUANTIZED])))
    return found


def _scored(
    found: dict[str, Measurement],
    score: str | Score,
    examples: Calibration,
    model: nn.Module,
    quantized: nn.Module,
) -> dict[str, Measurement]:
    judge = Judge(Score.built_in(score) if isinstance(score, str) else score, examples, model)
    with phase("score"):
        scores = {
            "original": judge.original,
            QUANTIZED: judge.of(quantized, "the quantized network"),
        }
    return {name: replace(measured, score=scores[name]) for name, measured in found.items()}


def _flat(measured: Measurement) -> dict[str, float]:
    """For a table of runs."""
    found = {
        "measured_loss": measured.divergence,
        "measured_accuracy": measured.accuracy,
        "measured_score": measured.score,
    }
    return {name: x for name, x in found.items() if x is not None}


def _against_targets(batch: Batch, logits: Tensor) -> OnTargets:
    if batch.targets is None:
        return OnTargets()
    targets = class_targets(batch, logits, "accuracy")
    counted = targets != IGNORED_TARGET
    hits = (logits.argmax(dim=-1) == targets) & counted
    lost = float(cross_entropy(targets, logits).sum())
    return OnTargets(int(counted.sum()), int(hits.sum()), lost)

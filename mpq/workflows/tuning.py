"""Tunes an answer, and keeps it where unseen examples say that it helps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Final, Self, final

import torch
from torch import nn

from mpq._support.paired_gains import is_above_chance, relative_gains
from mpq.backends import quantize
from mpq.backends.simulate import prepared, transformed
from mpq.errors import GradientError
from mpq.network.examples import Batch, Calibration
from mpq.network.metric import OutputMetric
from mpq.network.metrics import METRICS
from mpq.network.modules import device_of, share_parameters
from mpq.network.randomness import random_state_kept
from mpq.network.same_start import begin_alike
from mpq.problem.assignment import Assignment
from mpq.report.measurement import Measurement
from mpq.tuning import TUNINGS, Tuning
from mpq.tuning.blocks import stages
from mpq.tuning.checkpoint import Checkpoint
from mpq.tuning.descent import Descent, History
from mpq.tuning.student import Student
from mpq.workflows.evaluate import Reference
from mpq.workflows.result import SearchResult
from mpq.workflows.score import Judge
from mpq.workflows.shipped import measured, why_worse
from mpq.workflows.tuning_record import TuningRecord

FEWEST: Final = 4
"""Unseen examples with which anything is tuned: half of them choose, half decide."""
_NO_GAIN: Final = "unseen examples do not lose less by it, beyond chance"


@final
@dataclass(frozen=True, eq=False)
class Examples:
    """Who sees which examples.

    Args:
        seen: That rounding and prices have used; the network is tuned on these.
        choosing: That choose the epoch. Neither rounding nor prices have used them.
        deciding: Others, that decide whether the tuning is kept.
        measured: Held-out examples that the result is measured on.
        share: Of the calibration examples, that the search held back; 0: what chooses and decides
            were held-out examples.
    """

    seen: Calibration
    choosing: Calibration | None
    deciding: Calibration | None
    measured: Calibration
    share: float

    @classmethod
    def of(
        cls, seen: Calibration, unseen: Calibration, measured: Calibration, share: float
    ) -> Self:
        """Half of the unseen ones choose, and half decide, if they are enough."""
        if unseen.num_examples < FEWEST:
            return cls(seen, None, None, measured, share)
        return cls(seen, *unseen.split(0.5), measured, share)


@final
@dataclass(frozen=True, eq=False)
class Tuner:
    """Tunes one network's assignments.

    Args:
        model: As the user gave it; it stays as it is.
        examples: Who sees which.
        tuning: What, for how long.
        seed: Of the order of the examples.
        folder: Where the state after each epoch is kept; ``None``: nowhere.
        judge: The user's own score, of what is measured; ``None``: there is none.
    """

    model: nn.Module
    examples: Examples
    tuning: Tuning
    seed: int
    folder: Path | None = None
    judge: Judge | None = None

    @random_state_kept()
    def result(
        self, found: SearchResult, accepts: Callable[[Measurement], bool] = lambda _: True
    ) -> SearchResult:
        """The result with its answer tuned, or as it was; says what was tried.

        Takes, for each epoch, a forward pass of the original and a forward and a backward pass of
        the quantized network over the examples, and two passes over unseen and measured ones.

        Args:
            found: The search's.
            accepts: Whether what is measured of the answer is good enough for an objective. A
                score of the user's own has to be no worse besides.
        """
        (tuned, record), judge = self.tried(found.assignment), self.judge
        reached = None
        if record.is_kept:
            reference = self._reference(self.examples.measured, found.assignment)
            reached = measured(self.model, tuned, reference, judge)
            why = why_worse(judge, self._before(found), reached)
            if not accepts(reached):
                why = "with it the answer does not keep the objective's limit"
            record = replace(record, is_kept=not why, why=why)
        provenance = replace(found.provenance, tuning=record)
        if judge is not None:
            provenance = replace(provenance, higher_score_is_better=judge.score.higher_is_better)
        if reached is None or not record.is_kept:
            return replace(found, provenance=provenance)
        original = reference.original
        if judge is not None:
            original = replace(original, score=judge.original)
            tuned = replace(tuned, metadata=replace(tuned.metadata, score=judge.score.name))
        rows = {"original": original, "result": reached}
        return replace(found.with_answer(tuned, rows), provenance=provenance)

    def _before(self, found: SearchResult) -> Measurement:
        """The answer, judged on the examples that are measured on now."""
        judge = self.judge
        if judge is None:
            return found.measured
        module = quantize(self.model, found.assignment)
        return replace(found.measured, score=judge.of_made(module, found.assignment))

    def tried(self, assignment: Assignment) -> tuple[Assignment, TuningRecord]:
        """The assignment after the best epoch, whatever the decision says of it, and that."""
        choosing, deciding = self.examples.choosing, self.examples.deciding
        told = TuningRecord(
            TUNINGS.spell(self.tuning), False, share=self.examples.share,
            num_measured=self.examples.measured.num_examples,
        )  # fmt: skip
        if choosing is None or deciding is None:
            why = f"it takes {FEWEST} unseen examples to choose an epoch and to decide"
            return assignment, replace(told, why=why)
        student = Student.of(self.model, assignment, self.tuning)
        told = replace(
            told, num_choosing=choosing.num_examples, num_deciding=deciding.num_examples,
            left=student.left, still=student.still,
        )  # fmt: skip
        if not student.parts:
            return assignment, replace(told, why="nothing of the answer can be tuned")
        try:
            history = self._tuned(student, choosing)
        except GradientError as error:
            return assignment, replace(
                told, why=f"the network cannot be differentiated: {error.cause}"
            )
        told = replace(told, epochs=tuple(history.losses), best=history.best)
        if not history.best:
            why = "no epoch lost less than none on the examples that choose"
            more = f" ({history.why})" if history.why else ""
            return assignment, replace(told, why=f"{why}{more}")
        made = student.tuned()
        reference = self._reference(deciding, assignment)
        before, after = (measured(self.model, each, reference) for each in (assignment, made))
        is_better = is_above_chance(relative_gains(before.by_example, after.by_example))
        told = replace(
            told, is_kept=is_better, why="" if is_better else _NO_GAIN, loss=after.divergence,
            loss_before=before.divergence,
        )  # fmt: skip
        return made, told

    def _tuned(self, student: Student, choosing: Calibration) -> History:
        """Trains the student; it is then as it was after the best epoch."""
        assignment = student.assignment
        reference = self._reference(choosing, assignment)
        device = device_of(student.module)
        batches = [batch.to(device) for batch in self.examples.seen]
        checkpoint = Checkpoint(self.folder, self._key(assignment, batches, choosing))
        descent = Descent(
            student, batches, lambda: reference.compare(student.module).divergence, self.tuning,
            self.seed, checkpoint,
        )  # fmt: skip
        teacher, metric = self._teacher(assignment), _metric(assignment)
        of_stages = stages(student, teacher, metric, self.tuning.blocks)
        history = descent.run(of_stages)
        checkpoint.remove()
        return history

    def _teacher(self, assignment: Assignment) -> nn.Module:
        """The original; for blocks opened and folded as the quantized network is."""
        seed, untuned = assignment.metadata.allow_randomness, replace(assignment, tuned=None)
        if not self.tuning.blocks:
            return begin_alike(share_parameters(self.model), seed)
        return begin_alike(prepared(*transformed(self.model, untuned)), seed)

    def _key(self, assignment: Assignment, batches: list[Batch], choosing: Calibration) -> str:
        """Of all that the course of a tuning hangs on."""
        weights, vectors = assignment.weights, assignment.tuned
        told = (
            assignment.to_json(),
            None if weights is None else weights.sha256,
            None if vectors is None else vectors.sha256,
            TUNINGS.spell(self.tuning),
            self.seed,
            [batch.checksum() for batch in batches],
            [batch.checksum() for batch in choosing],
            str(torch.__version__),
        )
        return sha256(repr(told).encode()).hexdigest()

    def _reference(self, data: Calibration, assignment: Assignment) -> Reference:
        plain, seed = share_parameters(self.model), assignment.metadata.allow_randomness
        return Reference(plain, data, _metric(assignment), seed)


def _metric(assignment: Assignment) -> OutputMetric:
    return METRICS.build(assignment.metadata.metric or "kl")

"""The training itself: Adam over epochs, the best of them kept, each of them on the disk."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import cos, pi
from time import perf_counter
from typing import Any, Final, TypeAlias, final

import torch
from torch import Tensor

from mpq._support.progress import track
from mpq.errors import ModelError
from mpq.network.examples import Batch
from mpq.sensitivity.passes.differentiation import check_reached, translated
from mpq.tuning._base import Tuning
from mpq.tuning.checkpoint import Checkpoint
from mpq.tuning.objectives import Objective
from mpq.tuning.pace import Pace
from mpq.tuning.parts import TuneAll
from mpq.tuning.student import Part, Student, require_gradients, restored
from mpq.tuning.tuned_vector import TunedVector

PATIENCE: Final = 4
"""Epochs without a new best one, after which it ends, where it was to take up to twice as many."""
Stage: TypeAlias = tuple[tuple[Part, ...], Objective]
"""What is tuned together, and for what."""
Step: TypeAlias = list[Batch]


@final
@dataclass
class History:
    """How it went.

    Args:
        losses: On the examples that choose the epoch: before, and after each epoch.
        best: Which of them is the least; 0: none is less than before.
        why: Why it ended before its last epoch; empty: it did not.
    """

    losses: list[float] = field(default_factory=list)
    best: int = 0
    why: str = ""


@final
@dataclass(frozen=True, eq=False)
class Descent:
    """Tunes a student stage by stage.

    In every epoch all steps come in another order, which the seed says; over the epochs they shrink
    to 0 along half a cosine wave. After each epoch the student is measured; in the end it is as it
    was after the best one, or as it came. Where the network's answers are not finite any more, its
    stage ends.

    Args:
        student: What is tuned.
        batches: Examples, on the student's device; kept in memory.
        measure: The student's loss on the examples that choose the epoch.
        tuning: Epochs and steps.
        seed: Of the order.
        checkpoint: Where the state after each epoch is kept.
    """

    student: Student
    batches: Sequence[Batch]
    measure: Callable[[], float]
    tuning: Tuning
    seed: int
    checkpoint: Checkpoint

    def run(self, stages: Sequence[Stage]) -> History:
        """All stages, one after another, from where the checkpoint is.

        Raises:
            GradientError: If the network cannot be differentiated.
        """
        kept = self.checkpoint.read()
        history = History() if kept is None else History(**kept["history"])
        start = perf_counter()
        if kept is None:
            history.losses.append(self.measure())
        first = 0 if kept is None else kept["stage"]
        done = 0 if kept is None else first * self.tuning.epochs + kept["epoch"]
        left = len(stages) * self.tuning.epochs - done  # of a tuning that goes on
        pace = Pace(left, perf_counter() - start)
        epochs = track(self._epochs(stages, first, kept, history, pace), "tuning, epochs", left)
        for _ in epochs:
            pass
        return history

    def _epochs(
        self,
        stages: Sequence[Stage],
        first: int,
        kept: dict[str, Any] | None,
        history: History,
        pace: Pace,
    ) -> Iterator[None]:
        for place, (parts, objective) in enumerate(stages):
            if place < first:
                continue
            yield from self._stage(place, parts, objective, kept, history, pace)
            kept = None
            for parameter in self.student.module.parameters():
                parameter.requires_grad_(False)

    def _stage(
        self,
        place: int,
        parts: Sequence[Part],
        objective: Objective,
        kept: dict[str, Any] | None,
        history: History,
        pace: Pace,
    ) -> Iterator[None]:
        require_gradients(parts, self.student.module)
        optimizer = self._optimizer(parts)
        best, done, since = _copied(self.student), 0, 0
        least = min(history.losses)
        if kept is not None:
            restored(self.student, kept["tensors"])
            optimizer.load_state_dict(kept["optimizer"])
            best, done, since = kept["best"], kept["epoch"], kept["since"]
        # Of many epochs the best come last, when steps are small: at least half of them are waited.
        patience = max(PATIENCE, self.tuning.epochs // 2)
        while done < self.tuning.epochs and since < patience:
            try:
                self._epoch(done, parts, objective, optimizer, pace)
                with _running_away():
                    loss = self.measure()
            except _RanAwayError as error:
                history.why = f"the network ran away: {error.__cause__}"
                break
            done, since = done + 1, since + 1
            history.losses.append(loss)
            if loss < least:
                least, since, best = loss, 0, _copied(self.student)
                history.best = len(history.losses) - 1
            self.checkpoint.write(
                {
                    "stage": place,
                    "epoch": done,
                    "since": since,
                    "tensors": _copied(self.student),
                    "optimizer": optimizer.state_dict(),
                    "best": best,
                    "history": vars(history),
                }
            )
            yield
        restored(self.student, best)

    def _optimizer(self, parts: Sequence[Part]) -> torch.optim.Adam:
        # Each with the largest step of its kind, by which the schedule's share is multiplied.
        code_lr = self.tuning.code_lr if isinstance(self.tuning, TuneAll) else 0.0
        leaves = [
            (leaf, code_lr if is_code else self.tuning.lr) for leaf, is_code in _leaves(parts)
        ]
        return torch.optim.Adam(
            [{"params": [leaf], "lr": lr, "largest": lr} for leaf, lr in leaves], lr=self.tuning.lr
        )

    def _epoch(
        self,
        epoch: int,
        parts: Sequence[Part],
        objective: Objective,
        optimizer: torch.optim.Adam,
        pace: Pace,
    ) -> None:
        """One pass over the examples."""
        steps = _steps(self.batches, self.tuning.batch_size, self.seed + epoch)
        for number, step in enumerate(pace.stepping(steps)):
            share = 0.5 * (1 + cos(pi * (epoch + number / len(steps)) / self.tuning.epochs))
            for group in optimizer.param_groups:
                group["lr"] = group["largest"] * share
            # What is wrong with the network itself, its first pass tells.
            with nullcontext() if epoch == number == 0 else _running_away():
                self._gradients(step, parts, objective)
            optimizer.step()
            optimizer.zero_grad()
            for part in parts:
                part.after_step()
                part.fill()

    def _gradients(self, step: Step, parts: Sequence[Part], objective: Objective) -> None:
        count = sum(batch.size for batch in step)
        with torch.enable_grad(), translated():
            for batch in step:
                loss = objective.loss(batch) / count
                check_reached(loss)
                loss.backward()
        for part in parts:
            part.backward()


class _RanAwayError(Exception):
    """Its cause says what the network did after some steps that it did not do before."""


@contextmanager
def _running_away() -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise _RanAwayError from error


def _leaves(parts: Sequence[Part]) -> Iterator[tuple[Tensor, bool]]:
    """What is learned, and whether it is a code."""
    for part in parts:
        if isinstance(part, TunedVector):
            yield part.moved, False
            continue
        yield part.log_scale, False
        if part.latent is not None:
            yield part.latent.latent, True


def _copied(student: Student) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in student.tensors().items()}


def _steps(batches: Sequence[Batch], batch_size: int, seed: int) -> list[Step]:
    """The examples in an order of their own, some at a time."""
    pieces = [piece for batch in batches for piece in _pieces(batch, batch_size)]
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))
    steps: list[Step] = [[]]
    for place in order.tolist():
        if sum(batch.size for batch in steps[-1]) + pieces[place].size > batch_size and steps[-1]:
            steps.append([])
        steps[-1].append(pieces[place])
    return steps


def _pieces(batch: Batch, batch_size: int) -> Iterator[Batch]:
    if batch.size <= batch_size:
        yield batch
        return
    for start in range(0, batch.size, batch_size):
        yield batch.slice(start, start + batch_size)

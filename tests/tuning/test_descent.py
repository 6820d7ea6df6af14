"""Training: it mends what is mis-scaled, goes on where it was killed, and ends where it must."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.errors import FileFormatError, GradientError
from mpq.network.examples import Batch
from mpq.network.metric import KL
from mpq.network.modules import share_parameters
from mpq.problem.assignment import Assignment
from mpq.tuning import TUNINGS
from mpq.tuning.blocks import stages
from mpq.tuning.checkpoint import CHECKPOINT_FILE, Checkpoint
from mpq.tuning.descent import Descent, History, _steps
from mpq.tuning.student import Student
from tests.workflows.networks import Net, batches

Sizes = list[int]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def assignment(model: nn.Module) -> Assignment:
    """All layers at 3 bits with codes to nearest, the scales of which are a third too large."""
    task = mpq.Task(model, batches(4), rounding="nearest", candidates=["w3", "w8"])
    found = mpq.search(task, {"effective_bits": 8}, sensitivity="weight-error").assignment
    student = Student.of(model, found, TUNINGS.build("scales"))
    for weight in student.weights:
        with torch.no_grad():
            weight.log_scale.add_(0.3)
    return student.tuned()


class Run:
    """One tuning, measured on a batch of its own."""

    def __init__(
        self, model: nn.Module, assignment: Assignment, what: str, folder: Path | None = None
    ) -> None:
        self.student = Student.of(model, assignment, TUNINGS.build(what))
        self.teacher = share_parameters(model)
        self.unseen = Batch.of(batches(6)[5])
        self.die_after: int | None = None
        self.measured = 0
        self.data = [Batch.of(batch) for batch in batches(4)]
        self.descent = Descent(
            self.student, self.data, self.measure, TUNINGS.build(what), 0, Checkpoint(folder, "key")
        )

    def measure(self) -> float:
        if self.measured == self.die_after:
            raise KeyboardInterrupt
        self.measured += 1
        with torch.no_grad():
            outputs = (
                module(*self.unseen.args)[:, None] for module in (self.teacher, self.student.module)
            )
            return float(KL.divergence(*outputs).mean())

    def run(self) -> History:
        by_blocks = self.descent.tuning.blocks
        return self.descent.run(stages(self.student, self.teacher, KL, by_blocks))

    def numbers(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.student.tensors().items()}


@pytest.mark.parametrize(
    "what", ["scales:epochs=6,lr=0.03,batch_size=16", "all:epochs=6,lr=0.03,batch_size=16"]
)
def test_a_mis_scaled_network_is_mended(
    model: nn.Module, assignment: Assignment, what: str
) -> None:
    """On examples that it was not tuned on, and scales come down to what they were."""
    run = Run(model, assignment, what)

    history = run.run()

    assert history.losses[history.best] == min(history.losses)
    assert min(history.losses) < 0.4 * history.losses[0]
    assert run.measure() == history.losses[history.best]
    moved = torch.cat([weight.log_scale.detach().flatten() for weight in run.student.weights])
    assert -0.5 < float(moved.mean()) < -0.05


@pytest.mark.parametrize(
    "what",
    [
        "scales:epochs=3,batch_size=16",
        "all:epochs=3,batch_size=16",
        "all:epochs=2,batch_size=16,blocks=true",
    ],
)
@pytest.mark.parametrize("die_after", [1, 2, 3])
def test_killed_and_called_again_it_is_the_same(
    model: nn.Module, assignment: Assignment, what: str, die_after: int, tmp_path: Path
) -> None:
    """Bit by bit, wherever it was killed; nothing is left in the folder that would say so."""
    whole, first, second = (Run(model, assignment, what, f) for f in (None, tmp_path, tmp_path))
    expected = whole.run()
    first.die_after = die_after
    with pytest.raises(KeyboardInterrupt):
        first.run()

    found = second.run()

    assert found == expected
    assert second.measured < whole.measured or die_after == 1
    numbers = second.numbers()
    assert all(torch.equal(tensor, numbers[name]) for name, tensor in whole.numbers().items())


def test_two_runs_are_the_same(model: nn.Module, assignment: Assignment) -> None:
    """The seed says all, and another one another order."""
    one, other = (
        Run(model, assignment, "all:epochs=2,batch_size=16"),
        Run(model, assignment, "all:epochs=2,batch_size=16"),
    )
    third = Run(model, assignment, "all:epochs=2,batch_size=16")
    third.descent = replace(third.descent, seed=1)

    assert one.run() == other.run()
    assert third.run() != one.run()


def test_the_state_of_another_tuning_is_not_gone_on_with(
    model: nn.Module, assignment: Assignment, tmp_path: Path
) -> None:
    """Its key is another; and what is no state at all is refused by name."""
    Checkpoint(tmp_path, "other").write({"stage": 0})

    assert Checkpoint(tmp_path, "key").read() is None
    assert Checkpoint(tmp_path, "other").read() == {"key": "other", "stage": 0}
    (tmp_path / CHECKPOINT_FILE).write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="cannot be read as the state of a tuning"):
        Checkpoint(tmp_path, "key").read()


def test_where_it_only_gets_worse_all_stays(model: nn.Module, assignment: Assignment) -> None:
    """Examples that answer the other way round: after half of its epochs it ends, as it came."""
    run = Run(model, assignment, "all:epochs=30,lr=0.1,code_lr=0.1,batch_size=16")
    before, measure = run.student.module(*run.unseen.args), run.measure
    run.descent = replace(run.descent, measure=lambda: -measure())

    history = run.run()

    assert history.best == 0
    assert len(history.losses) == 1 + 15
    assert torch.equal(run.student.module(*run.unseen.args), before)


class Fragile(nn.Module):
    """Its answers are not finite once its bias has moved by much."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(72, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x.flatten(1))
        return found / ((self.layer.bias - 1).abs().max() < 0.5)


def test_a_network_that_runs_away_is_brought_back() -> None:
    """Its stage ends with the reason, and it is as it was at its best."""
    torch.manual_seed(0)
    model = Fragile().eval()
    nn.init.ones_(model.layer.bias)
    task = mpq.Task(model, batches(4), rounding="nearest", candidates=["w2"])
    found = mpq.search(task, {"effective_bits": 8}, sensitivity="weight-error").assignment
    run = Run(model, found, "scales:epochs=4,lr=0.9,batch_size=16")

    history = run.run()

    assert history.why.startswith("the network ran away: the network's output has values that")
    assert run.measure() == min(history.losses)


class Detached(nn.Module):
    """No gradient reaches its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(72, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x.flatten(1)).detach()
        return found


def test_a_network_without_gradients_says_so() -> None:
    """In the words that estimators have for it."""
    model = Detached().eval()
    task = mpq.Task(model, batches(4), rounding="nearest", candidates=["w2"])
    found = mpq.search(task, {"effective_bits": 8}, sensitivity="weight-error").assignment

    with pytest.raises(GradientError, match="does not depend on any quantizable layer"):
        Run(model, found, "scales").run()


def cut(sizes: Sizes, batch_size: int, seed: int = 0, **options: Any) -> Iterator[list[int]]:
    """The examples of every step, which are numbered."""
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    data = [
        Batch.of(torch.arange(start, start + size).float()[:, None], **options)
        for start, size in zip(starts, sizes, strict=True)
    ]
    for step in _steps(data, batch_size, seed):
        yield [int(x) for batch in step for x in batch.args[0][:, 0]]


@pytest.mark.parametrize("sizes", [[16, 16], [1] * 20, [50], [3, 5, 7]])
def test_a_step_has_so_many_examples(sizes: Sizes) -> None:
    """Large batches are cut, small ones joined; every example is in one step."""
    steps = list(cut(sizes, 8))

    assert sorted(x for step in steps for x in step) == list(range(sum(sizes)))
    assert max(map(len, steps)) <= 8
    assert list(cut(sizes, 8)) == steps


def test_a_batch_that_is_one_example_is_not_cut() -> None:
    """Its rows change each other's outputs."""
    whole = [Batch.of(torch.randn(10, 3)).whole() for _ in range(3)]

    steps = _steps(whole, 2, 0)

    assert [len(step) for step in steps] == [2, 1]
    assert all(batch.args[0].shape == (10, 3) for step in steps for batch in step)


@pytest.mark.parametrize(("epochs", "measured"), [(7, 1 + 4), (8, 1 + 4), (20, 1 + 10)])
def test_half_of_many_epochs_is_waited_for_a_better_one(
    model: nn.Module, assignment: Assignment, epochs: int, measured: int
) -> None:
    run = Run(model, assignment, f"scales:epochs={epochs}")
    # The best of a long tuning come last, when its steps are small: here none comes.
    losses = iter(range(100))
    descent = replace(run.descent, measure=lambda: float(next(losses)))
    history = descent.run(stages(run.student, run.teacher, KL, False))
    assert len(history.losses) == measured
    assert history.best == 0

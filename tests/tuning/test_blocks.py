"""Blocks of networks, and what each is tuned for."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq._support.arrays import Array
from mpq.backends.simulate import prepared
from mpq.network.examples import Batch
from mpq.network.metric import KL
from mpq.tuning import TUNINGS
from mpq.tuning.blocks import blocks, stages
from mpq.tuning.objectives import Answers, BlockOutput
from mpq.tuning.student import Student


class Block(nn.Module):
    """A residual block with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 12)
        self.down = nn.Sequential(nn.ReLU(), nn.Linear(12, 6))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.down(self.up(self.norm(x)))
        return found


class Body(nn.Module):
    """Blocks in a list, a norm behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.last = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.last(x)
        return found


class Whole(nn.Module):
    """A layer, a body, a head that is declared first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.stem = nn.Sequential(nn.Linear(5, 6))
        self.body = Body()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(self.stem(x)))
        return found


X = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Whole().eval()


@pytest.fixture(scope="module")
def student(model: nn.Module) -> Student:
    task = mpq.Task(model, [X], rounding="nearest", candidates=["w2"])
    found = mpq.search(task, {"effective_bits": 32}, sensitivity="weight-error").assignment
    return Student.of(model, found, TUNINGS.build("all"))


def test_members_of_lists_are_blocks_and_other_layers_by_themselves(student: Student) -> None:
    """In the order of calls, whatever the order in which they are declared."""
    assert blocks(student) == ["stem.0", "body.blocks.0", "body.blocks.1", "head"]


def test_a_block_has_its_layers_and_norms(student: Student, model: nn.Module) -> None:
    """What lies in none of them is in no stage."""
    made = stages(student, model, KL, by_blocks=True)
    whole = stages(student, model, KL, by_blocks=False)

    names = [
        [p.names[0] if hasattr(p, "names") else p.place.parameter for p in parts]
        for parts, _ in made
    ]
    assert names[1] == [
        "body.blocks.0.up", "body.blocks.0.down.1", "body.blocks.0.norm.weight",
        "body.blocks.0.norm.bias", "body.blocks.0.up.bias", "body.blocks.0.down.1.bias",
    ]  # fmt: skip
    assert len(whole) == 1
    assert isinstance(whole[0][1], Answers)
    left = {id(p) for p in student.parts} - {id(p) for parts, _ in made for p in parts}
    assert len(left) == 2  # the last norm's


def test_the_loss_of_a_block_is_that_of_its_output(student: Student, model: nn.Module) -> None:
    """Squared error over squared length, by numpy; gradients reach that block alone."""
    teacher = prepared(model, student.assignment)
    block = "body.blocks.1"
    seen = {}
    for name, module in (("float", teacher), ("quantized", student.module)):
        part = module.get_submodule(block)
        handle = part.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        module(X)
        handle.remove()
    found, wanted = (seen[name].detach().double().numpy() for name in ("quantized", "float"))

    loss = BlockOutput(teacher, student.module, block).loss(Batch.of(X))

    expected = len(X) * np.square(found - wanted).sum() / np.square(wanted).sum()
    assert float(loss.detach()) == pytest.approx(expected)
    assert not any(m._forward_hooks for m in teacher.modules())


def test_the_loss_of_answers_is_the_metric(student: Student, model: nn.Module) -> None:
    """Summed over examples, from a plain softmax in numpy."""

    def log_softmax(values: Tensor) -> Array:
        found: Array = values.detach().double().numpy()
        shifted: Array = found - np.log(np.exp(found).sum(axis=1, keepdims=True))
        return shifted

    p, q = log_softmax(model(X)), log_softmax(student.module(X))

    loss = Answers(model, student.module, KL).loss(Batch.of(X))

    assert float(loss.detach()) == pytest.approx((np.exp(p) * (p - q)).sum())

"""Covered and named numbers are all there are, and what is named counts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import mpq
from mpq.network.coverage import Coverage
from mpq.network.network import Network


class Functional(nn.Module):
    """A matrix that is used without a module, beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.free = nn.Parameter(torch.randn(4, 5))
        self.scale = nn.Parameter(torch.ones(5))
        self.register_buffer("count", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(7), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of five classes."""
        found: Tensor = self.fc(x).relu() @ self.free.abs() * self.scale
        return found


class Tied(nn.Module):
    """An embedding whose matrix is the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(self.embed(ids))
        return found


class Recurrent(nn.Module):
    """An LSTM, one of whose weights is computed from a length and a direction."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = weight_norm(nn.LSTM(6, 6, batch_first=True), "weight_hh_l0")
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for every token."""
        found: Tensor = self.fc(self.lstm(x)[0])
        return found


class Attending(nn.Module):
    """Attention, whose three projections are computed as one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        spectral_norm(self.attention, "in_proj_weight")

    def forward(self, x: Tensor) -> Tensor:
        """Logits for every token."""
        found: Tensor = self.attention(x, x, x)[0]
        return found


class Twice(nn.Module):
    """A module of two inputs, given one twice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.inner(x, x)
        return found


class FreeNorm(nn.Module):
    """A computed weight that a function uses."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 5))
        weight_norm(self, "matrix")

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = x @ self.matrix
        return found


def folded() -> nn.Module:
    """A convolution with its BatchNorm."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))


def attention() -> nn.Module:
    """Projections that are views of one parameter."""
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "functional": (Functional, lambda: torch.randn(4, 6)),
    "tied": (Tied, lambda: torch.randint(0, 9, (4, 3))),
    "folded": (folded, lambda: torch.randn(4, 3, 8, 8)),
    "attention": (attention, lambda: torch.randn(4, 5, 8)),
    "normed lstm": (Recurrent, lambda: torch.randn(4, 5, 6)),
    "normed attention": (Attending, lambda: torch.randn(4, 5, 6)),
    "normed bilinear": (
        lambda: Twice(weight_norm(nn.Bilinear(6, 6, 5))), lambda: torch.randn(4, 6)
    ),
    "normed matrix": (FreeNorm, lambda: torch.randn(4, 6)),
    "half": (lambda: nn.Linear(6, 5).bfloat16(), lambda: torch.randn(4, 6).bfloat16()),
}  # fmt: skip


def coverage_of(name: str) -> tuple[nn.Module, Coverage]:
    """A model of a case, and what of it lies in layers."""
    torch.manual_seed(0)
    make, draw = CASES[name]
    model = make().eval()
    found = Network.of(model, [draw()]).coverage
    assert found is not None
    return model, found


@pytest.mark.parametrize("name", CASES)
def test_covered_and_named_are_all_parameters_and_buffers(name: str) -> None:
    """In numbers of all, in bytes of what a checkpoint has."""
    model, found = coverage_of(name)

    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    stored = {id(t): t for t in model.state_dict(keep_vars=True).values()}.values()
    outside = sum(item.num_elements for item in found.outside)
    outside_bytes = sum(item.num_bytes for item in found.outside if item.is_stored)
    assert found.covered_elements + outside == found.num_elements == sum(t.numel() for t in tensors)
    assert found.num_bytes == sum(t.numel() * t.element_size() for t in stored)
    assert found.covered_bytes + outside_bytes == found.num_bytes


def test_what_is_used_without_a_module_is_named_and_counted() -> None:
    """Its bytes are in every answer's weight_bytes, and a sentence says so."""
    torch.manual_seed(0)
    data = [torch.randn(8, 6)]
    task = mpq.Task(Functional().eval(), data, data, candidates=["w4", "w8"])

    result = mpq.search(task, {"weight_bytes": "1x:w4"})

    (used,) = (budget.used(result.columns) for budget in result.problem.budgets)
    assert result.coverage is not None
    assert [x.name for x in result.coverage.weights_outside] == ["free"]
    assert used == 6 * 4 / 2 + 4 * 4 + 4 * 5 * 4  # codes, scales, and the matrix in float32
    sentences = result.coverage.sentences
    assert "counted in weight_bytes as they are: free (33.9 %)" in sentences[1]
    assert sentences[2] == "computed by the model and not stored: scratch"


def test_layers_hold_everything_but_vectors_of_a_plain_network() -> None:
    """The projections of attention are views, a tied matrix is one, a computed one has sources."""
    for name in CASES.keys() - {"functional"}:
        assert coverage_of(name)[1].weights_outside == ()


def test_an_excluded_layer_is_named_and_in_no_budget() -> None:
    """It was the user who left it out."""
    data = [torch.randn(4, 6)]
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()

    found = Network.of(model, data, exclude=["2"]).coverage

    assert found is not None
    assert found.weights_outside == ()
    assert [x.name for x in found.outside if x.is_left_out] == ["2.weight"]
    assert found.sentences[1].startswith("left out as asked, in no budget: 2.weight, together")

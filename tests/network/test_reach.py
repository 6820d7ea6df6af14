"""Which layers the data reaches: in all batches, by how many examples, and without a call."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpq
from mpq.network.network import Network
from mpq.network.reach import Reach


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Experts(nn.Module):
    """An example's first number says which experts it goes to, as the digits of a binary number."""

    def __init__(self, experts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.experts = nn.ModuleList(experts)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, y = self.first(x), torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = ((x[:, 0].long() >> index) & 1).nonzero()[:, 0]
            if len(rows):
                y = y.index_add(0, rows, expert(h[rows]))
        logits: Tensor = self.head(h + y)
        return logits


def batch_of(*codes: int) -> Tensor:
    """One example for each code."""
    x = torch.randn(len(codes), 4)
    x[:, 0] = torch.tensor(codes, dtype=torch.float32)
    return x


def linear_experts(count: int) -> Experts:
    """Experts of one layer each."""
    return Experts([nn.Linear(4, 4) for _ in range(count)]).eval()


def test_a_layer_that_a_later_batch_reaches_is_found() -> None:
    """Experts of the second batch are layers; the one of no batch is named."""
    data = [batch_of(1, 1, 1, 0), batch_of(2, 2, 0, 0), batch_of(0, 0, 0, 0)]

    network = Network.of(linear_experts(3), data)

    names = [layer.name for layer in network.layers]
    assert names == ["first", "experts.0", "head", "experts.1"]
    assert network.layers[-1].weight_shape == (4, 4)
    assert network.layers[-1].fed_by == ("first",)
    assert network.uncalled == ("experts.2",)
    assert network.reach == Reach(12, ("experts.2",), (), {"experts.0": 3, "experts.1": 2})


@pytest.mark.parametrize("size", [1, 2, 3, 4, 12])
def test_examples_are_counted_one_by_one(size: int) -> None:
    """Whatever the batch size, an expert is reached by those examples whose code has its digit."""
    codes = [1, 3, 2, 0, 5, 7, 1, 1, 3, 2, 0, 5]
    x = batch_of(*codes)

    reach = Network.of(linear_experts(4), list(x.split(size))).reach

    expected = {f"experts.{i}": sum(code >> i & 1 for code in codes) for i in range(3)}
    assert dict(reach.partly) == expected
    assert reach.never == ("experts.3",)


def test_convolutions_with_as_many_channels_as_examples() -> None:
    """The second axis of a convolution's input is channels, also where it equals the batch."""

    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            which = x[:, 0, 0, 0] > 0
            y = torch.zeros_like(x)
            for conv, rows in zip(self.convs, (which, ~which), strict=True):
                y[rows] = conv(x[rows])
            return y.flatten(2).mean(dim=2)

    x = torch.rand(4, 4, 3, 3)
    x[0] -= 2

    reach = Network.of(Images().eval(), [x]).reach

    assert reach.partly == {"convs.0": 3, "convs.1": 1}


def test_what_all_examples_share_is_reached_by_all() -> None:
    """A table of positions is read once for the whole batch: no example is left out."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.fc(x + self.table(torch.arange(5))).mean(dim=1)
            return found

    reach = Network.of(Positions().eval(), [torch.randn(3, 5, 4), torch.randn(2, 5, 4)]).reach

    assert reach == Reach(5)


def test_a_network_for_whole_batches_only_is_not_counted() -> None:
    """Where single examples do not run, it is said that not all reach the layer, not how many."""

    class Whole(Experts):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(5, 4))

    model = Whole([nn.Linear(4, 4)]).eval()

    reach = Network.of(model, [batch_of(1, 1, 1, 0, 0)]).reach

    assert reach.partly == {"experts.0": None}
    assert reach.sentences() == ("reached by a part of the 5 examples: experts.0 by some",)


class Tail(nn.Module):
    """A called layer, then a function of another one that is not called."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.fc, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.function(self.other, self.fc(x))
        return found


USES = {
    "linear": lambda other, x: F.linear(x, other.weight, other.bias),
    "matmul": lambda other, x: x @ other.weight.t(),
    "einsum": lambda other, x: torch.einsum("ni,oi->no", x, other.weight),
    "by keyword": lambda other, x: F.linear(x, weight=other.weight),
    "cast": lambda other, x: x @ other.weight.to(x.dtype),
    "data": lambda other, x: x @ other.weight.data,
}
OTHER_USES = {
    "in a list": lambda other, x: x + torch.cat([other.weight, other.weight]).sum(),
    "added": lambda other, x: other.weight.sum() + x,
}
NO_USES = {
    "shape": lambda other, x: x[:, : other.weight.shape[0]],
    "dtype": lambda other, x: x.to(other.weight.dtype),
    "type of": lambda other, x: x.type_as(other.weight),
    "to": lambda other, x: x.to(other.weight),
    "zeros": lambda other, x: x + torch.zeros_like(other.weight).sum(),
    "new zeros": lambda other, x: x + other.weight.new_zeros(()),
    "nothing": lambda _, x: x,
}


@pytest.mark.parametrize("use", USES)
def test_a_weight_that_is_used_as_a_weight_without_a_call_is_a_layer(use: str) -> None:
    """Its module is not called, but the layer that the weight is."""
    network = Network.of(Tail(USES[use]).eval(), [torch.randn(3, 4)])

    assert [layer.name for layer in network.layers] == ["fc", "other.weight"]
    assert network.reach == Reach(3)


@pytest.mark.parametrize("use", OTHER_USES)
def test_a_weight_that_is_used_without_a_call_is_named_as_such(use: str) -> None:
    """It computes something, but no hook sees its module called."""
    reach = Network.of(Tail(OTHER_USES[use]).eval(), [torch.randn(3, 4)]).reach

    assert reach == Reach(3, without_call=("other",))


@pytest.mark.parametrize("use", NO_USES)
def test_asking_for_a_shape_or_a_type_is_no_use(use: str) -> None:
    """None of a weight's numbers are read."""
    reach = Network.of(Tail(NO_USES[use]).eval(), [torch.randn(3, 4)]).reach

    assert reach == Reach(3, never=("other",))


def test_a_tied_weight_that_its_other_layer_reads_is_not_used_without_a_call() -> None:
    """The head is not called; its weight is read by the call of the layer that it is tied to."""
    model = Tail(lambda _, x: x)
    model.other.weight = model.fc.weight

    reach = Network.of(model.eval(), [torch.randn(3, 4)]).reach

    assert reach == Reach(3, never=("other",))


def test_layers_of_a_later_batch_are_tied_as_those_of_the_first() -> None:
    """Two experts of the second batch that read one tensor, and one that shares a parameter."""

    class Gated(nn.Module):
        def __init__(self, tied: Any) -> None:
            super().__init__()
            self.gate, self.up = nn.Linear(4, 4), nn.Linear(4, 4)
            self.tied = nn.Linear(4, 4)
            self.tied.weight = tied

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.tied(self.gate(x) * self.up(x))
            return found

    plain = nn.Linear(4, 4)
    model = Experts([plain, Gated(plain.weight)]).eval()

    network = Network.of(model, [batch_of(1, 1), batch_of(2, 2)])

    assert network.ties == (
        ("experts.0", "experts.1.tied"),
        ("experts.1.gate", "experts.1.up"),
    )


def test_a_fold_holds_in_every_batch_that_reaches_a_layer() -> None:
    """BatchNorm inside an expert of the second batch is folded, and the outputs stay."""
    experts = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2)]
    for expert in experts:
        expert.get_buffer("1.running_mean").add_(1)
    model, data = Experts(experts).eval(), [batch_of(1, 1, 0), batch_of(2, 3, 0)]

    network = Network.of(model, data)

    assert network.folded == {f"experts.{i}.0": f"experts.{i}.1" for i in range(2)}
    for x in data:
        with torch.no_grad():
            assert torch.allclose(network.module(x), model(x), atol=1e-5)


def test_a_norm_that_another_batch_feeds_otherwise_is_not_folded() -> None:
    """In the second batch, another layer feeds it: folded into the first, it would be missing."""

    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.norm(self.a(x) if x[0, 0] > 0 else self.b(x))
            return found

    model, x = Switch().eval(), torch.rand(3, 4)
    model.norm.weight.data += 1
    data = [x, -x]

    network = Network.of(model, data)

    assert network.folded == {}
    assert [layer.name for layer in network.layers] == ["a", "b"]


def test_the_result_says_what_was_reached_and_is_loaded_with_it(tmp_path: Any) -> None:
    """Names and counts are in the result, in its files, and there again when it is loaded."""
    model = linear_experts(3)
    data = [batch_of(1, 1, 1, 0), batch_of(2, 2, 3, 0), batch_of(0, 0, 1, 0)]
    task = mpq.Task(model, data, data, candidates=["w4", "w8"])

    result = mpq.search(task, ["effective_bits=20"], sensitivity="weight-error")
    result.save(tmp_path)

    reach = mpq.load(tmp_path).provenance.reach
    assert reach == result.provenance.reach
    assert reach == Reach(12, ("experts.2",), (), {"experts.0": 5, "experts.1": 3})

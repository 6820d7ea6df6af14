"""The same answer twice, one row an example, and a model that is left as found."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import mpq
from mpq import ESTIMATORS, Calibration, Precision
from mpq.cli.console import print_result
from mpq.errors import DataError, ModelError
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation


def rows(count: int, seed: int = 0) -> list[Tensor]:
    """Batches of 40 rows."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(40, 16, generator=generator) for _ in range(count)]


class Drawing(nn.Module):
    """Gives another answer every time."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(16, 5), how
        self.register_buffer("ring", torch.zeros(4, 5))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.layer(x)
        if self.how == "dropout":
            return nn.functional.dropout(found, 0.5)
        if self.how == "mask":
            return found * (torch.rand(len(x), 1) > 0.3)
        assert isinstance(self.ring, Tensor)
        self.ring[self.calls % 4] = found.detach().mean(0)
        self.calls += 1
        return found + self.ring.mean(0)


@pytest.mark.parametrize(
    ("how", "why"), [("dropout", "--allow-randomness"), ("mask", "--allow-randomness"),
                     ("ring", "kept between calls")]
)  # fmt: skip
def test_another_answer_to_the_same_input_is_refused(how: str, why: str) -> None:
    """With the size of the difference and the option where it helps, before any estimate."""
    with pytest.raises(ModelError, match=rf"another answer: outputs differ by up to \d.*{why}"):
        Network.of(Drawing(how).eval(), rows(1))


def test_what_is_kept_between_calls_is_refused_with_a_seed_too() -> None:
    """It is not drawn by the generators that a seed fixes."""
    task = mpq.Task(Drawing("ring").eval(), rows(4), allow_randomness=0)

    with pytest.raises(ModelError, match="kept between calls .* no seed of torch, numpy or Python"):
        mpq.search(task, {"effective_bits": 7})


class DrawingOnce(nn.Module):
    """Draws, or counts, only where an input is large."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.how, self.calls = nn.Linear(16, 5), how, 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.layer(x)
        if x.abs().max() < 50:
            return found
        self.calls += 1
        return found + (torch.rand(5) if self.how == "draws" else self.calls)


@pytest.mark.parametrize(("how", "why"), [("draws", "--allow-randomness"), ("counts", "no seed")])
@pytest.mark.parametrize(
    ("index", "where"),
    [(2, "batch 2 of the calibration data"), (5, "batch 1 of the examples to measure on")],
)
def test_another_answer_in_a_later_batch_is_refused(
    how: str, why: str, index: int, where: str
) -> None:
    """Which one, and by how much; also in the held-out data, and without static ranges."""
    data = rows(6)
    data[index][0, 0] = 99.0
    task = mpq.Task(DrawingOnce(how).eval(), data[:4], data[4:], candidates=["w4", "w8"])

    with pytest.raises(ModelError, match=rf"{where}: .*outputs differ by up to \d.*{why}"):
        mpq.search(task, {"effective_bits": 7})


def test_what_a_later_batch_draws_can_be_fixed() -> None:
    """As what the first one draws."""
    data = rows(6)
    data[2][0, 0] = data[5][0, 0] = 99.0
    task = mpq.Task(
        DrawingOnce("draws").eval(), data[:4], data[4:], candidates=["w4", "w8"], allow_randomness=1
    )

    assert mpq.search(task, {"effective_bits": 7}).measured.divergence < 0.1


class Graph(nn.Module):
    """A graph network: every node reads its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        near = ((torch.rand(40, 40) < 0.1) | torch.eye(40, dtype=torch.bool)).float()
        self.register_buffer("near", near / near.sum(dim=1, keepdim=True))
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every node."""
        assert isinstance(self.near, Tensor)
        x = torch.relu(self.near @ self.a(x))
        x = torch.relu(self.near @ self.b(x))
        found: Tensor = self.near @ self.c(x)
        return found


class Contrastive(nn.Module):
    """Scores of every row against every row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, N]``."""
        found: Tensor = self.a(x) @ self.b(x).T
        return found


class BatchStatistics(nn.Module):
    """Normalised by the batch, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm = nn.Linear(16, 32), nn.BatchNorm1d(32, track_running_stats=False)
        self.c = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.c(torch.relu(self.norm(self.a(x))))
        return found


MIXING = [Graph, Contrastive, BatchStatistics]


@pytest.mark.parametrize("make", MIXING)
def test_rows_that_are_no_examples_are_one_example(make: type[nn.Module]) -> None:
    """The sketch is then near what is measured, in every layer."""
    data = rows(16)
    network = Network.of(make().eval(), data)
    examples = network.examples(Calibration.of(data))
    candidates = [Precision.parse(text) for text in ("w4", "w8")]
    ranges = ActivationRanges.calibrate(network, examples, candidates)
    on = Estimation(network, examples, Quantizer(ranges), candidates)

    sketch = ESTIMATORS.build("sketch:num_probes=16", 0).estimate(on).table.values
    measured = ESTIMATORS.build("measured").estimate(on).table.values

    assert network.is_mixing
    assert examples.num_examples == 16
    assert (sketch / measured).min() > 0.6
    assert (sketch / measured).max() < 1.7


@pytest.mark.parametrize("make", MIXING)
@pytest.mark.parametrize("name", ["sketch", "auto"])
def test_one_batch_that_is_one_example_is_priced_near_what_it_loses(
    make: type[nn.Module], name: str
) -> None:
    """A single graph: one row of random signs would say hardly anything, so that more are drawn."""
    task = mpq.Task(make().eval(), rows(1), rows(1), candidates=["w4", "w8"])

    predicted, measured = (
        mpq.search(task, {"effective_bits": 8}, sensitivity=each).problem.loss.values
        for each in (name, "measured")
    )

    assert (predicted / measured).min() > 0.25
    assert (predicted / measured).max() < 4


@pytest.mark.parametrize("make", MIXING)
def test_a_search_on_them_needs_no_more_from_the_user(make: type[nn.Module]) -> None:
    """Batches are split, measured and reported as examples."""
    task = mpq.Task(make().eval(), rows(8), candidates=["w4", "w8"])

    result = mpq.search(task, {"effective_bits": 7})

    assert result.measured.num_examples == 2


def test_one_such_batch_cannot_be_split() -> None:
    """It is a single example."""
    task = mpq.Task(Graph().eval(), rows(1), candidates=["w4", "w8"])

    with pytest.raises(DataError, match="rows change each other's outputs so that it is one"):
        mpq.search(task, {"effective_bits": 7})


def test_independent_rows_stay_examples() -> None:
    """Also where the batch is as long as the sequence."""
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()

    assert not Network.of(model, [torch.randn(6, 6, 16)]).is_mixing


class Halving(nn.Module):
    """Two rows to one output."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.a(x[::2] + x[1::2])
        return found


@pytest.mark.parametrize(
    ("model", "data", "why"),
    [
        (nn.Linear(16, 5), [batch[:1] for batch in rows(8)], "every batch has one row"),
        (nn.Linear(16, 5), [torch.ones(4, 16)] * 8, "all rows are alike"),
    ],
    ids=["one row", "alike"],
)
def test_rows_that_cannot_be_checked_are_told(
    model: nn.Module, data: list[Tensor], why: str
) -> None:
    """Nothing is known of them, which is not the same as independent rows."""
    network = Network.of(model.eval(), data)

    assert not network.is_mixing
    assert network.unchecked_rows == why


def test_rows_of_another_number_are_one_example() -> None:
    """Nobody can tell which row of the answer belongs to which row that was read."""
    network = Network.of(Halving().eval(), rows(8))

    assert network.is_mixing
    assert network.unchecked_rows == ""


class Frames(nn.Module):
    """Four frames of every video become rows by themselves."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.a, self.mixes = nn.Linear(16, 5), mixes

    def forward(self, x: Tensor) -> Tensor:
        """Logits of all frames."""
        x = x - x.mean(dim=0) if self.mixes else x
        found: Tensor = self.a(x.flatten(0, 1))
        return found


@pytest.mark.parametrize("mixes", [False, True])
def test_several_rows_an_example_are_its_positions(mixes: bool) -> None:
    """The loss is a mean over them, as of an answer ``[N, P, C]``, and mixing is seen."""
    torch.manual_seed(0)
    model, data = Frames(mixes).eval(), [torch.randn(6, 4, 16) for _ in range(2)]
    task = mpq.Task(model, data, data, candidates=["w3", "w8"])

    found = mpq.search(task, {"effective_bits": "0.8x:w8"}, sensitivity="measured")

    assert Network.of(model, data).is_mixing == mixes
    quantized = mpq.quantize(model, found.assignment)
    with torch.no_grad():
        losses = [
            nn.functional.kl_div(
                quantized(x).log_softmax(-1), model(x).log_softmax(-1), log_target=True,
                reduction="batchmean",
            )
            for x in data
        ]  # fmt: skip
    assert found.measured.divergence == pytest.approx(float(sum(losses)) / 2, rel=1e-3)


class Centred(nn.Module):
    """Rows less their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.a(x - x.mean(dim=0))
        return found


def test_a_later_batch_is_looked_at_where_the_first_has_one_row() -> None:
    """It would hide what the others show."""
    network = Network.of(Centred().eval(), [rows(1)[0][:1], *rows(2)])

    assert network.is_mixing
    assert network.unchecked_rows == ""


def test_a_search_says_what_was_not_checked(tmp_path: Path) -> None:
    """In the record, which is loaded as it was saved, and in the terminal; else nothing."""
    console = Console(width=400, record=True, file=io.StringIO())
    alone = [batch[:1] for batch in rows(8)]
    results = [
        mpq.search(mpq.Task(model.eval(), data, candidates=["w4", "w8"]), ["effective_bits=9"])
        for model, data in ((BatchFree(), alone), (BatchFree(), rows(8)), (Centred(), rows(8)))
    ]

    results[0].save(tmp_path / "alone")
    results[2].save(tmp_path / "mixing")
    loaded = mpq.load(tmp_path / "alone")
    for result in results:
        print_result(result, console)

    assert loaded.provenance.unchecked_rows == "every batch has one row"
    assert results[1].provenance.unchecked_rows == ""
    assert [result.provenance.is_mixing for result in results] == [False, False, True]
    assert mpq.load(tmp_path / "mixing").provenance.is_mixing
    said = console.export_text()
    assert said.count("a whole batch is one example") == 1
    assert said.count("not checked: whether rows of a batch change each other's outputs") == 1


class BatchFree(nn.Module):
    """Two layers, row by row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.b(torch.relu(self.a(x)))
        return found


class Counting(nn.Module):
    """Counts its calls in a buffer and in an attribute, and draws without using it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(16, 5), 0
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        assert isinstance(self.seen, Tensor)
        self.seen += 1
        self.calls += 1
        torch.rand(3)
        np.random.rand(3)
        random.random()
        found: Tensor = self.layer(x)
        return found


def test_buffers_counters_and_random_states_are_left_as_found() -> None:
    """Though every forward pass changes them."""
    model = Counting().eval()
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()

    task = mpq.Task(model, rows(2), rows(1), candidates=["w4", "w8"])
    mpq.search(task, {"effective_bits": 7})

    assert (model.calls, model.get_buffer("seen").item()) == (0, 0.0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())
    assert before[2] == random.getstate()


class Remembering(nn.Module):
    """Reads what it said of the batch before, from a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 5)
        self.before: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h: Tensor = self.a(x)
        before, self.before = self.before, h.detach()
        return h if before is None else before + 0 * h


def test_what_is_kept_in_an_attribute_is_refused() -> None:
    """Twice the same batch gives twice the same answer; with another one in between it does not."""
    with pytest.raises(ModelError, match="once other examples were read in between") as refused:
        Network.of(Remembering().eval(), rows(2))

    assert "differ by up to " in str(refused.value)
    assert "in an attribute of the network" in str(refused.value)


class Ring(nn.Module):
    """Adds what it said of the batch before, which a buffer holds."""

    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), nn.Linear(8, 3)
        self.register_buffer("last", torch.zeros(8))
        self.register_buffer("still", torch.full((2,), float("nan")))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = torch.relu(self.a(x))
        out: Tensor = self.b(h + self.last)
        self.last.copy_(h.detach().mean(0))
        return out


@pytest.mark.parametrize("size", [2, 8])
def test_a_buffer_that_is_kept_is_named(size: int) -> None:
    """With the size of the difference, and only the buffer that a pass writes."""
    with pytest.raises(ModelError, match=r"differ by up to \S+, where the largest") as refused:
        Network.of(Ring().eval(), [batch[:size] for batch in rows(3)])

    assert "in the buffer 'last'." in str(refused.value)

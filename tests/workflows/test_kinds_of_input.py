"""Inputs that are more than one tensor of examples: nested, lists, masks, written to."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.network.examples import Batch
from mpq.network.network import Network

N = 4
"""Examples in a batch, and as many positions, layers or rows of a table, to be confused with."""


class States(nn.Module):
    """Four recurrent layers that begin in given states ``[4, N, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.LSTM(6, 8, 4, batch_first=True), nn.Linear(8, 5)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Tensor:
        """Logits after the last position."""
        found: Tensor = self.head(self.rnn(x, state)[0][:, -1])
        return found


class Masked(nn.Module):
    """Attention under a mask ``[T, T]`` of minus infinity, with as many positions as examples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Logits of every position."""
        found: Tensor = self.head(self.layer(x, src_mask=mask))
        return found


class Compared(nn.Module):
    """Every example against every row of a table, which has as many."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 16), nn.Linear(3, 16)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Logits ``[N, rows]``."""
        found: Tensor = torch.relu(self.a(x)) @ self.b(table).T
        return found


class Images(nn.Module):
    """A detector's way of reading: a list of images of any size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, images: list[Tensor], targets: None = None) -> dict[str, Tensor]:
        """Logits of every image."""
        assert targets is None
        pooled = [torch.relu(self.conv(x[None])).mean(dim=(2, 3)) for x in images]
        return {"logits": self.head(torch.cat(pooled))}


class InPlace(nn.Module):
    """Normalises its input where it lies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every image."""
        x.sub_(0.5).div_(0.2)
        found: Tensor = self.head(torch.relu(self.conv(x)).mean(dim=(2, 3)))
        return found


def _batches(make: Callable[[torch.Generator], Any]) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [make(generator) for _ in range(8)]


def states() -> list[Any]:
    """``((x, (h, c)), None)``."""

    def one(g: torch.Generator) -> Any:
        h, c = torch.randn(2, 4, N, 8, generator=g)
        return (torch.randn(N, 7, 6, generator=g), (h, c)), None

    return _batches(one)


def masked() -> list[Any]:
    """Sequences of ``N`` positions, and a causal mask."""
    mask = torch.full((N, N), float("-inf")).triu(1)
    return _batches(lambda g: ((torch.randn(N, N, 8, generator=g), mask), None))


def compared() -> list[Any]:
    """Examples, and the table."""
    table = torch.randn(N, 3, generator=torch.Generator().manual_seed(2))
    return _batches(lambda g: ((torch.randn(N, 6, generator=g), table), None))


def images() -> list[Any]:
    """Images of several sizes, with what a detector is trained on."""

    def one(g: torch.Generator) -> Any:
        found = [torch.rand(3, 8 + i, 9, generator=g) for i in range(N)]
        return found, [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1)} for _ in found]

    return _batches(one)


def in_place() -> list[Any]:
    """Images between 0 and 1."""
    return _batches(lambda g: torch.rand(N, 3, 8, 8, generator=g))


KINDS: dict[str, tuple[type[nn.Module], Callable[[], list[Any]], tuple[int | None, ...] | None]] = {
    "states": (States, states, (0, 1, 1)),
    "masked": (Masked, masked, (0, None)),
    "compared": (Compared, compared, (0, None)),
    "images": (Images, images, None),
    "in_place": (InPlace, in_place, None),
}


def make_states() -> nn.Module:
    """For the command line, as the others."""
    return States().eval()


def make_masked() -> nn.Module:
    """See ``Masked``."""
    return Masked().eval()


def make_compared() -> nn.Module:
    """See ``Compared``."""
    return Compared().eval()


def make_images() -> nn.Module:
    """See ``Images``."""
    return Images().eval()


def make_in_place() -> nn.Module:
    """See ``InPlace``."""
    return InPlace().eval()


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_a_batch_gives_the_rows_of_the_whole(kind: str) -> None:
    """Each input is cut along the axis of the examples, or not at all."""
    make, data, axes = KINDS[kind]
    model = make().eval()
    network = Network.of(model, data())

    batch = next(iter(network.examples(mpq.Calibration.of(data()))))
    whole, middle = network.outputs(batch), network.outputs(batch.slice(1, 3))

    assert network.axes == axes
    assert batch.size == N
    assert torch.allclose(middle, whole[1:3], atol=1e-5)
    assert torch.allclose(network.outputs(batch.repeated(2))[N:], whole, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_agrees_with_measuring(kind: str) -> None:
    """30 of 32 examples are given and 22 calibrate: batches are cut; the data stay as they are."""
    make, data, _ = KINDS[kind]
    given = data()
    before = [x.clone() for batch in given for x in Batch.of(batch).tensors]

    def found(sensitivity: str) -> mpq.SearchResult:
        task = mpq.Task(make().eval(), mpq.Calibration(given, 0, 30), candidates=["w4", "w8"])
        return mpq.search(task, {"weight_bytes": "0.9x:w8"}, sensitivity=sensitivity)

    sketch, measured = found("sketch:num_probes=32"), found("measured")

    ratio = sketch.problem.loss.values / measured.problem.loss.values
    assert ratio.min() > 0.4
    assert ratio.max() < 2.5
    assert sketch.measured.num_examples == 8
    after = [x for batch in given for x in Batch.of(batch).tensors]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_takes_each(kind: str, tmp_path: Path) -> None:
    """With no option of its own."""
    here = sys.modules[__name__].__file__

    result = CliRunner().invoke(app, [
        "search", "--model", f"{here}:make_{kind}", "--data", f"{here}:{kind}", "--precisions",
        "w4,w8", "--limit", "weight_bytes=0.9x:w8", "--output", str(tmp_path),
    ])  # fmt: skip

    assert result.exit_code == 0, result.output


class Detections(nn.Module):
    """Keeps what scores above the mean: how many depends on the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.boxes, self.scores = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(16, 1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Boxes of every image."""
        found = []
        for image in images:
            read = torch.relu(self.a(image.flatten(0, 1)))
            scores = self.scores(read)[:, 0]
            found.append({"boxes": self.boxes(read)[scores > scores.mean() + 0.03]})
        return found


@pytest.mark.parametrize("sensitivity", ["auto", "measured", "weight-error"])
def test_another_number_of_detections_has_a_sentence(sensitivity: str) -> None:
    """Wherever it is compared first."""
    generator = torch.Generator().manual_seed(1)
    data = [(([torch.rand(3, 20, 6, generator=generator)] * 2,), None) for _ in range(4)]
    task = mpq.Task(
        Detections().eval(), data, candidates=["w2", "w8"], metric="outputs:terms=0.boxes"
    )

    with pytest.raises(mpq.errors.ModelError, match="depends on its own numbers"):
        mpq.search(task, {"weight_bytes": "0.9x:w8"}, sensitivity=sensitivity)


def test_evaluate_leaves_the_data_as_they_are() -> None:
    """Both networks read the same numbers, though each writes into what it reads."""
    data = in_place()
    result = mpq.search(
        mpq.Task(InPlace().eval(), data[:6], data[6:], candidates=["w4", "w8"]),
        {"weight_bytes": "0.9x:w8"},
    )

    again = mpq.evaluate(InPlace().eval(), result.assignment, data[6:])

    assert again["quantized"].divergence == pytest.approx(result.measured.divergence, rel=1e-5)
    assert all(torch.equal(x, y) for x, y in zip(data, in_place(), strict=True))


class SequenceFirst(nn.Module):
    """A recurrent network as torch has them by default: ``[T, N, C]`` in, ``[N, classes]`` out."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Logits of the last step."""
        found: Tensor = self.head(self.rnn(x, state)[0][-1])
        return found


@pytest.mark.parametrize("with_state", [False, True])
def test_a_sequence_first_network_has_its_examples_second(with_state: bool) -> None:
    """Batches are cut along the second axis: no sequence is cut short."""
    torch.manual_seed(0)
    model = SequenceFirst().eval()
    state = (torch.zeros(1, 10, 12), torch.randn(1, 10, 12))
    inputs = [(torch.randn(7, 10, 6), *((state,) if with_state else ())) for _ in range(3)]
    data: list[Any] = [(x, None) if with_state else x[0] for x in inputs]
    task = mpq.Task(model, data, data, candidates=["w3", "w8"])

    found = mpq.search(task, {"effective_bits": "0.8x:w8"}, sensitivity="measured")

    assert found.measured.num_examples == 30
    quantized = mpq.quantize(model, found.assignment)
    inputs = [
        (x, state) if with_state else (x,) for x in (d[0][0] if with_state else d for d in data)
    ]
    with torch.no_grad():
        by_hand = sum(
            float(
                nn.functional.kl_div(
                    quantized(*each).double().log_softmax(-1),
                    model(*each).double().log_softmax(-1),
                    log_target=True,
                    reduction="sum",
                )
            )
            for each in inputs
        )
    assert found.measured.divergence == pytest.approx(by_hand / 30, rel=1e-2)

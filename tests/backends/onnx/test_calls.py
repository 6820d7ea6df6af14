"""Layers that are called twice, exported and timed; what an export says of itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnx", reason="mpq[onnx]")
pytest.importorskip("onnxruntime", reason="mpq[onnx]")

from mpq.backends import ExportedFile, export
from mpq.backends.onnx import Subgraph, open_session
from mpq.errors import InputError
from mpq.hardware_profiles.profiling.compiled_network import CompiledNetwork
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.network.workload import Workload
from mpq.problem.assignment import Assignment
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import Ranges
from mpq.workflows.profile import profile
from mpq.workflows.search import search
from mpq.workflows.task import Task


class Twice(nn.Module):
    """One layer reads vectors, then sequences of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        longer = self.a(x).relu().unsqueeze(1).repeat(1, 3, 1)
        out: Tensor = self.c(self.a(longer).mean(1))
        return out


class Merged(nn.Module):
    """One layer reads two others; each of those hands over once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.b = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).relu()) + self.b(self.c(x).relu())
        return out


class Ending(nn.Module):
    """The output is a convolution's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.first(x).relu()
        return {"hidden": hidden, "logits": self.last(hidden)}


def compiled(make: Callable[[], nn.Module], data: list[Tensor]) -> CompiledNetwork:
    """Calibrated and exported."""
    torch.manual_seed(0)
    calibration = Calibration.of(data)
    network = Network.of(make().eval(), calibration)
    return CompiledNetwork.of(network, calibration, [Precision.parse("w7a8")], 1, Ranges())


def test_all_calls_of_a_layer_are_one_piece() -> None:
    """Two calls of unlike shapes are two inputs of the graph."""
    alone = Subgraph.alone(compiled(Twice, [torch.randn(4, 32)]).template, "a")

    assert [x.shape for x in alone.examples] == [(1, 32), (1, 3, 32)]


def test_a_piece_begins_with_the_call_that_it_holds() -> None:
    """The classifier follows the second call, whose shape is another than the first one's."""
    pieces = Subgraph.between(compiled(Twice, [torch.randn(4, 32)]).template)

    (piece,) = [piece for piece in pieces if piece.layers == ("a", "c")]
    assert [x.shape for x in piece.examples] == [(1, 3, 32)]


def test_a_hand_over_counts_once() -> None:
    """Although its reader is called twice."""
    pieces = Subgraph.between(compiled(Merged, [torch.randn(4, 8)]).template)

    assert {piece.layers: piece.calls for piece in pieces} == {("a", "b"): 1, ("c", "b"): 1}


@pytest.mark.parametrize(
    ("make", "data"), [(Twice, torch.randn(4, 32)), (Merged, torch.randn(4, 8))]
)
def test_layers_that_are_called_twice_are_profiled(
    make: Callable[[], nn.Module], data: Tensor
) -> None:
    """Whatever the shapes of their calls."""
    torch.manual_seed(0)

    task = Task(make().eval(), [data], candidates=["fp32", "w7a8"])
    found = profile(task, rounds=10, num_networks=3, max_interval=100.0)

    assert found.latency.values.shape[1] == 2
    assert (found.latency.values >= 0).all()


def exported(
    make: Callable[[], nn.Module], data: Tensor, precision: str, path: Path
) -> tuple[ExportedFile, Assignment]:
    """Uniformly, through the public functions."""
    torch.manual_seed(0)
    model = make().eval()
    found = search(Task(model, [data], candidates=[precision]), {"effective_bits": 32})
    return export(found.assignment, path, "onnx", model, [data]), found.assignment


def test_an_export_is_tried(tmp_path: Path) -> None:
    """Seven bits do not saturate, so that only the rounded outputs of convolutions differ."""
    made, _ = exported(Ending, torch.randn(8, 3, 8, 8), "w7a8", tmp_path / "net.onnx")

    assert made.deviation is not None
    assert 0 < made.deviation < 0.2
    assert "much" not in made.verdict


@pytest.mark.parametrize("precision", ["w7a8", "fp32"])
def test_the_output_has_one_name(precision: str, tmp_path: Path) -> None:
    """The tensor that mpq compares is the only output, called the same in every assignment."""
    import onnx

    made, _ = exported(Ending, torch.randn(8, 3, 8, 8), precision, tmp_path / "net.onnx")
    graph = onnx.load(made.path)

    assert [value.name for value in graph.graph.output] == ["output"]
    assert open_session(graph).run(
        None, {graph.graph.input[0].name: torch.randn(1, 3, 8, 8).numpy()}
    )[0].shape == (1, 4, 4, 4)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_an_example(batch_size: int, tmp_path: Path) -> None:
    """Before anything is calibrated, measured or written."""
    model, data = Merged().eval(), [torch.randn(4, 8)]

    with pytest.raises(InputError, match=f"batch size is at least 1; got {batch_size}"):
        profile(Task(model, data, workload=Workload(batch_size)), journal=tmp_path / "journal")
    assert list(tmp_path.iterdir()) == []


def test_hugging_face_decoders_are_exported(tmp_path: Path) -> None:
    """Only the logits: caches are left out."""
    transformers = pytest.importorskip("transformers", reason="mpq[test]")
    configuration = transformers.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(configuration).eval()
    data = [{"input_ids": torch.randint(40, (4, 6))}]
    found = search(Task(model, data, candidates=["w7a8"]), {"effective_bits": 32})

    made = export(found.assignment, tmp_path / "net.onnx", "onnx", model, data)

    assert made.deviation is not None
    assert made.deviation < 0.2

"""Where LiteRT computes something else than the simulation, the first layer that does is named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpq.backends import shipping
from mpq.backends.export_check import ExportCheck
from mpq.backends.litert.flatbuffer import read_model, written_model
from mpq.backends.litert.graph import Graph
from mpq.backends.litert.target import FILE, LiteRt
from mpq.backends.shipping import ship
from mpq.backends.target import Shipped
from mpq.errors import ModelError
from mpq.network.examples import Batch
from tests.backends.onnx.networks import Images, Words, examples, in_turn, made

MIXES = [("w4",), ("w8a8d",), ("w8a8", "w4a8"), ("w8aint16s",)]


class Calls(nn.Module):
    """A line, a layer that is called twice, and a number behind a layer, beside its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(8, 6, 3, padding=1)
        self.again, self.joined = nn.Linear(6, 6), nn.Linear(6, 4)
        self.head = nn.Linear(4, 5)
        self.more = nn.Parameter(torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.line(x.mean(1)).mean(-1)
        x = self.again(self.again(x).tanh()).tanh()
        found: Tensor = self.head((self.joined(x) + self.more).tanh())
        return found


def shipped(
    kind: type[nn.Module], mix: tuple[str, ...], folder: Path, target: LiteRt | None = None
) -> ExportCheck:
    """A network in a mix of precisions, exported."""
    pytest.importorskip("litert_torch")
    model, used = made(kind), target or LiteRt()
    spelled = f"litert:batch_size={used.batch_size}"
    return ship(used, spelled, in_turn(model, used, mix), folder, model, examples(model))


def after_writing(
    monkeypatch: pytest.MonkeyPatch, layer: str, change: Callable[[Graph, int], None]
) -> None:
    """Changes the first constant with a layer's bias before the file is loaded."""
    write = LiteRt.write

    def changed(self: LiteRt, shipped: Shipped, folder: Path) -> None:
        write(self, shipped, folder)
        graph = Graph(read_model((folder / FILE).read_bytes()))
        weight = self.load(folder).layers[layer]["index"]  # type: ignore[attr-defined]
        decoded = {int(x.outputs[0]) for x in graph.readers(weight) if len(x.inputs) == 1}
        (operator,) = (x for i in {weight, *decoded} for x in graph.readers(i) if len(x.inputs) > 2)
        change(graph, int(operator.inputs[2]))
        (folder / FILE).write_bytes(written_model(graph.model))

    monkeypatch.setattr(LiteRt, "write", changed)


def larger(graph: Graph, tensor: int) -> None:
    """Adds half of the largest number to all of a constant's, and one more."""
    kinds = {0: np.float32, 2: np.int32, 4: np.int64}
    found = graph.subgraph.tensors[tensor]
    buffer = graph.model.buffers[found.buffer]
    numbers = np.frombuffer(bytes(buffer.data), kinds[found.type]).copy()
    numbers += (np.abs(numbers).max() * 2 + 1).astype(numbers.dtype)
    buffer.data = np.frombuffer(numbers.tobytes(), np.uint8)


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix[0])
@pytest.mark.parametrize("layer", ["grouped", "hidden", "head"])
def test_the_first_layer_that_computes_something_else_is_named(
    layer: str, mix: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weight is decoded alike, and its bias is another one; with and without a ReLU behind."""
    after_writing(monkeypatch, layer, larger)

    with pytest.raises(
        ModelError, match=rf"decoded alike\. the first layer [a-z ]* is '{layer}', by"
    ):
        shipped(Images, mix, tmp_path / "out")

    assert not list(tmp_path.iterdir())


def test_a_layer_of_several_examples_is_named_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that runs three at once, whose rows lie along one axis."""
    after_writing(monkeypatch, "down", larger)

    with pytest.raises(ModelError, match=r"decoded alike\. the first layer [a-z ]* is 'down', by"):
        shipped(Words, ("w4",), tmp_path / "out", LiteRt(batch_size=3))


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("mix", [("w8",), ("w8a8d",)], ids=lambda mix: mix[0])
def test_every_call_is_compared(
    mix: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a layer whose bias the converter would add something to."""
    monkeypatch.setattr(shipping, "trace_fresh", lambda *_: pytest.fail("it was run again"))
    check = shipped(Calls, mix, tmp_path / "out")
    model = made(Calls)
    (data,) = (x[:1] for x in examples(model)[:1])

    found = LiteRt().load(tmp_path / "out").traced(Batch((data,), {}))  # type: ignore[attr-defined]

    names = ("line", "again", "again (call 2)", "joined", "head")
    assert check.num_layers == 4
    assert set(found) == {f"{what}:{name}" for what in ("input", "output") for name in names}
    assert found["output:line"].shape == (1, 6, data.shape[-1])
    assert found["output:head"].shape == (1, 5)

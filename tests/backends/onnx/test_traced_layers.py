"""Where a runtime of graphs computes something else: the first layer that differs is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from mpq.backends.onnx.qdq import OnnxQdq
from mpq.backends.openvino import OpenVino
from mpq.backends.shipping import ship
from mpq.backends.target import Shipped, Target
from mpq.errors import ModelError
from tests.backends.onnx.networks import Images, in_turn, made
from tests.backends.onnx.networks import examples as of_images

pytest.importorskip("onnx", reason="graphs are written with mpq[onnx]")
pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")
pytest.importorskip("onnxruntime", reason="runs the graphs; mpq[onnx]")

pytestmark = pytest.mark.usefixtures("one_trace_per_network")
TARGETS = ("onnx-qdq", "openvino")


class Padding(nn.Conv2d):
    """Has a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Pictures(nn.Module):
    """A layer with a forward of its own between plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.padded, self.head = nn.Conv2d(3, 4, 3), Padding(4, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(self.padded(self.stem(x).relu()).relu().mean((2, 3)))
        return found


class Repeated(nn.Module):
    """A layer that is called twice, between two others; read by rows ``[N, 3, 8, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, 8, 5]``."""
        found: Tensor = self.last(self.twice(self.twice(self.first(x)).relu()).relu())
        return found


class Twins(nn.Module):
    """A layer that is called twice on one tensor: the exporter makes one call of both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.joined, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, 8, 5]``."""
        x = self.stem(x).relu()
        found: Tensor = self.last(self.joined(x).relu() + self.joined(x).sigmoid())
        return found


def built(name: str, batch_size: int = 1) -> Target:
    """One of the two."""
    pytest.importorskip("openvino" if name == "openvino" else "onnxruntime")
    return OpenVino(batch_size) if name == "openvino" else OnnxQdq(batch_size)


def changed(folder: Path, numbers: Tensor, at: int) -> None:
    """A constant that is no weight, changed in the file: the occurrence ``at`` of its bytes."""
    (file,) = [x for x in folder.iterdir() if x.suffix in {".onnx", ".bin"}]
    array = numbers.detach().numpy()
    pieces = file.read_bytes().split(array.tobytes())
    assert len(pieces) > at + 1
    held = [array.tobytes()] * (len(pieces) - 1)
    held[at] = (array + np.float32(0.5)).tobytes()
    whole = [piece for pair in zip(pieces, [*held, b""], strict=True) for piece in pair]
    file.write_bytes(b"".join(whole))


def refused(
    target: Target, model: nn.Module, layer: str, monkeypatch: pytest.MonkeyPatch, place: Path,
    mix: tuple[str, ...] = ("w4", "w8"), at: int = 0, spelled: str = "",
) -> str:  # fmt: skip
    """What an export says whose file has another bias in one layer."""
    write: Any = type(target).write

    def with_another_bias(self: Any, shipped: Shipped, folder: Path) -> None:
        write(self, shipped, folder)
        changed(folder, dict(model.named_parameters())[f"{layer}.bias"], at)

    monkeypatch.setattr(type(target), "write", with_another_bias)
    assignment = in_turn(model, target, mix)
    with pytest.raises(ModelError) as caught:
        ship(target, spelled or target.name, assignment, place / "out", model, of_images(model))
    assert not list(place.iterdir())
    return str(caught.value)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    ("kind", "layer"),
    [(Repeated, "first"), (Repeated, "last"), (Images, "depthwise"), (Images, "up"),
     (Images, "hidden"), (Pictures, "padded")],
)  # fmt: skip
@pytest.mark.usefixtures("same_process")
def test_the_layer_is_named(
    name: str, kind: type[nn.Module], layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear layers, convolutions of all kinds, and one whose forward is its own."""
    said = refused(built(name), made(kind), layer, monkeypatch, tmp_path)

    # What hooks of a layer with a forward of its own change first, is not told.
    why = (
        "whose output differs" if kind is Pictures else "that makes something else of what it reads"
    )
    assert f"the first layer {why} is '{layer}', by 0.5" in said
    assert "all weights are decoded alike" in said


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.usefixtures("same_process")
def test_a_layer_that_stays_as_it_came_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a layer as all others, though none of its numbers are rounded."""
    said = refused(built(name), made(Images), "beside", monkeypatch, tmp_path, ("fp32", "w4"))

    assert "is 'beside', by 0.5" in said


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.usefixtures("same_process")
def test_where_inputs_are_rounded_the_layer_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what it makes of what it reads itself, as ties part two networks anywhere."""
    said = refused(built(name), made(Images), "grouped", monkeypatch, tmp_path, ("w4a8",))

    assert "something else of what it reads is 'grouped', by 0.5" in said


@pytest.mark.usefixtures("same_process")
def test_a_call_is_told_from_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call has a bias of its own in the file; the second one's is changed."""
    said = refused(built("onnx-qdq"), made(Repeated), "twice", monkeypatch, tmp_path, at=1)

    assert "reads is 'twice (call 2)', by 0.5" in said


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.usefixtures("same_process")
def test_calls_that_the_exporter_joins_are_not_guessed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls on one tensor are one in the file: the next layer reads something else already."""
    said = refused(built(name), made(Twins), "joined", monkeypatch, tmp_path)

    assert "differs is 'last', by " in said
    assert "it reads something else already" in said


@pytest.mark.parametrize("name", TARGETS)
def test_runs_of_several_examples_are_looked_at(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as the file's shapes are fixed to; here in the runtime's own process."""
    said = refused(
        built(name, 3), made(Images), "grouped", monkeypatch, tmp_path,
        spelled=f"{name}:batch_size=3",
    )  # fmt: skip

    assert "reads is 'grouped', by 0.5" in said


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.usefixtures("same_process")
def test_a_file_gives_the_networks_outputs_alone(name: str, tmp_path: Path) -> None:
    """Layers are outputs of a copy, and only where something differs."""
    target, model = built(name), made(Images)

    ship(target, name, in_turn(model, target, ("w4",)), tmp_path / "out", model, of_images(model))

    loaded: Any = target.load(tmp_path / "out")
    graph = loaded.session.get_outputs() if name == "onnx-qdq" else loaded.model.outputs
    assert len(graph) == 1

"""What a file takes and computes, for inputs and layers of every kind."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpq.backends import export, quantize
from mpq.errors import MismatchError, ModelError
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import ORIGINAL, Precision

pytest.importorskip("onnx", reason="graphs are written with mpq[onnx]")
pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")
pytest.importorskip("onnxruntime", reason="runs the graphs; mpq[onnx]")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """The same ones every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(kind: type[nn.Module]) -> nn.Module:
    """With weights that are the same every time."""
    torch.manual_seed(0)
    return kind().eval()


def assigned(model: nn.Module, data: Any, precision: Precision = ORIGINAL) -> Assignment:
    """Every layer in one precision."""
    return Assignment(
        tuple(
            AssignedLayer(x.name, x.kind, x.weight_shape, precision, None, x.is_transposed)
            for x in Network.of(model, data).layers
        )
    )


def outputs(file: Path, inputs: Sequence[Tensor]) -> Tensor:
    """What the file gives for inputs in its own order."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file))
    names = [value.name for value in session.get_inputs()]
    feeds = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, feeds)[0])


class Nested(nn.Module):
    """Three tensors of one shape, none of which can stand for another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor, rest: Any) -> Tensor:
        h, c = rest.values() if isinstance(rest, dict) else rest
        found: Tensor = self.layer(x - 2 * h + c.exp())
        return found


@pytest.mark.parametrize("is_dict", [False, True])
def test_nested_inputs_are_inputs_of_the_file(is_dict: bool, tmp_path: Path) -> None:
    """In their order; a dict at the end is no inputs by name."""
    x, h, c = (numbers(4, 6, seed=seed) for seed in range(3))
    model, inputs = made(Nested), (x, {"h": h, "c": c} if is_dict else (h, c))
    data = [(inputs, None)]

    file = export(assigned(model, data), tmp_path / "net.onnx", "onnx", model, data).path

    found = outputs(file, [x[2:3], h[2:3], c[2:3]])
    torch.testing.assert_close(found, model(*inputs)[2:3].detach())


class Swapped(nn.Module):
    """Two inputs of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.layer(x - 2 * y)
        return found


def test_inputs_by_name_in_another_order_keep_their_names(tmp_path: Path) -> None:
    """They are those of ``forward``."""
    import onnx

    x, y = numbers(4, 6), numbers(4, 6, seed=1)
    model, data = made(Swapped), [{"y": y, "x": x}]

    file = export(assigned(model, data), tmp_path / "net.onnx", "onnx", model, data).path

    names = [value.name for value in onnx.load(file).graph.input]
    found = outputs(file, [{"x": x, "y": y}[name][:1] for name in names])
    assert sorted(names) == ["x", "y"]
    torch.testing.assert_close(found, model(x, y)[:1].detach())


class Centred(nn.Module):
    """Rows change each other's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x - x.mean(0))
        return found


def test_rows_that_mix_are_exported_together(tmp_path: Path) -> None:
    """One row alone would be its own mean, and every output the bias."""
    model, x = made(Centred), numbers(5, 6)

    file = export(assigned(model, [x]), tmp_path / "net.onnx", "onnx", model, [x]).path

    torch.testing.assert_close(outputs(file, [x]), model(x).detach())


class Functional(nn.Module):
    """Weights that functions read: a matrix, another layout, experts, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 8) / 3)
        self.other = nn.Parameter(torch.randn(8, 8) / 3)
        self.experts = nn.Parameter(torch.randn(2, 8, 8) / 3)
        self.kernel = nn.Parameter(torch.randn(8, 8, 3) / 5)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv1d(x, self.kernel, padding=1).mT.relu()
        x = torch.einsum("nti,oi->nto", nn.functional.linear(x, self.matrix).relu(), self.other)
        found: Tensor = self.head((x @ self.experts[0] + (x @ self.experts[1]).relu()).mean(1))
        return found


@pytest.mark.parametrize("precision", ["fp32", "w8g16a32"])
def test_weights_that_functions_read_are_exported(precision: str, tmp_path: Path) -> None:
    """Each is a layer of the file, as it is one of the search."""
    model, x = made(Functional), numbers(4, 8, 5)
    original = assigned(model, [x])
    layers = (
        replace(layer, precision=Precision.parse(precision)) if layer.kind == "linear" else layer
        for layer in original.layers
    )
    assignment = Assignment(tuple(layers))

    file = export(assignment, tmp_path / "net.onnx", "onnx", model, [x]).path

    assert len(assignment.layers) == 6
    expected = quantize(model, assignment)(x[:1]).detach()
    torch.testing.assert_close(outputs(file, [x[:1]]), expected, rtol=1e-4, atol=1e-5)


class Averaged(nn.Module):
    """Takes sequences of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x).mean(1)
        return found


def test_batches_that_the_file_does_not_take_are_told(tmp_path: Path) -> None:
    """Its shapes are those of the first batch."""
    model, data = made(Averaged), [numbers(4, length, 6) for length in (5, 7, 5)]

    verdict = export(assigned(model, data), tmp_path / "net.onnx", "onnx", model, data).verdict

    assert "equals the network on 2 batches (not tried on 1, whose shapes" in verdict


def test_numbers_that_are_not_float32_are_refused(tmp_path: Path) -> None:
    """Graphs are made in float32; what to do is said."""
    model, x = made(Averaged).bfloat16(), numbers(4, 5, 6).bfloat16()

    with pytest.raises(ModelError, match=r"layer 'layer' is in bfloat16.*export model.float\(\)"):
        export(assigned(model, [x]), tmp_path / "net.onnx", "onnx", model, [x])


class OneByOne(nn.Module):
    """Convolves images without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.conv(image) for image in x]).mean((2, 3))


class Enlarging(nn.Module):
    """Says in the call how large a transposed convolution's output is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(x, output_size=(16, 16)).square().mean((2, 3))
        return found


class Branching(nn.Module):
    """Reaches a layer where numbers are negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rare = nn.Linear(8, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((1, 2))
        rows = (x.sum(1) < 0).nonzero()[:, 0]
        y: Tensor = self.first(x)
        return y.index_add(0, rows, self.rare(y[rows])) if len(rows) else y


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OneByOne, "layer 'conv' reads an input without a batch axis"),
        (Enlarging, "called with an output_size, are no ONNX operators: conv"),
        (Branching, r"cannot export .* \(the example does not reach rare\)"),
    ],
)
def test_what_a_file_cannot_compute_is_refused_by_layer(
    kind: type[nn.Module], message: str, tmp_path: Path
) -> None:
    """Before a file is made."""
    x = numbers(4, 3, 8, 8)
    model, data = made(kind), [x.abs(), -x.abs()]

    with pytest.raises(ModelError, match=message):
        export(assigned(model, data), tmp_path / "net.onnx", "onnx", model, data)

    assert not list(tmp_path.iterdir())


class Idle(nn.Module):
    """Calls a layer with the rows that are negative, be there any or not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rare = nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        rows = (x.sum(1) < 0).nonzero()[:, 0]
        return y.index_add(0, rows, self.rare(y[rows]))


def test_a_layer_that_reads_no_rows_has_no_range(tmp_path: Path) -> None:
    """It is no error of ours; how many rows a file's layer reads is fixed, and that is said."""
    model, data = made(Idle), [numbers(4, 6).abs(), -numbers(4, 6).abs()]

    with pytest.raises(ModelError, match="cannot export"):
        export(assigned(model, data), tmp_path / "net.onnx", "onnx", model, data)


def test_examples_that_reach_fewer_layers_are_refused(tmp_path: Path) -> None:
    """Those of the search reached them all."""
    x = numbers(4, 3, 8, 8)
    model = made(Branching)
    assignment = assigned(model, [x.abs(), -x.abs()])

    with pytest.raises(MismatchError, match="do not reach every assigned layer.*'rare'.*search"):
        export(assignment, tmp_path / "net.onnx", "onnx", model, [x.abs()])

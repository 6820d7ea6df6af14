"""What cannot become an ONNX file is refused, by what is wrong with it."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.backends import export
from mpq.errors import MismatchError, MissingDependencyError, ModelError, OutputError
from mpq.network.network import find_layers
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import ORIGINAL, Precision

pytest.importorskip("onnx", reason="graphs are written with mpq[onnx]")
pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")


def images() -> list[Tensor]:
    """A batch of 4."""
    return [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))]


def unquantized(model: nn.Module) -> Assignment:
    """Every layer as it is."""
    layers = find_layers(model, images())
    return Assignment(
        tuple(AssignedLayer(x.name, x.kind, x.weight_shape, ORIGINAL) for x in layers)
    )


class Reflecting(nn.Module):
    """Pads with what ONNX's convolution cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = (
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.conv(x).mean((2, 3)))
        return found


class Deciding(nn.Module):
    """Control flow that depends on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.mean((2, 3)))
        return y if y.sum() > 0 else -y


class Decomposing(nn.Module):
    """An operator that ONNX lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.linalg.eigvals(self.layer(x)).real.flatten(1)
        return found


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Reflecting, "layer 'conv' pads with 'reflect'"),
        (Deciding, "cannot export .*depends on the numbers"),
        (Decomposing, "cannot export .*linalg_eig"),
    ],
)
def test_network_that_onnx_cannot_say_is_refused(
    kind: type[nn.Module], message: str, tmp_path: Path
) -> None:
    """By the layer, or by torch's operator."""
    model = kind().eval()
    assignment = unquantized(model)

    with pytest.raises(ModelError, match=message):
        export(assignment, tmp_path / "net.onnx", "onnx", model, images())
    assert not list(tmp_path.iterdir())


def test_assignment_of_another_network_is_refused(tmp_path: Path) -> None:
    """As when it is applied."""
    assignment = unquantized(Deciding().eval())

    with pytest.raises(MismatchError, match="another network: this one lacks 'layer linear 2x3'"):
        export(assignment, tmp_path / "net.onnx", "onnx", Reflecting().eval(), images())


def test_batch_larger_than_the_first_is_refused(tmp_path: Path) -> None:
    """There are 4 examples to show the shapes."""
    assignment = unquantized(Reflecting().eval())

    with pytest.raises(ModelError, match="the first batch has 4 examples, not 5"):
        export(
            assignment, tmp_path / "net.onnx", "onnx:batch_size=5", Reflecting().eval(), images()
        )


class Plain(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x.mean((1, 2)))
        return found


def test_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A folder is there."""
    model = Plain().eval()

    with pytest.raises(OutputError, match="a folder is there"):
        export(unquantized(model), tmp_path, "onnx", model, images())


def test_model_in_training_mode_is_refused(tmp_path: Path) -> None:
    """As everywhere."""
    model = Plain().eval()
    assignment = unquantized(model)

    with pytest.raises(ModelError, match="call model.eval"):
        export(assignment, tmp_path / "net.onnx", "onnx", model.train(), images())


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_package_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the line that installs it, before anything else is done."""
    model = Plain().eval()
    assignment = unquantized(model)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingDependencyError, match=rf"{package}: pip install 'mpq\[onnx\]'"):
        export(assignment, tmp_path / "net.onnx", "onnx", model, images())


class Standardized(nn.Conv2d):
    """A weight-standardised convolution."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(input, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class WithStandardized(nn.Module):
    """One such convolution, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = Standardized(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.conv(x).mean((2, 3)))
        return found


def test_a_quantized_layer_with_a_forward_of_its_own_is_named(tmp_path: Path) -> None:
    """ONNX's convolution would drop the standardisation: nothing is written."""
    model, file = WithStandardized().eval(), tmp_path / "net.onnx"
    plain = unquantized(model)
    layers = tuple(
        replace(x, precision=Precision.parse("w8")) if x.name == "conv" else x for x in plain.layers
    )

    with pytest.raises(ModelError, match="forward of their own cannot be exported quantized: conv"):
        export(Assignment(layers), file, "onnx", model, images())

    assert not file.exists()


def test_a_layer_with_a_forward_of_its_own_is_exported_as_it_is(tmp_path: Path) -> None:
    """In fp32 the file computes what the module computes."""
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, file = WithStandardized().eval(), tmp_path / "net.onnx"
    (batch,) = images()

    export(unquantized(model), file, "onnx", model, [batch])

    session = runtime.InferenceSession(str(file))
    (found,) = session.run(None, {session.get_inputs()[0].name: batch[:1].numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(batch[:1]).detach())


def test_a_graph_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: here a writer that drops the bias."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).eval()
    monkeypatch.setattr("mpq.backends.onnx.layer_nodes.LayerCall._bias", None)

    with pytest.raises(ModelError, match="graph with every layer in fp32 is .* off the network"):
        export(unquantized(model), tmp_path / "net.onnx", "onnx", model, images())


class Scaled(nn.Module):
    """Takes a number beside the tensor, which a graph holds as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        found: Tensor = self.layer(x) * scale
        return found


def test_a_graph_that_is_wrong_for_a_later_batch_is_refused(tmp_path: Path) -> None:
    """What the exporter fixed on the example holds for the other batches, or no file is made."""
    torch.manual_seed(0)
    model, file = Scaled().eval(), tmp_path / "net.onnx"
    batches = [{"x": torch.randn(4, 3), "scale": scale} for scale in (1.0, 3.0)]
    assignment = Assignment((AssignedLayer("layer", "linear", (2, 3), ORIGINAL),))

    with pytest.raises(ModelError, match="graph with every layer in fp32 is .* off the network"):
        export(assignment, file, "onnx", model, batches)

    assert not file.exists()


class TiedByFunction(nn.Module):
    """A head that reads the table of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(9, 8), nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of every token."""
        h = torch.relu(self.body(self.embed(ids)))
        return torch.nn.functional.linear(h, self.embed.weight)


def test_a_table_that_a_function_reads_is_refused_where_it_is_quantized(tmp_path: Path) -> None:
    """The graph would hold it twice, once in floats, and compute something else."""
    torch.manual_seed(0)
    model, data = TiedByFunction().eval(), [torch.randint(0, 9, (4, 5))]
    task = mpq.Task(model, data, data, candidates=["w4a8", "w8a8"])
    assignment = mpq.search(task, {"effective_bits": "0.8x:w8a8"}).assignment

    with pytest.raises(ModelError, match=r"functions read .* exported quantized: embed"):
        export(assignment, tmp_path / "net.onnx", "onnx", model, data)

"""What cannot become an ONNX file is refused, by what is wrong with it."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mpq.backends import export
from mpq.errors import MismatchError, MissingDependencyError, ModelError, OutputError
from mpq.network.network import find_layers
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import ORIGINAL

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
        (Deciding, "cannot export .*data-dependent"),
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

"""Folding that the network does not have is refused, whatever the file says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.errors import MismatchError
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision

W8 = Precision.parse("w8a32")


def make_net() -> nn.Sequential:
    """Two convolutions of equally many channels, each with its BatchNorm, and a wider third."""
    torch.manual_seed(0)
    sizes = ((1, 8), (8, 8), (8, 4))
    net = nn.Sequential()
    for index, (inputs, outputs) in enumerate(sizes):
        net.add_module(f"conv{index}", nn.Conv2d(inputs, outputs, 3, padding=1))
        net.add_module(f"bn{index}", nn.BatchNorm2d(outputs))
        net.add_module(f"relu{index}", nn.ReLU())
    net.add_module("flat", nn.Flatten())
    with torch.no_grad():  # statistics that differ, as after training
        for _ in range(20):
            net(3 * torch.randn(16, 1, 4, 4) + 1)
    return net.eval()


@pytest.fixture
def images() -> list[Tensor]:
    """Two batches."""
    return [torch.randn(6, 1, 4, 4) for _ in range(2)]


@pytest.fixture
def found(images: list[Tensor]) -> Assignment:
    """Every layer at 8 bits, with the network's own folding."""
    network = Network.of(make_net(), images)
    layers = tuple(AssignedLayer(x.name, x.kind, x.weight_shape, W8) for x in network.layers)
    return Assignment(layers, network.ties, network.folded)


SWAPPED = {"conv0": "bn1", "conv1": "bn0", "conv2": "bn2"}


def test_the_networks_own_folding_is_let_in(found: Assignment, images: list[Tensor]) -> None:
    """What the search did is what is applied."""
    measured = mpq.evaluate(make_net(), found, images)

    assert measured["quantized"].divergence < 1e-4


def test_folding_of_the_wrong_pair_is_refused_where_there_are_examples(
    found: Assignment, images: list[Tensor]
) -> None:
    """Names, kinds and channels fit; only the outputs tell."""
    with pytest.raises(MismatchError, match="folding BatchNorm as it says changes the output"):
        mpq.evaluate(make_net(), replace(found, folded=SWAPPED), images)


def test_folding_of_other_channels_is_refused(found: Assignment) -> None:
    """Without examples as well."""
    wrong = replace(found, folded={"conv0": "bn2"})

    with pytest.raises(MismatchError, match="'bn2' has 4 channels, the layer 8"):
        mpq.quantize(make_net(), wrong)


def test_an_edited_folding_is_refused_when_it_is_read(found: Assignment, tmp_path: Path) -> None:
    """It is a part of the fingerprint."""
    text = found.to_json().replace('"conv0": "bn0"', '"conv0": "bn1"')
    text = text.replace('"conv1": "bn1"', '"conv1": "bn0"')
    (tmp_path / "a.json").write_text(text)

    with pytest.raises(mpq.InputError, match="do not have the fingerprint that the file states"):
        Assignment.load(tmp_path / "a.json")


def test_an_export_folds_what_the_assignment_says_or_nothing(
    found: Assignment, images: list[Tensor], tmp_path: Path
) -> None:
    """A graph is traced anew: that its folding is another one must not pass unseen."""
    pytest.importorskip("onnxscript")

    with pytest.raises(MismatchError, match="it does not fold the BatchNorms that this one has"):
        mpq.export(replace(found, folded=SWAPPED), tmp_path / "a.onnx", "onnx", make_net(), images)

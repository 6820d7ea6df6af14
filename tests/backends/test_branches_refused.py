"""No tool has a place for what stands beside a weight's codes, and none leaves it out silently."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mpq
from mpq.backends import BACKENDS, Backend, Simulate, Target, Text
from mpq.errors import PrecisionError
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange

OTHERS = [name for name in BACKENDS.names() if BACKENDS.get(name) not in (Simulate, Text)]
TARGETS = [name for name in OTHERS if issubclass(BACKENDS.get(name), Target)]
SPELLINGS = ["w4g32+s1%a16", "w4g32+r2a16", "w8+r2a8", "wmxfp4+s2%a32", "w4+s1%a8d"]


def network() -> nn.Module:
    """One layer of a shape that tools like."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 128)).eval()


def assignment(spelled: str) -> Assignment:
    """All of it in one precision."""
    precision = Precision.parse(spelled)
    found = ActivationRange(-1.0, 1.0) if spelled.endswith("a8") else None
    return Assignment((AssignedLayer("0", "linear", (128, 128), precision, found),))


@pytest.mark.parametrize("spelled", SPELLINGS)
@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_no_branch(name: str, spelled: str) -> None:
    """Whether or not it holds the codes; a search for it is refused, too."""
    target = BACKENDS.build(name)
    assert isinstance(target, Target)
    (layer,) = assignment(spelled).layers

    assert "beside a weight's codes" in target.why_not(layer, layer.precision, None)
    with pytest.raises(PrecisionError, match="beside a weight's codes"):
        target.check([layer])


@pytest.mark.parametrize("spelled", SPELLINGS)
@pytest.mark.parametrize("name", OTHERS)
def test_nothing_is_written_without_the_branch(name: str, spelled: str, tmp_path: Path) -> None:
    """By name of the layer, before anything is written."""
    examples = [torch.zeros(2, 128)]

    with pytest.raises(PrecisionError, match="layer '0' at .*beside a weight's codes"):
        mpq.export(assignment(spelled), tmp_path / "out", name, network(), examples)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", [name for name in OTHERS if BACKENDS.get(name).makes_networks], ids=str
)
def test_no_network_is_made_without_the_branch(name: str) -> None:
    """By those that quantize in place of the simulation."""
    backend: Backend = BACKENDS.build(name)

    with pytest.raises(PrecisionError, match="layer '0' at .*beside a weight's codes"):
        mpq.quantize(network(), assignment("w4+r2a8d"), backend)


def test_bits_alone_do_not_tell_of_a_branch(tmp_path: Path) -> None:
    """All other texts spell the precision."""
    found = assignment("w4g32+r2a16")

    with pytest.raises(PrecisionError, match="style=json, csv or markdown"):
        mpq.export(found, tmp_path / "bits.json", "text")
    for style in ("json", "csv", "markdown"):
        file = tmp_path / f"table.{style}"
        mpq.export(found, file, f"text:style={style}")
        assert "w4g32+r2a16" in file.read_text(encoding="utf-8")


def test_an_assignment_tells_of_it_in_full() -> None:
    """For readers that do not have mpq; read again, the same."""
    found = assignment("w4g32+s0.5%a16")

    again = Assignment.from_json(found.to_json())

    assert '"branch": "s0.5%"' in found.to_json()
    assert again == replace(found, metadata=again.metadata)


def change(spelled: str) -> Any:
    """What the simulation makes of the network's outputs."""
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (mpq.quantize(network(), assignment(spelled))(x) - network()(x)).norm()


@pytest.mark.parametrize("branch", ["s5%", "r8"])
def test_the_simulation_has_it(branch: str) -> None:
    """Outputs are nearer to those of the network than without."""
    assert change(f"w3+{branch}a32") < change("w3a32")

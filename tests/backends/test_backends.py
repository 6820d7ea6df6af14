"""What every backend promises, and what torchao makes of an assignment."""

import csv
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import mpq
from mpq.backends import Target
from mpq.cli.__main__ import app
from mpq.errors import InputError, PrecisionError

DATA = [torch.randn(32, 16, generator=torch.Generator().manual_seed(0))]


def network() -> nn.Module:
    """Two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def assigned(precision: str) -> mpq.Assignment:
    """Every layer at one precision."""
    task = mpq.Task(network(), DATA, DATA, candidates=[precision])
    return mpq.search(task, {"effective_bits": 33}, sensitivity="weight-error").assignment


@pytest.mark.parametrize("name", sorted({*mpq.BACKENDS.names()} - {"llama-cpp-cache"}))
def test_a_backend_makes_a_network_or_a_file_and_refuses_the_other(name: str) -> None:
    """By its name, before anything is computed, and it does at least one of the two.

    But for a recipe of caches alone, of which this network has none.
    """
    backend, found = mpq.BACKENDS.build(name), assigned("fp32")
    refused: list[str] = []
    for make in (
        lambda: backend.quantize(network(), found),
        lambda: backend.export(found, network(), DATA),
    ):
        try:
            make()
        except InputError as error:
            refused.append(str(error))

    # A target's folder is written by ``mpq.export``, which asks its runtime.
    is_folder_only = isinstance(backend, Target) and not backend.makes_networks
    assert len(refused) <= 1 + is_folder_only
    assert all(name in text for text in refused)
    if isinstance(backend, Target):
        assert "use mpq.export" in refused[-1]


@pytest.mark.parametrize(("precision", "apart"), [("w8a32", 1e-5), ("w8a8d", 0.06)])
def test_torchao_computes_what_the_simulation_does(precision: str, apart: float) -> None:
    """On the same codes; inputs are rounded by the kernel, to about an int8 step."""
    pytest.importorskip("torchao")
    model, found = network(), assigned(precision)
    before = [p.clone() for p in model.parameters()]

    simulated = mpq.quantize(model, found)
    real = mpq.quantize(model, found, backend="torchao")

    with torch.no_grad():
        expected, got = simulated(DATA[0]), real(DATA[0])
    assert not torch.equal(expected, model(DATA[0]))
    torch.testing.assert_close(got, expected, rtol=0.0, atol=apart * float(expected.std()))
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_torchao_refuses_a_layer_that_it_has_no_kernel_for() -> None:
    """With the layer's name, before anything is made."""
    pytest.importorskip("torchao")

    with pytest.raises(PrecisionError, match="no kernel for the linear layer '0' at w4a32"):
        mpq.quantize(network(), assigned("w4a32"), backend="torchao")


def test_torchao_refuses_a_layer_in_numbers_that_it_has_no_kernel_for() -> None:
    """With the layer's name, and not by an assertion of torchao's."""
    pytest.importorskip("torchao")

    with pytest.raises(PrecisionError, match="no kernel for the layer '0' in float64; it has them"):
        mpq.quantize(network().double(), assigned("w8a32"), backend="torchao")


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    """Text needs neither network nor data; ONNX says that it does."""
    found = assigned("w8a32")

    made = mpq.export(found, tmp_path / "new" / "bits.csv", "text:style=csv")

    assert made.path.read_text().startswith("layer,kind,precision")
    assert made.verdict == ""
    with pytest.raises(InputError, match="onnx needs the network and calibration examples"):
        mpq.export(found, tmp_path / "net.onnx")


def test_a_backend_without_files_names_those_that_write_some(tmp_path: Path) -> None:
    """In Python and on the command line, before a network is loaded or a path is asked for."""
    name = "simulate"
    (tmp_path / "a.json").write_text(assigned("fp32").to_json())

    found = CliRunner().invoke(app, ["export", str(tmp_path / "a.json"), "--to", name])

    assert found.exit_code == 2
    assert f"the backend {name} writes no file; those that do: onnx, " in found.stderr
    with pytest.raises(InputError, match=f"{name} writes no file; those that do: onnx, "):
        mpq.export(assigned("fp32"), tmp_path / "none", name)


def test_a_name_with_a_comma_or_a_bar_is_one_cell() -> None:
    """torch allows both in names of modules."""
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict({'a,b|"c"': nn.Linear(16, 4)})).eval()
    task = mpq.Task(model, DATA, DATA, candidates=["w8a32"])
    found = mpq.search(task, {"effective_bits": 33}, sensitivity="weight-error").assignment

    as_csv, as_markdown = (
        mpq.BACKENDS.build(f"text:style={style}").export(found, None, None).content.decode()
        for style in ("csv", "markdown")
    )

    heading, row = csv.reader(as_csv.splitlines())
    assert (len(row), row[0]) == (len(heading), 'a,b|"c"')
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in as_markdown.splitlines()]
    assert len(set(bars)) == 1


class Shared(nn.Module):
    """Two layers that share a parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One behind the other."""
        found: torch.Tensor = self.second(self.first(x).relu())
        return found


def test_torchao_rounds_a_shared_parameter_once() -> None:
    """Both layers have the weight that the simulation has."""
    pytest.importorskip("torchao")
    task = mpq.Task(Shared().eval(), DATA, DATA, candidates=["w8a32"])
    found = mpq.search(task, {"effective_bits": 33}, sensitivity="weight-error").assignment

    real = mpq.quantize(Shared().eval(), found, backend="torchao")

    first, second = (real.get_parameter(f"{name}.weight") for name in ("first", "second"))
    assert torch.equal(first.dequantize(), second.dequantize())


def test_arguments_in_the_other_functions_order_are_told_apart(tmp_path: Path) -> None:
    """``quantize`` has the network first, ``export`` the assignment."""
    found: Any = assigned("w8")
    model: Any = network()

    with pytest.raises(InputError, match="expected an assignment, got a Sequential"):
        mpq.quantize(found, model)
    with pytest.raises(InputError, match="expected an assignment, got a Sequential"):
        mpq.export(model, tmp_path / "file", "text", found)

"""An exported folder: through the command line, and of a trained network."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import mpq
from mpq.backends.c.target import C
from mpq.backends.shipping import ship
from mpq.cli.__main__ import app
from mpq.cli.loading import load_callable, load_model
from mpq.network.examples import Batch
from tests.backends.c.networks import assigned

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "resnet20_cifar10.py"
WEIGHTS = ROOT.parent / "shared" / "data" / "cifar10" / "resnet20.safetensors"


@pytest.mark.usefixtures("same_process")
def test_the_demo_is_searched_for_a_microcontroller_and_exported(tmp_path: Path) -> None:
    """The limits that a search keeps are the bytes of the compiled object."""
    run = CliRunner()
    searched = run.invoke(
        app,
        [
            "search", "--to", "c", "--device", "cortex-m4", "--sensitivity", "weight-error",
            "--limit", "flash=66KiB", "--limit", "peak_ram=3.5KiB",
            "--output", str(tmp_path / "run"),
        ],
    )  # fmt: skip
    assert searched.exit_code == 0, searched.output
    made = run.invoke(
        app,
        ["export", str(tmp_path / "run" / "assignment.json"), "--to", "c", "--output",
         str(tmp_path / "out"), "--json"],
    )  # fmt: skip
    assert made.exit_code == 0, made.output

    told = json.loads((tmp_path / "out" / "export.json").read_text())
    found = json.loads((tmp_path / "run" / "assignment.json").read_text())
    used = {budget["resource"]: budget["used"] for budget in found["metadata"]["budgets"]}
    profile = json.loads((ROOT / "mpq/hardware_profiles/devices/cortex-m4.json").read_text())
    code_bytes = profile["code_bytes"]["value"]
    assert told["figures"] == {
        "flash_bytes": used["flash"] - code_bytes, "ram_bytes": used["peak_ram"],
    }  # fmt: skip
    assert told["predicted_bytes"] == told["file_bytes"] == told["figures"]["flash_bytes"]
    assert told["promised_bytes"] == told["file_bytes"]
    assert told["median_difference"] < 1e-5 * told["spread"]
    assert told["median_from_search"] < 0.1 * told["spread"]
    assert told["num_layers"] == 18
    assert told["examples_are_held_out"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "check.c", "export.json", "host.c", "kernels.c", "kernels.h", "network.c", "network.h",
        "network.json", "network_float.c",
    }  # fmt: skip


USER_FILE = """
import torch
from torch import nn

def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()

def data():
    return [torch.randn(16, 8, generator=torch.Generator().manual_seed(1))]

def held_out():
    return [torch.randn(6, 8, generator=torch.Generator().manual_seed(2))]
"""


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize(
    ("option", "count", "kind"), [("--eval-data", 6, "held-out"), ("", 16, "calibration")]
)
def test_the_command_says_which_examples_were_run(
    tmp_path: Path, option: str, count: int, kind: str
) -> None:
    """Those of ``--eval-data``; with ``--data`` alone calibration examples, which it says."""
    file = tmp_path / "net.py"
    file.write_text(USER_FILE)
    model, (data,) = load_model(f"{file}:make_net"), load_callable(f"{file}:data")()
    (tmp_path / "found.json").write_text(assigned(model, data, ("w8a8",)).to_json())
    more = [option, f"{file}:held_out"] if option else []

    made = CliRunner().invoke(
        app,
        ["export", str(tmp_path / "found.json"), "--model", f"{file}:make_net", "--data",
         f"{file}:data", *more, "--to", "c", "--output", str(tmp_path / "out")],
    )  # fmt: skip

    assert made.exit_code == 0, made.output
    assert f"outputs of {count} {kind} examples" in " ".join(made.stdout.split())
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert told["examples_are_held_out"] == bool(option)


@pytest.mark.usefixtures("same_process")
@pytest.mark.skipif(not WEIGHTS.exists(), reason="the published weights are not there")
def test_resnet20_tells_the_classes_that_the_simulation_tells(tmp_path: Path) -> None:
    """A trained network in mixed bits, its ranges those of more images than are run."""
    model = load_model(f"{EXAMPLE}:make_net", WEIGHTS)
    images, classes = next(iter(load_callable(f"{EXAMPLE}:held_out")()))
    found = assigned(model, images[:64], ("w8a8", "w5a8", "w6a8"))
    check = ship(C(), "c", found, tmp_path / "out", model, [images[:8]])

    told = C().load(tmp_path / "out").run(Batch((images[:8],), {})).argmax(1)
    with torch.no_grad():
        simulated = mpq.quantize(model, found)(images[:8]).argmax(1)
    assert (told == simulated).sum() >= 7
    assert (told == classes[:8]).sum() >= 7
    assert check.median_difference < 0.05 * check.spread
    assert check.figures["ram_bytes"] == 3 * 16 * 32 * 32
    assert check.num_layers == 20

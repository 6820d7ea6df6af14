"""A network whose modules are called by an adversary: all results are written, and harmless."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from mpq.cli.__main__ import app

USER_FILE = r"""
import torch
from torch import nn

NAMES = (
    r"$\frac{1}{0}$", "[/red]", ":smile:", "\x1b]0;owned\x07", "=cmd|' /C calc'!A0", "a|b",
    "<script>", "two\nlines", "x" * 100_000,
)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        for name in NAMES:
            self.add_module(name, nn.Linear(8, 8))

    def forward(self, x):
        for name in NAMES:
            x = torch.relu(self._modules[name](x)) + x
        return x

def make_net():
    torch.manual_seed(0)
    return Net().eval()

def data():
    torch.manual_seed(1)
    yield torch.randn(16, 8)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a search, and what the terminal was given."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "user.py").write_text(USER_FILE)
    run = CliRunner().invoke(
        app,
        [
            "search", "--model", f"{folder}/user.py:make_net", "--data", f"{folder}/user.py:data",
            "--precisions", "w2a8,w4a8,w8a8", "--limit", "effective_bits=12",
                "--output", f"{folder}/run",
        ],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    return folder / "run", run.output


def test_every_file_is_there(found: tuple[Path, str]) -> None:
    """No name stops a picture, and JSON and CSV have the whole names."""
    folder, _ = found
    names = {
        layer["name"] for layer in json.loads((folder / "assignment.json").read_text())["layers"]
    }
    assert {"[/red]", "a|b", "x" * 100_000, "\x1b]0;owned\x07"} <= names
    assert {"bits.png", "frontier.png", "table.csv"} <= {file.name for file in folder.iterdir()}
    cells = pd.read_csv(folder / "table.csv")["layer"].tolist()
    assert not [cell for cell in cells if cell.startswith("=")]


def test_the_terminal_gets_no_command(found: tuple[Path, str]) -> None:
    """Escape sequences are shown and not sent; a long name does not fill the screen."""
    _, output = found
    assert "\x1b]" not in output
    assert "[/red]" in output
    assert len(output) < 40_000


def test_a_picture_that_fails_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: tuple[Path, str]
) -> None:
    """Data is there, the picture of an earlier run is not, and a warning says why."""
    import mpq
    from mpq import demo
    from mpq.report import pictures

    def broken(*_: object) -> None:
        raise ValueError("no such glyph")

    del found
    monkeypatch.setattr(pictures, "draw_bits", broken)
    (tmp_path / "bits.png").write_bytes(b"of an earlier run")
    task = mpq.Task(demo.make_net(), demo.calibration, demo.held_out, candidates=["w4a8", "w8a8"])
    result = mpq.search(task, {"weight_bytes": "60KiB"})
    with pytest.warns(
        UserWarning, match=r"bits\.png could not be drawn \(ValueError: no such glyph"
    ):
        result.save(tmp_path)
    there = {file.name for file in tmp_path.iterdir()}
    assert {"assignment.json", "table.csv", "frontier.png"} <= there
    assert "bits.png" not in there

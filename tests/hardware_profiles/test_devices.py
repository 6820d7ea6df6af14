"""``mpq devices``: the table, one device's numbers with their sources, and one's own file."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from mpq.cli.__main__ import app
from mpq.cli.devices import device_json, devices_table, formats_table, numbers_table
from mpq.hardware_profiles import Profile, Roofline, Workload, device_names, load_device
from mpq.hardware_profiles.sourced import Sourced
from mpq.network.layer import Layer
from mpq.problem.cost_table import CostTable
from mpq.quantization.precision import Precision


@dataclass(frozen=True)
class Board:
    """A measured profile that promises what ``Profile`` does, and nothing else."""

    name: str = "board"
    title: str = "Our board [rev B]"
    basis: str = "measured"
    notes: str = "One thread."
    formats: tuple[str, ...] = ("w8a8", "w4a8")
    resources: tuple[str, ...] = ("latency",)
    precisions: tuple[Precision, ...] | None = None

    def runs_somewhere(self, precision: Precision) -> bool:
        """At two precisions."""
        return str(precision) in self.formats

    def can_run(self, _: Layer, precision: Precision) -> bool:
        """Every layer."""
        return self.runs_somewhere(precision)

    def cost(
        self,
        resource: str,
        layers: Sequence[Layer],
        candidates: Sequence[Precision],
        _: Workload,
    ) -> CostTable:
        """One second each."""
        names = tuple(layer.name for layer in layers)
        ones = np.ones((len(names), len(candidates)))
        return CostTable(resource, "seconds", names, tuple(candidates), ones)

    uncertainty = cost

    def attention(self, _: str) -> None:
        """It was not measured."""

    def numbers(self) -> Mapping[str, Sourced]:
        """Two of them."""
        return {
            "fc.w8a8_seconds": Sourced(0.00125, "measured [1024] times"),
            "ram_bytes": Sourced(2048, "assumption: a guess"),
        }


def printed(table: Table) -> str:
    """A table as text, wide enough that nothing wraps."""
    text = StringIO()
    Console(file=text, width=2000).print(table)
    return text.getvalue()


def show(*arguments: str) -> str:
    """What ``mpq devices`` prints, in one line."""
    result = CliRunner().invoke(app, ["devices", *arguments])
    assert result.exit_code == 0, result.stderr
    return " ".join(result.stdout.split())


def test_every_device_is_listed_with_what_is_estimated() -> None:
    """Name, what it is, model, basis, formats and memory."""
    rows = printed(devices_table(map(load_device, device_names()))).splitlines()

    for name in device_names():
        (row,) = (row for row in rows if row.split()[:1] == [name])
        assert load_device(name).title in row
        assert "Roofline" in row
        assert "estimated" in row
        assert "int8" in row or "bit_" in row
    assert any("1 MiB flash, 128 KiB ram" in row for row in rows if "cortex-m4" in row)
    assert any("141 GB ram" in row for row in rows if "nvidia-h200" in row)


def test_a_measured_device_is_listed_by_its_protocol() -> None:
    """Nothing but the protocol is needed, and brackets of a title are no markup."""
    board: Profile = Board()

    row = printed(devices_table([board]))
    numbers, formats = printed(numbers_table(board)), printed(formats_table(board))

    for text in ("board", "Our board [rev B]", "measured", "1 of 2", "w8a8, w4a8", "2 KiB ram"):
        assert text in row
    assert "0.00125" in numbers
    assert "measured [1024] times" in numbers
    assert "w4a8" in formats


def test_json_says_what_the_table_does() -> None:
    """How many numbers are assumed, and the memories in bytes; unknown ones are null."""
    found = device_json(Board())

    assert (found["num_assumed"], found["num_numbers"]) == (1, 2)
    assert (found["ram_bytes"], found["flash_bytes"]) == (2048, None)


@pytest.mark.parametrize("name", device_names())
def test_show_has_every_number_and_every_format_with_its_source(name: str) -> None:
    """Nothing of a profile is left out of what people see."""
    profile = load_device(name)
    assert isinstance(profile, Roofline)

    numbers, formats = printed(numbers_table(profile)), printed(formats_table(profile))

    for key, number in profile.numbers().items():
        assert key in numbers
        assert f"{number.value:.4g}" in numbers
        assert number.source in numbers
    for runs in profile.runs:
        assert runs.source in formats
        assert ", ".join(runs.weights) in formats


def test_show_says_what_is_left_out() -> None:
    """The notes come first, in full."""
    text = show("--show", "bitfusion")

    assert text.startswith("bitfusion: Bit Fusion (512 fusion units at 500 MHz, 45 nm)")
    assert "Costs are estimated." in text
    assert "reuse within the 112 KB of buffers, and what tiling reads again, are left out" in text


def test_show_takes_ones_own_file(tmp_path: Path, root: Path) -> None:
    """A path to a profile is shown like a device that ships."""
    source = root / "mpq/hardware_profiles/devices/gap8.json"
    data = {**json.loads(source.read_text(encoding="utf-8")), "name": "mine", "title": "Mine"}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data), encoding="utf-8")

    text = show("--show", str(path))

    assert text.startswith("mine: Mine")
    assert "sub_byte.peak_operations_per_s" in text


def test_devices_needs_no_torch() -> None:
    """Listing devices is quick: no heavy library is loaded."""
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from mpq.cli.__main__ import app\n"
        "assert CliRunner().invoke(app, ['devices']).exit_code == 0\n"
        "heavy = ('torch', 'optuna', 'pulp', 'scipy', 'pandas', 'matplotlib')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"

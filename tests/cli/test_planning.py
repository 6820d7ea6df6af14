"""``--dry-run`` and ``--time`` on the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpq._support.durations import in_words, seconds_of
from mpq.cli.__main__ import app
from mpq.errors import InputError

pytestmark = pytest.mark.usefixtures("small_demo")

ASKED = ("--sensitivity", "sketch", "--rounding", "nearest", "--precisions", "w4a8,w8a8")
LIMIT = ("--limit", "weight_bytes=50KiB")


@pytest.mark.parametrize("command", ["search", "frontier"])
def test_a_dry_run_writes_nothing_and_says_what_it_would_take(tmp_path: Path, command: str) -> None:
    out = tmp_path / "run"
    arguments = [command, *ASKED, *LIMIT, "--output", str(out), "--dry-run"]
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert told["total_s"] == pytest.approx(sum(phase["seconds"] for phase in told["phases"]))
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0
    assert all(phase["phase"] in shown.stdout for phase in told["phases"])
    assert not out.exists()


def test_what_a_time_makes_of_a_search_is_told(tmp_path: Path) -> None:
    arguments = ["search", *ASKED, *LIMIT, "--output", str(tmp_path / "run")]
    short = CliRunner().invoke(app, [*arguments, "--time", "0.001s"])
    assert short.exit_code == 2
    assert "nothing fits into 0.001 s" in short.output
    assert not (tmp_path / "run").exists()
    long = CliRunner().invoke(app, [*arguments, "--time", "1h"])
    assert long.exit_code == 0
    assert "--time" not in long.output


@pytest.mark.parametrize("option", [["--dry-run"], ["--time", "1h"]])
def test_several_processes_are_not_planned(
    tmp_path: Path, option: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["search", *ASKED, *LIMIT, "--cache", str(tmp_path), *option]
    sharded = CliRunner().invoke(app, [*arguments, "--shard", "1/2"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for result in (sharded, CliRunner().invoke(app, arguments)):
        assert result.exit_code == 2
        assert "plan one process" in result.output


@pytest.mark.parametrize("text", ["", "10", "-5s", "0s", "ten minutes", "5 days"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a time"):
        seconds_of(text)


def test_times_are_read_and_written() -> None:
    assert [seconds_of(x) for x in ("90s", "1.5h", ".5 min")] == [90, 5400, 30]
    assert [in_words(x) for x in (0.04, 75, 7200)] == ["0.04 s", "1.2 min", "2 h"]

"""``--log``, the display and interruptions of the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from mpq.callbacks import plans
from mpq.cli.__main__ import app
from mpq.cli.app import reporting_errors
from mpq.cli.watching import Kept
from mpq.tuning.checkpoint import CHECKPOINT_FILE
from mpq.workflows import forecast

USER_FILE = """
import time
import torch
from torch import nn

class Slow(nn.ReLU):
    def forward(self, x):
        time.sleep(0.005)
        return super().forward(x)

def make_net(act=nn.ReLU):
    torch.manual_seed(0)
    hidden = [part for _ in range(6) for part in (nn.Linear(8, 8), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(8, 4), act()).eval()

def make_slow():
    return make_net(Slow)

def calibration():
    torch.manual_seed(1)
    for _ in range(2):
        yield torch.randn(8, 8)

def interrupted():
    yield from calibration()
    raise KeyboardInterrupt
"""
ASKED = (
    "--sensitivity", "sketch", "--rounding", "nearest", "--precisions", "w2a8,w4a8,w8a8",
    "--points", "3",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file of the user's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(USER_FILE, encoding="utf-8")
    return tmp_path


def words(
    command: str, *options: str, model: str = "make_net", data: str = "calibration"
) -> list[str]:
    own = ("--model", f"mine.py:{model}", "--data", f"mine.py:{data}", "--output", "my run")
    limit = () if "--limit" in options else ("--limit", "weight_bytes=0.75x:w8a8")
    return [command, *own, *ASKED, *limit, *options]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def events(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("command", ["search", "frontier"])
def test_a_log_has_the_course_of_a_command(folder: Path, command: str) -> None:
    """From its first phase to its end; the answer is that without it."""
    plain = run(*words(command, "--json"))

    result = run(*words(command, "--json", "--log", "log.jsonl"))

    told = [event["event"] for event in events(folder / "log.jsonl")]
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads(plain.stdout)
    assert told[0] == "phase_began"
    assert told[-2:] == ["finished", "ended"]


def test_points_and_alternatives_are_phases(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the names by which the plan has them, so that a log can be laid beside it."""
    monkeypatch.setattr(forecast, "SOON_S", 0.0)
    monkeypatch.setattr(plans, "LONG_S", 0.0)
    asked = words("search", "--measure", "--alternatives", "2", "--log", "log.jsonl")

    result = run(*asked)

    told = events(folder / "log.jsonl")
    phases = [event["phase"] for event in told if event["event"] == "phase_ended"]
    (plan,) = (event for event in told if event["event"] == "planned")
    assert result.exit_code == 0, result.output
    assert {"frontier", "measuring points", "alternatives"} < set(phases)
    assert phases[-1] == "alternatives"
    assert "measuring points" in plan["at_most"]  # type: ignore[operator]
    assert plan["besides"] == ["alternatives"]


def test_what_is_refused_is_logged(folder: Path) -> None:
    """The last line says why there is no result; a log that cannot be is refused first."""
    refused = run(*words("search", "--limit", "weight_bytes=0.1x:w8a8", "--log", "log.jsonl"))
    nowhere = run(*words("search", "--log", "none/log.jsonl"))

    last = events(folder / "log.jsonl")[-1]
    assert refused.exit_code == 3
    assert last["event"] == "ended"
    assert str(last["error"]).startswith("InfeasibleError: ")
    assert nowhere.exit_code == 2
    assert "cannot write the log" in nowhere.output


@pytest.mark.parametrize(
    ("command", "options", "told"),
    [
        ("search", ("--cache", "full"), "to go on: "),
        ("search", ("--cache", "new"), "nothing is kept yet; to begin anew: "),
        ("search", (), "nothing is kept without --cache DIR; to begin anew: "),
        ("frontier", (), "nothing is kept without --cache DIR; to begin anew: "),
    ],
)
def test_what_an_interruption_keeps(
    folder: Path, command: str, options: tuple[str, ...], told: str
) -> None:
    """It is said, with the very command; what is not there yet is not called kept."""
    (folder / "full").mkdir()
    (folder / "full" / "of.an.earlier.run").touch()
    asked = words(command, *options, data="interrupted")

    result = run(*asked)

    lines = result.stderr.splitlines()
    kept = ["kept: estimates, codes and measurements so far, in full"] if "full" in options else []
    assert result.exit_code == 130
    assert result.stdout == ""
    assert lines[0] == "error: interrupted; no half-written file is left"
    assert lines[1:-1] == kept
    assert lines[-1] == f"{told}mpq {' '.join(asked)}".replace("my run", "'my run'")
    assert not (folder / "my run").exists()


def test_a_search_that_tunes_keeps_its_epochs(folder: Path) -> None:
    """In its own folder, whatever else lies there."""
    (folder / "my run").mkdir()
    (folder / "my run" / "result.json").write_text("{}", encoding="utf-8")
    asked = words("search", "--tune", "all:epochs=4", data="interrupted")
    before = run(*asked)
    (folder / "my run" / CHECKPOINT_FILE).write_text("an epoch", encoding="utf-8")

    after = run(*asked)

    assert "nothing is kept yet; to begin anew: " in before.stderr
    assert f"kept: finished epochs, in {Path('my run') / CHECKPOINT_FILE}" in after.stderr
    assert "to go on: " in after.stderr


def test_a_comparison_and_a_profile_keep_what_they_measured(folder: Path) -> None:
    """Without a cache: in their own files, once something is in them."""
    (folder / "c").mkdir()
    for name in ("c/measured.jsonl", "p.json.journal"):
        (folder / name).write_text("{", encoding="utf-8")  # torn by a kill before
    own = ("--model", "mine.py:make_net", "--data", "mine.py:interrupted")
    compared = run("compare", *own, "--limit", "effective_bits=5", "--output", "c")
    profiled = run("profile", *own, "--output", "p.json")

    assert f"kept: what was measured so far, in {Path('c') / 'measured.jsonl'}" in compared.stderr
    assert "kept: finished rounds, in p.json.journal" in profiled.stderr
    assert (compared.exit_code, profiled.exit_code) == (130, 130)


def test_what_is_kept_of_a_kind_is_not_there_before_it_begins(tmp_path: Path) -> None:
    """Neither in no file, nor in an empty one, nor in an empty folder."""
    (tmp_path / "empty.file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").write_text("line", encoding="utf-8")

    assert [
        Kept("epochs", tmp_path / name).is_there
        for name in ("none", "empty.file", "folder", "full", ".")
    ] == [False, False, False, True, True]


def test_the_first_process_of_torchrun_alone_tells_of_an_interruption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others know nothing of what is kept."""

    @reporting_errors
    def search(**options: bool) -> None:
        raise KeyboardInterrupt

    told = []
    for rank in ("0", "1"):
        for name, value in {"RANK": rank, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(typer.Exit) as ended:
            search()
        told.append((ended.value.exit_code, capsys.readouterr().err))

    assert told == [(130, "error: interrupted; no half-written file is left\n"), (130, "")]


def test_a_process_that_is_interrupted_and_goes_on(folder: Path, root: Path) -> None:
    """By the signal of Ctrl-C, in the middle of a solver that measures for hours."""
    solver = "surrogate:is_measured=true,num_trials=1000000"
    command = words(
        "search", "--solver", solver, "--log", "log.jsonl", "--cache", "kept", model="make_slow"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "mpq.cli", *command],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whatever a shell starts in the background ignores the signal, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log, deadline = folder / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and '"calibration"' in log.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    lines = err.splitlines()[-4:]
    assert (process.returncode, out) == (130, "")
    assert lines[:3] == [
        "error: interrupted; no half-written file is left",
        "finished: layers and costs; ranges; estimate",
        "kept: estimates, codes and measurements so far, in kept",
    ]
    assert lines[3].startswith("to go on: mpq search --model mine.py:make_slow")
    assert events(log)[-1]["error"] == "KeyboardInterrupt"
    names = {path.name for path in folder.iterdir()} - {"__pycache__"}
    assert names == {"mine.py", "log.jsonl", "kept"}
    assert list((folder / "kept").glob("*.estimate"))

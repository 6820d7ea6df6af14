"""A search that was killed asks its score only what is missing, wherever it was."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.workflows.score import Score
from tests.workflows.asking import ASKING, CALLS, KNOWN, MOST, X, net, task

ROOT = Path(__file__).resolve().parents[2]


def counted(name: str, folder: Path | None) -> tuple[Any, int]:
    """What is found, and by how many calls."""
    CALLS.clear()
    return ASKING[name](task(folder), ()), len(CALLS)


@pytest.mark.parametrize("name", ASKING)
def test_what_was_killed_asks_what_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed halfway, together both ask as often as one that was not; a third asks nothing."""
    expected, calls = counted(name, None)
    assert calls >= 5
    monkeypatch.setitem(MOST, "calls", calls // 2)
    with pytest.raises(KeyboardInterrupt):
        counted(name, tmp_path)
    monkeypatch.undo()
    again, left = counted(name, tmp_path)
    third, none = counted(name, tmp_path)

    # A comparison keeps drops, so that the original is asked again.
    of_original = int(name == "a comparison")
    assert left == calls - calls // 2 + of_original
    assert none == 0
    assert again == third == expected


def test_each_network_is_asked_once() -> None:
    """Original, answer, uniform precisions and what a solver tried, on whatever examples."""
    networks: list[tuple[float, ...]] = []

    def noted(network: nn.Module) -> float:
        weights = torch.cat([p.detach().flatten() for p in network.parameters()])
        networks.append(tuple(weights.tolist()))
        return float((network(X) - KNOWN).square().mean())

    asked = mpq.Task(
        net(), [X[:8]], [X[8:]], candidates=("w2", "w4", "w8"), rounding="nearest",
        score=Score.of(noted, higher_is_better=False),
    )  # fmt: skip
    mpq.search(asked, ["weight_bytes=0.85x:w8"], sensitivity="measured:score=own",
               solver="evolutionary:is_measured=true,num_trials=12")  # fmt: skip

    assert len(networks) == len(set(networks))


JUDGE = """
import os, signal
from pathlib import Path
import torch
from tests.workflows.asking import KNOWN, X

CALLS = Path(__file__).with_name("calls")

def judge(network):
    done = len(CALLS.read_text()) if CALLS.exists() else 0
    if done == int(os.environ["MOST"]):
        os.kill(os.getpid(), signal.SIGKILL)
    found = (network(X) - KNOWN).square().mean()
    CALLS.write_text("." * (done + 1))
    return found

def data():
    yield X
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_process_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By ``SIGKILL``, which nothing can tidy up after: its calls are not made again."""
    file = tmp_path / "judges.py"
    file.write_text(JUDGE, encoding="utf-8")
    words = ["search", "--model", "tests.workflows.asking:net", "--data", f"{file}:data",
             "--eval-data", f"{file}:data", "--precisions", "w2,w4,w8", "--rounding", "nearest",
             "--limit", "weight_bytes=0.85x:w8", "--sensitivity", "measured:score=own", "--solver",
             "evolutionary:is_measured=true,num_trials=12", "--score", f"{file}:judge",
             "--score-better", "lower", "--points", "2", "--json"]  # fmt: skip

    def run(name: str, cache: str) -> tuple[str, int]:
        """What is found, and how many calls were made so far."""
        where = ("--output", str(tmp_path / name), "--cache", str(tmp_path / cache))
        done = CliRunner().invoke(app, [*words, *where])
        assert done.exit_code == 0, done.output
        precisions = mpq.Assignment.load(tmp_path / name).precisions
        return str(precisions), len((tmp_path / "calls").read_text())

    killed = [sys.executable, "-m", "mpq.cli", *words, "--output", str(tmp_path / "a"), "--cache",
              str(tmp_path / "kept")]  # fmt: skip
    environment = {**os.environ, "MOST": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(killed, cwd=ROOT, env=environment, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    monkeypatch.setenv("MOST", "1000")
    found, calls = run("a", "kept")
    fresh, both = run("b", "other")

    assert found == fresh
    assert calls == both - calls > 7

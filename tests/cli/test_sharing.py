"""``--shard`` and ``mpq merge`` on the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpq.cli.__main__ import app

pytestmark = pytest.mark.usefixtures("small_demo")

ASKED = ("--sensitivity", "sketch", "--rounding", "nearest", "--precisions", "w4a8,w8a8")
LIMIT = ("--limit", "weight_bytes=50KiB")


def answer(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 2, result.output
    return result.output


@pytest.mark.parametrize("command", ["search", "frontier"])
def test_jobs_leave_parts_and_a_command_goes_on(tmp_path: Path, command: str) -> None:
    """In folders of their own, merged; the answer is that of one process."""
    out = "--output", tmp_path / "run"
    expected = answer(command, *ASKED, *LIMIT, *out, "--json")
    files = []
    for number in (1, 2):
        cache = "--cache", tmp_path / f"kept{number}"
        told = answer(command, *ASKED, *LIMIT, *cache, "--shard", f"{number}/2", "--json")
        files.append(json.loads(told)["file"])
    assert all(Path(file).is_file() for file in files)

    merged = answer("merge", *files, "--cache", tmp_path / "all")
    found = answer(command, *ASKED, *LIMIT, *out, "--cache", tmp_path / "all", "--json")

    assert merged.startswith("wrote ")
    one, other = json.loads(found), json.loads(expected)
    if command == "search":
        assert one["layers"] == other["layers"]
    else:
        assert [p["precisions"] for p in one["points"]] == [
            p["precisions"] for p in other["points"]
        ]


def test_a_shard_writes_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of results is the search's."""
    monkeypatch.chdir(tmp_path)

    told = answer("search", *ASKED, *LIMIT, "--cache", "kept", "--shard", "1/2")

    assert told.startswith("wrote kept/")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """By its number, with what to do."""
    kept = "--cache", tmp_path
    answer("search", *ASKED, *LIMIT, *kept, "--shard", "2/2")

    told = refusal("search", *ASKED, *LIMIT, *kept)

    assert "part 1/2 (--shard 1/2) is missing" in told
    assert "--cache DIR" in refusal("search", *ASKED, *LIMIT, "--shard", "1/2")
    assert "write NUMBER/COUNT" in refusal("search", *LIMIT, *kept, "--shard", "1")
    assert "cannot read the part" in refusal("merge", tmp_path / "none.part")

"""Tables that somebody else made, and ``mpq solve``: without torch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mpq.cli.__main__ import app
from mpq.errors import FileFormatError, LimitError, MpqError, UnknownNameError
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.solvers import Lagrangian

TABLE = """layer,precision,loss_nats,weight_bytes,latency_seconds,tie
a,w4a8,0.5,100,1e-3,x
a,w8a8,0.1,200,2e-3,x
b,w8a8,0.05,200,2e-3,x
b,w4a8,0.3,100,1e-3,x
c,w4a8,0.2,50,1e-3,
c,w8a8,0.01,100,,
d,w8a8,0.0,10,1e-3,
"""


def test_rows_become_tables() -> None:
    """In any order; an empty cell cannot run, a missing row is no candidate, ties are named."""
    problem = Problem.from_csv(TABLE, ["weight_bytes=350B", "latency=6ms"], allow_missing=True)

    assert problem.loss.layers == ("a", "b", "c", "d")
    assert problem.loss.unit == "nats"
    np.testing.assert_array_equal(problem.loss.values[1], [0.3, 0.05])
    assert [(b.resource, b.unit, b.limit) for b in problem.budgets] == [
        ("weight_bytes", "bytes", 350.0),
        ("latency", "seconds", 6e-3),
    ]
    assert problem.ties == (("a", "b"),)
    w4, w8 = map(Precision.parse, ("w4a8", "w8a8"))
    assert dict(problem.constraints.candidates) == {"c": (w4,), "d": (w8,)}


def test_a_table_is_solved() -> None:
    """What cannot run is not chosen, also where its resource has no limit."""
    problem = Problem.from_csv(TABLE, ["weight_bytes=500B"], allow_missing=True)

    solution = Lagrangian().solve(problem)

    bits = {name: str(p) for name, p in solution.precisions(problem).items()}
    assert bits == {"a": "w8a8", "b": "w8a8", "c": "w4a8", "d": "w8a8"}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", FileFormatError, "the first columns are layer,precision"),
        ("a,b\n1,2\n", FileFormatError, "the first columns are layer,precision"),
        ("layer,precision,loss_nats\n", FileFormatError, "rows follow"),
        ("layer,precision,loss_nats\na,w4a8\n", FileFormatError, "line 2 has 2 cells, not 3"),
        ("layer,precision,loss_nats\na,w4a8,1\na,w4a8,2\n", FileFormatError, "line 3: 'a' at w4a8"),
        ("\nlayer,precision,loss_nats\n\n\na,w4a8\n", FileFormatError, "line 5 has 2 cells"),
        ('layer,precision,loss_nats\n"a\nb",w4a8,1\nc\n', FileFormatError, "line 4 has 1 cells"),
        (
            "layer,precision,loss_nats\na,w4a8,much\n",
            FileFormatError,
            "line 2, loss_nats: 'much' is no",
        ),
        (
            "layer,precision,loss_nats\na,w4a8,nan\n",
            FileFormatError,
            "line 2, loss_nats: 'nan' is no",
        ),
        (
            "layer,precision,loss_nats\na,w4a8,inf\n",
            FileFormatError,
            "line 2, loss_nats: 'inf' is no",
        ),
        ("layer,precision,loss_nats\n ,w4a8,1\n", FileFormatError, "line 2 has no name of a layer"),
        (
            "layer,precision,loss_nats,weight_bytes\na,w4a8,1,-3\n",
            FileFormatError,
            "line 2, weight_bytes: -3 bytes are less than nothing",
        ),
        (
            "layer,precision,latency_seconds,loss_nats\na,w4a8,-1e-3,1\n",
            FileFormatError,
            "line 2, latency_seconds: -1e-3 seconds are less than nothing",
        ),
        ("layer,precision,weight_bytes\na,w4a8,1\n", FileFormatError, "there are 0 of them"),
        (
            "layer,precision,loss\na,w4a8,1\n",
            UnknownNameError,
            "no unit at the end of column 'loss'",
        ),
        ("layer,precision,loss_nats\na,4,1\n", MpqError, "4"),
        ("layer,precision,loss_nats\na,w4a8,\n", MpqError, "line 2: 'a' at w4a8 has no loss_nats"),
    ],
)
def test_what_is_no_such_table_is_refused(text: str, error: type[MpqError], message: str) -> None:
    """The message says where."""
    with pytest.raises(error, match=message):
        Problem.from_csv(text)


@pytest.mark.parametrize(
    "text",
    ["\ufeff" + TABLE, TABLE + "\n\n", TABLE.replace("\n", "\r\n"), TABLE.replace(",", ", ", 3)],
)
def test_what_spreadsheets_write_is_read(text: str) -> None:
    """A byte order mark, blank lines, Windows line ends, blanks in the heading."""
    assert (
        Problem.from_csv(text, allow_missing=True).to_json()
        == Problem.from_csv(TABLE, allow_missing=True).to_json()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("latency_seconds", "weight_bytes"), "column 'weight_bytes' comes twice"),
        (("loss_nats", "latency_nats"), "two columns have one name"),
        (("a,w8a8,0.1,200,2e-3,x", "a,w8a8,0.1,200,2e-3,y"), "'a' has two ties, 'x' and 'y'"),
    ],
)
def test_what_contradicts_itself_is_refused(change: tuple[str, str], message: str) -> None:
    """Nothing is dropped in silence."""
    with pytest.raises(FileFormatError, match=message):
        Problem.from_csv(TABLE.replace(*change), allow_missing=True)


def test_limits_are_on_columns() -> None:
    """Those that there are, in their units."""
    with pytest.raises(UnknownNameError, match=r"no resource 'energy' .*latency, weight_bytes"):
        Problem.from_csv(TABLE, ["energy=1mJ"], allow_missing=True)
    with pytest.raises(LimitError, match="does not measure bytes"):
        Problem.from_csv(TABLE, ["weight_bytes=1ms"], allow_missing=True)


def solved(*arguments: str) -> Any:
    """What ``mpq solve`` prints."""
    ran = CliRunner().invoke(app, ["solve", "--allow-missing", *arguments])
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


@pytest.fixture
def table(tmp_path: Path) -> str:
    """The table as a file."""
    (tmp_path / "table.csv").write_text(TABLE)
    return str(tmp_path / "table.csv")


def test_the_command_line_solves_a_table(table: str, tmp_path: Path) -> None:
    """JSON with precisions and proof; a problem as JSON gives the same, and takes other limits."""
    (found,) = solved(table, "--limit", "weight_bytes=500B")

    problem = Problem.from_csv(TABLE, ["weight_bytes=500B"], allow_missing=True)
    (tmp_path / "problem.json").write_text(problem.to_json())
    (again,) = solved(str(tmp_path / "problem.json"))
    (less,) = solved(str(tmp_path / "problem.json"), "--limit", "weight_bytes=400B")
    assert found["status"] == "optimal"
    assert found["predicted_loss_nats"] == pytest.approx(0.35)
    assert found["bound_nats"] == pytest.approx(0.35)
    assert found["budgets"][0]["used"] == 460.0
    assert {**again, "seconds": 0} == {**found, "seconds": 0}
    assert less["budgets"][0] == {
        "resource": "weight_bytes",
        "unit": "bytes",
        "limit": 400.0,
        "used": 260.0,
    }


def test_the_command_line_minimizes_and_finds_alternatives(table: str) -> None:
    """Least latency for a loss; several assignments by rising loss."""
    (fast,) = solved(table, "--minimize", "latency", "--max-loss", "1.0")
    several = solved(table, "--limit", "weight_bytes=500B", "--alternatives", "2")

    assert fast["budgets"][-1]["used"] == pytest.approx(4e-3)
    assert "least latency: 0.004 seconds, proved" in fast["why"]
    assert [round(row["predicted_loss_nats"], 6) for row in several] == [0.35, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minimize", "latency"], "minimize and max_loss go together"),
        (["--max-loss", "1"], "minimize and max_loss go together"),
        (["--minimize", "energy", "--max-loss", "1"], "no resource 'energy'"),
        (["--alternatives", "0"], "at least 1; got 0"),
        (["--solver", "simplex"], "no solver 'simplex'"),
    ],
)
def test_what_goes_wrong_is_one_line(table: str, arguments: list[str], message: str) -> None:
    """On standard error, with exit code 2."""
    ran = CliRunner().invoke(app, ["solve", "--allow-missing", table, *arguments])

    assert ran.exit_code == 2
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_an_infeasible_table_has_an_exit_code_of_its_own(table: str) -> None:
    """3, and with ``--json`` the sentence as JSON too."""
    asked = ["solve", "--allow-missing", table, "--limit", "weight_bytes=10B"]

    plain, as_json = (CliRunner().invoke(app, [*asked, *more]) for more in ([], ["--json"]))

    assert (plain.exit_code, as_json.exit_code) == (3, 3)
    assert "smallest reachable 260" in plain.stderr
    assert plain.stdout == ""
    found = json.loads(as_json.stdout)
    assert found["status"] == "infeasible"
    assert f"error: {found['error']}" == as_json.stderr.strip()


def test_a_folder_is_asked_its_problem(tmp_path: Path) -> None:
    """As a search wrote it."""
    problem = Problem.from_csv(TABLE, ["weight_bytes=500B"], allow_missing=True)
    (tmp_path / "problem.json").write_text(problem.to_json())

    (found,) = solved(str(tmp_path))

    assert found["predicted_loss_nats"] == pytest.approx(0.35)


def interacting() -> Problem:
    """The table's problem, with interactions that a sum over layers has no place for."""
    problem = Problem.from_csv(TABLE, ["weight_bytes=500B"], allow_missing=True)
    shape = (4, *problem.loss.values.shape)
    return replace(problem, interactions=Interactions(np.full(shape, 0.1)))


def test_interactions_are_left_out_where_asked(tmp_path: Path) -> None:
    """A solver that takes none says which option helps, and does it."""
    file = tmp_path / "problem.json"
    file.write_text(interacting().to_json())

    refused = CliRunner().invoke(app, ["solve", str(file), "--solver", "lagrangian"])
    (found,) = solved(str(file), "--solver", "lagrangian", "--additive")

    assert refused.exit_code == 2
    assert "`mpq solve --additive`" in refused.stderr
    assert (found["status"], found["predicted_loss_nats"]) == ("optimal", pytest.approx(0.35))


def test_a_least_cost_that_is_not_proved_has_no_gap(tmp_path: Path) -> None:
    """Status, bound and gap are of the least cost, not of the loss at that cost."""
    file = tmp_path / "problem.json"
    file.write_text(interacting().to_json())

    (found,) = solved(str(file), "--minimize", "weight_bytes", "--max-loss", "100")

    assert "nothing proved" in found["why"]
    assert (found["status"], found["bound_nats"], found["gap"]) == ("feasible", None, None)


def test_it_is_said_that_there_are_no_more_alternatives(table: str) -> None:
    """On standard error, unless only the answer is wanted."""
    asked = [
        "solve",
        "--allow-missing",
        table,
        "--limit",
        "weight_bytes=500B",
        "--alternatives",
        "2",
    ]

    ran = CliRunner().invoke(app, [*asked, "--differing", "100"])
    quiet = CliRunner().invoke(app, [*asked, "--differing", "100", "--quiet"])

    assert len(json.loads(ran.stdout)) == 1
    assert ran.stderr == "1 of 2 alternatives: none was found that differs in 100 layers\n"
    assert quiet.stderr == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not a problem: expected a JSON object with the keys schema_version; got a list"),
        ("{}", "it has no schema_version: give the problem.json that `mpq search`"),
        ("nothing", "not a problem: not JSON"),
        ('{"schema_version": 9}', "problem of schema version 9"),
        (
            '{"schema_version": 2, "layers": []}',
            "keys loss, budgets, ties, fixed, candidates, cuts; it has no loss, budgets",
        ),
        (
            '{"schema_version": 2, "loss": 3, "budgets": [], "ties": [], "fixed": {}, '
            '"candidates": {}, "cuts": []}',
            "not a valid problem: at loss: 3 is not of type 'object'",
        ),
        (
            '{"schema_version": 2, "loss": {}, "budgets": [{"limit": 3}], "ties": [], "fixed": {}, '
            '"candidates": {}, "cuts": []}',
            "not a valid problem: at loss: 'schema_version' is a required property",
        ),
    ],
    ids=["list", "empty", "text", "future", "assignment", "table", "budget"],
)
def test_json_that_is_no_problem(tmp_path: Path, content: str, message: str) -> None:
    """One line with the file, the keys that were expected, and what to give instead."""
    file = tmp_path / "assignment.json"
    file.write_text(content)

    ran = CliRunner().invoke(app, ["solve", str(file)])

    assert ran.exit_code == 2
    assert message in ran.stderr
    assert str(file) in ran.stderr
    assert "Error(" not in ran.stderr


@pytest.mark.parametrize(
    ("name", "message"), [("no.csv", "cannot read"), ("t.txt", "neither .json")]
)
def test_a_file_that_is_no_problem(tmp_path: Path, name: str, message: str) -> None:
    """Not there, or of another kind."""
    (tmp_path / "t.txt").write_text("x")

    ran = CliRunner().invoke(app, ["solve", str(tmp_path / name)])

    assert ran.exit_code == 2
    assert message in ran.stderr


def test_solving_a_table_does_not_load_torch(table: str) -> None:
    """A fresh interpreter solves without it."""
    code = (
        "import sys; from mpq.cli.__main__ import app\n"
        f"try: app(['solve', '--allow-missing', {table!r}, '--limit', 'weight_bytes=500B'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert '"optimal"' in ran.stdout


COMPLETE = "".join(line for line in TABLE.splitlines(keepends=True) if line[0] not in "cd")


@pytest.mark.parametrize("allow_missing", [False, True])
def test_a_complete_table_needs_no_leave(allow_missing: bool) -> None:
    """Every layer has every precision, so that nothing is missing."""
    problem = Problem.from_csv(COMPLETE, allow_missing=allow_missing)

    assert problem.allowed.all()


@pytest.mark.parametrize("row", range(1, 5))
def test_a_missing_row_needs_leave(row: int) -> None:
    """A table that was cut off is not solved for what is left of it."""
    lines = COMPLETE.splitlines(keepends=True)
    layer, precision, *_ = lines.pop(row).split(",")

    with pytest.raises(FileFormatError, match=f"'{layer}' has no row at {precision}; .*--allow-"):
        Problem.from_csv("".join(lines))


@pytest.mark.parametrize(("column", "name"), [(2, "loss_nats"), (3, "weight_bytes")])
def test_a_missing_cell_needs_leave(column: int, name: str, tmp_path: Path) -> None:
    """On the command line too; a loss is needed in any case."""
    lines = [line.split(",") for line in COMPLETE.splitlines()]
    lines[2][column] = ""
    (tmp_path / "t.csv").write_text("\n".join(map(",".join, lines)))

    refused = CliRunner().invoke(app, ["solve", str(tmp_path / "t.csv")])
    allowed = CliRunner().invoke(app, ["solve", str(tmp_path / "t.csv"), "--allow-missing"])

    assert f"line 3: 'a' at w8a8 has no {name}; every layer has" in refused.stderr
    assert (refused.exit_code, allowed.exit_code) == (2, 2 if name == "loss_nats" else 0)


def test_a_folder_of_two_runs_is_not_solved(tmp_path: Path) -> None:
    """Whose problem it is nobody can tell."""
    text = Problem.from_csv(COMPLETE, ["weight_bytes=1KiB"]).to_json()
    for name, mark in {"problem.json": "0" * 16, "frontier.json": "1" * 16}.items():
        data = json.loads(text) | {"run_id": f"mpq-run-{mark}"}
        (tmp_path / name).write_text(json.dumps(data))

    ran = CliRunner().invoke(app, ["solve", str(tmp_path)])

    assert ran.exit_code == 2
    assert "holds files of 2 runs" in ran.stderr

"""A saved result comes back in another process, without the model, equal in every number."""

import json
import subprocess
import sys
from dataclasses import fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpq
from mpq import Calibration, demo
from mpq._support.schema import read_schema
from mpq.errors import FileFormatError
from mpq.network.coverage import Coverage, Uncovered
from mpq.network.layer import Layer, fingerprint
from mpq.network.reach import Reach
from mpq.sensitivity.checked import CheckedCell, SpotCheck
from mpq.workflows.session import Session
from tests.tasks import task_of

EXAMPLES = Calibration(demo.calibration, stop=32)
HELD_OUT = Calibration(demo.held_out, stop=32)
CASES: dict[str, dict[str, Any]] = {
    "interactions": {"limits": ["weight_bytes=0.75x:w8a8"]},
    "latency on a device": {"limits": ["latency=1x:w8a8"], "device": "cortex-m7"},
    "pairwise costs": {"limits": ["weight_bytes=0.75x:w8a8"], "device": "nvidia-t4"},
    "peak ram": {"limits": ["peak_ram=1x:w8a8"], "sensitivity": "weight-error"},
    "ties and fixed": {
        "limits": ["weight_bytes=0.9x:w8a8"],
        "tie": ["blocks.*.expand.conv"],
        "fix": {"head": "w6a8"},
        "allow": {"stem.conv": ["w8a8"]},
        "solver": "ilp:time_limit_s=20",
    },
    "another metric": {"limits": ["weight_bytes=0.75x:w8a8"], "metric": "kl:temperature=2"},
    "a population": {
        "limits": ["weight_bytes=0.75x:w8a8"],
        "solver": "evolutionary:num_trials=60,objectives=loss+costs",
    },
}


def searched(**options: Any) -> mpq.SearchResult:
    """A quick search on the demo."""
    task, own = task_of(
        demo.make_net(),
        EXAMPLES,
        {
            "candidates": ["w4a8", "w8a8"],
            "held_out": HELD_OUT,
            "ranges": mpq.Ranges("minmax", "minmax"),
            "sensitivity": "sketch:num_probes=1",
            **options,
        },
    )
    return mpq.search(task, **own)


def plain(value: Any) -> Any:
    """A record as nested lists of numbers and texts, by all fields that equality compares."""
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.shape, value.tobytes()]
    if is_dataclass(value) and not isinstance(value, type):
        values = [plain(getattr(value, field.name)) for field in fields(value) if field.compare]
        return [type(value).__name__, *values]
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    return repr(value)


def version_1(result: mpq.SearchResult) -> dict[str, Any]:
    """An assignment.json as mpq 0.1 wrote it, which rounded to nearest."""
    data: dict[str, Any] = json.loads(result.assignment.to_json())
    del data["weights"]
    data["schema_version"], data["record"] = 1, data.pop("metadata")
    data["fingerprint"] = fingerprint(layer.signature for layer in result.layers)
    return data


@pytest.fixture(scope="module", params=CASES.values(), ids=list(CASES))
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[mpq.SearchResult, Path]:
    """A result, and the folder that it was saved to."""
    result = searched(**request.param)
    folder = tmp_path_factory.mktemp("run")
    result.save(folder, result.frontier(num_points=2))
    return result, folder


@pytest.fixture(scope="module")
def frontier(result: mpq.SearchResult) -> mpq.Frontier:
    """Of the shared search, over its latency."""
    return result.frontier("latency", 3)


def test_a_loaded_result_is_equal_in_every_number(saved: tuple[mpq.SearchResult, Path]) -> None:
    """Field by field, to the last bit, whatever the search had."""
    result, folder = saved

    loaded = mpq.load(folder)

    assert plain(loaded) == plain(result)
    assert loaded.run_id == result.run_id


def test_a_loaded_result_answers_like_the_first(saved: tuple[mpq.SearchResult, Path]) -> None:
    """Frontiers, alternatives and tables are those of the search, without its network."""
    result, folder = saved

    loaded = mpq.load(folder)

    assert plain(loaded.frontier(num_points=3)) == plain(result.frontier(num_points=3))
    assert plain(loaded.alternatives(2)) == plain(result.alternatives(2))
    assert loaded.layer_table().equals(result.layer_table())
    assert loaded.comparison_table().equals(result.comparison_table())


def test_another_process_reads_the_same_run(
    result: mpq.SearchResult, frontier: mpq.Frontier, saved_result: Path
) -> None:
    """The checksum of all numbers is the same where nothing of this process is known."""
    code = (
        "import sys, mpq; found = mpq.load(sys.argv[1]); print(found.run_id); "
        "print(repr(found.frontier('latency', 3).points[1].loss))"
    )

    run_id, loss = subprocess.run(
        [sys.executable, "-c", code, str(saved_result)], capture_output=True, text=True, check=True
    ).stdout.split()

    assert run_id == result.run_id
    assert float(loss) == frontier.points[1].loss


def test_every_file_has_the_mark_of_its_run(result: mpq.SearchResult, tmp_path: Path) -> None:
    """All but the codes say which run they are of; assignment.json says which codes are its own."""
    files = result.save(tmp_path, result.frontier(num_points=2))

    codes = tmp_path / "assignment.safetensors"
    assert len(files) == 12
    assert all(result.run_id.encode() in file.read_bytes() for file in files if file != codes)
    weights = json.loads((tmp_path / "assignment.json").read_text())["weights"]
    assert weights["sha256"] == sha256(codes.read_bytes()).hexdigest()


def test_files_of_two_runs_are_refused(saved_result: Path) -> None:
    """A table of another run beside this one's assignment is no result."""
    other = searched(**CASES["peak ram"])
    other.save(saved_result / "other", other.frontier(num_points=2))
    (saved_result / "other" / "table.csv").replace(saved_result / "table.csv")

    with pytest.raises(FileFormatError, match=r"holds files of 2 runs .*table\.csv.*new folder"):
        mpq.load(saved_result)


def test_a_folder_of_the_version_before(
    result: mpq.SearchResult, frontier: mpq.Frontier, tmp_path: Path
) -> None:
    """Assignment, problem and predictions are there; what it never held is said."""
    data = version_1(result)
    (tmp_path / "assignment.json").write_text(json.dumps(data))
    (tmp_path / "problem.json").write_text(result.problem.to_json())

    loaded = mpq.load(tmp_path)
    point = loaded.frontier("latency", 3).points[1]

    assert loaded.assignment.precisions == result.assignment.precisions
    assert loaded.solution.loss == result.solution.loss
    assert loaded.solution.bound == result.solution.bound
    assert point.loss == frontier.points[1].loss
    assert loaded.comparisons == ()
    with pytest.raises(mpq.InputError, match=r"saved by mpq 0.1, without its layers"):
        loaded.layer_table()
    with pytest.raises(mpq.InputError, match="no row of the comparison 'result'"):
        _ = loaded.measured


def test_a_status_that_version_1_did_not_have(result: mpq.SearchResult, tmp_path: Path) -> None:
    """The file is named, with what is expected there."""
    data = version_1(result)
    data["record"]["solver_status"] = "lucky"
    (tmp_path / "assignment.json").write_text(json.dumps(data))
    (tmp_path / "problem.json").write_text(result.problem.to_json())

    with pytest.raises(
        FileFormatError, match=r"assignment\.json: expected a solver_status of opt.*; got 'lucky'"
    ):
        mpq.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"head"',
            '"tail"',
            r"assignment\.json has no layer 'tail', which problem\.json has: copy",
        ),
        ('"w8a8"', '"w7a8"', r"assignment\.json is of another problem: .*w8a8"),
    ],
)
def test_a_problem_of_another_run_of_version_1(
    old: str, new: str, message: str, result: mpq.SearchResult, tmp_path: Path
) -> None:
    """There is no mark that would tell: a layer or a precision does."""
    data = version_1(result)
    (tmp_path / "assignment.json").write_text(json.dumps(data))
    (tmp_path / "problem.json").write_text(result.problem.to_json().replace(old, new))

    with pytest.raises(FileFormatError, match=message):
        mpq.load(tmp_path)


@pytest.mark.parametrize("name", ["assignment.json", "problem.json", "result.json"])
def test_a_missing_file(name: str, saved_result: Path) -> None:
    """The file that is missing is named."""
    (saved_result / name).unlink()

    with pytest.raises(FileFormatError, match=name):
        mpq.load(saved_result)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a result: expected a JSON object with the keys schema_version; got a list"),
        ('{"schema_version": 3}', "schema version 3; this mpq reads version 2: update mpq"),
        ('{"schema_version": 1}', "this mpq reads version 2: make it again with this mpq"),
        (
            '{"schema_version": 2}',
            "not a valid result: at the top level: 'solution' is a required property",
        ),
    ],
)
def test_a_damaged_result(content: str, message: str, saved_result: Path) -> None:
    """What cannot be read says where and why."""
    (saved_result / "result.json").write_text(content)

    with pytest.raises(FileFormatError, match=rf"result\.json: .*{message}"):
        mpq.load(saved_result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solution": {"columns": [10**30]}}, "solution/columns: .* 64 bits"),
        ({"solution": {"status": "lucky"}}, "at solution/status: 'lucky' is not one of"),
        ({"solution": {"loss": True}}, "at solution/loss: true is not of type 'number'"),
        ({"provenance": {"seeed": 1}}, r"unknown key 'seeed' \(did you mean 'seed'\?\)"),
    ],
)
def test_a_result_with_numbers_that_cannot_be(
    change: dict[str, dict[str, Any]], message: str, saved_result: Path
) -> None:
    """A column beyond 64 bits, a status that there is not."""
    data = json.loads((saved_result / "result.json").read_text())
    for key, value in change.items():
        data[key] |= value
    (saved_result / "result.json").write_text(json.dumps(data))

    with pytest.raises(FileFormatError, match=rf"result\.json: not a .*{message}"):
        mpq.load(saved_result)


def test_a_file_is_not_the_folder(tmp_path: Path) -> None:
    """Which folder is meant is said."""
    (tmp_path / "result.json").write_text("{}")

    with pytest.raises(FileFormatError, match=r"result.json is a file: give the folder .*"):
        mpq.load(tmp_path / "result.json")


def test_a_result_is_one_line(result: mpq.SearchResult) -> None:
    """Layers, loss, status and the run."""
    status = result.solution.status.name.lower()

    shown = repr(result)

    assert shown.startswith(f"<SearchResult: {len(result.assignment.layers)} layers, loss ")
    assert shown.endswith(f" nats, {status}, {result.run_id}>")


def test_a_session_measures_what_a_result_predicts(tmp_path: Path) -> None:
    """Points of a loaded frontier are measured without another estimate; the model stays."""
    found = searched(limits=["weight_bytes=0.75x:w8a8"])
    found.save(tmp_path, found.frontier(num_points=2))
    session = Session.of(
        mpq.Task(
            demo.make_net(), EXAMPLES, HELD_OUT, candidates=["w4a8", "w8a8"],
            ranges=mpq.Ranges("minmax", "minmax"),
        )
    )  # fmt: skip

    loaded = mpq.load(tmp_path)
    frontier = session.measured(loaded.frontier("weight_bytes", 3))
    again = session.measure(loaded.columns)

    assert all(point.measured is not None for point in frontier.all_points())
    assert again == loaded.measured
    last = frontier.points[-1]
    assert last.measured == session.measure(loaded.problem.columns_of(last.precisions))


@pytest.mark.parametrize(
    ("record", "place"),
    [
        (Layer, ("layers", "items")),
        (SpotCheck, ("spot_check", "oneOf", 1)),
        (CheckedCell, ("spot_check", "oneOf", 1, "properties", "cells", "items")),
        (Coverage, ("coverage", "oneOf", 1)),
        (Uncovered, ("coverage", "oneOf", 1, "properties", "outside", "items")),
        (Reach, ("provenance", "properties", "reach")),
    ],
)
def test_the_schema_has_every_field_of_a_record(record: type, place: tuple[str | int, ...]) -> None:
    """A field that somebody adds is written at once, and must be read again."""
    schema: Any = read_schema("mpq.workflows", "result.schema.json")["properties"]
    for step in place:
        schema = schema[step]

    assert {x.name for x in fields(record)} <= set(schema["properties"])

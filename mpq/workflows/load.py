"""The files of a search, read again: ``mpq.load``, in another process and without the model."""

from collections.abc import Mapping
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

from mpq._support import schema_versions
from mpq._support.arrays import Columns
from mpq._support.json_arrays import columns
from mpq._support.json_object import json_object, read_as, read_text, require_version
from mpq._support.one_run import check_one_run
from mpq._support.schema import read_schema, validate
from mpq.errors import FileFormatError, InputError
from mpq.hardware_profiles.sourced import Sourced
from mpq.network.coverage import Coverage, Uncovered
from mpq.network.layer import Layer
from mpq.network.reach import Reach
from mpq.problem.assignment import Assignment
from mpq.problem.cost_table import CostTable
from mpq.problem.metadata import UsedRecipe
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution, Status
from mpq.problem.stored_ranges import range_from_dict
from mpq.quantization.range_method import ActivationRange
from mpq.report.measurement import ComparisonRow
from mpq.report.page.made import Made
from mpq.report.safeguard import AnswerCheck, Excess, Safeguard, UniformCheck
from mpq.report.score_check import ScoreCheck
from mpq.report.stored_measurement import measurement_from_dict
from mpq.sensitivity import SpotCheck
from mpq.sensitivity.step_shares import StepShares
from mpq.workflows.asked import Asked
from mpq.workflows.bias_record import BiasCorrection
from mpq.workflows.provenance import Provenance, UsedDevice
from mpq.workflows.recalibration import Recalibration
from mpq.workflows.refine import Refinement
from mpq.workflows.result import SearchResult
from mpq.workflows.sequential_rounding import SequentialRounding
from mpq.workflows.step_record import StepRecord
from mpq.workflows.subject import Subject
from mpq.workflows.tuning_record import TuningRecord


def load(folder: Path | str) -> SearchResult:
    """The result that ``SearchResult.save`` or ``mpq search`` wrote, equal in every number.

    A folder of mpq 0.1 has the problem and the assignment, and no more is known of it: the result
    has no layers, no comparisons, and costs only of what had a limit.

    Args:
        folder: With assignment.json, problem.json and result.json.

    Raises:
        FileFormatError: If a file is missing, is no such file, or the folder holds the files of
            two runs.
    """
    folder = Path(folder)
    if folder.is_file():
        raise FileFormatError(f"{folder} is a file: give the folder that it is in, {folder.parent}")
    check_one_run(folder)
    assignment = Assignment.load(folder / "assignment.json")
    problem = read_as(folder / "problem.json", Problem.from_json)
    if not (folder / "result.json").exists():
        # A file of mpq 0.1 has no mark; with one, a result.json was written beside it.
        if '"run_id"' in read_text(folder / "assignment.json"):
            raise FileFormatError(f"{folder / 'result.json'} is missing: copy the whole folder")
        return _of_version_1(problem, assignment, folder)
    data = read_as(folder / "result.json", _parsed)
    try:
        result = _from_dict(data, problem, assignment)
        return replace(result, made=Made.in_folder(folder))
    except InputError as error:
        raise FileFormatError(f"{folder / 'result.json'}: {error}") from error


def _parsed(text: str) -> Any:
    data = json_object(text, "result")
    require_version(data, "result", schema_versions.RESULT)
    validate(data, read_schema("mpq.workflows", "result.schema.json"), "result")
    return data


def _number(value: float | None) -> float:
    return nan if value is None else float(value)


def _from_dict(data: Mapping[str, Any], problem: Problem, assignment: Assignment) -> SearchResult:
    check = data.get("spot_check")
    return SearchResult(
        problem,
        _solution_from_dict(data["solution"]),
        assignment,
        tuple(Layer(**_with_tuples(layer)) for layer in data["layers"]),
        tuple(map(CostTable.from_dict, data["tables"])),
        tuple(map(CostTable.from_dict, data["half_widths"])),
        tuple(map(_row_from_dict, data["comparisons"])),
        _provenance_from_dict(data["provenance"]),
        tuple((columns(x["columns"], "trials"), float(x["loss"])) for x in data["trials"]),
        _safeguard_from_dict(data.get("safeguard")),
        None if check is None else SpotCheck.from_dict(check),
        _coverage_from_dict(data.get("coverage")),
        _ranges_from_dict(data.get("ranges", {})),
        StepShares.from_dict(data.get("steps")),
    )


def _ranges_from_dict(data: Mapping[str, Any]) -> dict[str, dict[str, ActivationRange]]:
    found = {n: {k: range_from_dict(x) for k, x in ranges.items()} for n, ranges in data.items()}
    return {n: {k: x for k, x in ranges.items() if x is not None} for n, ranges in found.items()}


def _coverage_from_dict(data: Mapping[str, Any] | None) -> Coverage | None:
    if data is None:
        return None
    return Coverage(**{**data, "outside": tuple(Uncovered(**item) for item in data["outside"])})


def _safeguard_from_dict(data: Mapping[str, Any] | None) -> Safeguard | None:
    if data is None:
        return None
    checks = tuple(
        UniformCheck(
            x["precision"],
            None if x["calibration"] is None else Excess(**x["calibration"]),
            Excess(**x["held_out"]),
        )
        for x in data["checks"]
    )
    prices, integers, inside, unseen = (
        _answer_check(data.get(other)) for other in ("prices", "integers", "inside", "unseen")
    )
    found = data.get("score")
    score = None if found is None else ScoreCheck(**found)
    return Safeguard(checks, data["replaced_by"], prices, integers, inside, score, unseen)


def _answer_check(data: Mapping[str, Any] | None) -> AnswerCheck | None:
    if data is None:
        return None
    return AnswerCheck(**{**data, "held_out": Excess(**data["held_out"])})


def _with_tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where our records have tuples."""
    return {key: tuple(x) if isinstance(x, list) else x for key, x in data.items()}


def _solution_from_dict(data: Mapping[str, Any]) -> Solution:
    return Solution(
        Status[data["status"].upper()],
        columns(data["columns"], "not a result: solution/columns"),
        float(data["loss"]),
        data["bound"],
        data["solver"],
        _number(data["seconds"]),
        why=data["why"],
    )


def _row_from_dict(data: Mapping[str, Any]) -> ComparisonRow:
    costs = {column: _number(cost) for column, cost in data["costs"].items()}
    found = measurement_from_dict(data["measured"])
    return ComparisonRow(data["label"], data["predicted_loss"], found, costs)


def _provenance_from_dict(data: Mapping[str, Any]) -> Provenance:
    device, data = data["device"], dict(data)
    # Older files have one list of names, and nothing of examples.
    reach = data.pop("reach", None) or {"never": data.pop("uncalled", [])}
    rounds = tuple(Refinement(**found) for found in data["refinements"])
    used = None if device is None else _device_from_dict(device)
    again, tuning = data.get("sequential_rounding"), data.get("tuning")
    biases = data.get("bias_correction")
    ranged, steps = data.get("recalibration"), data.get("steps")
    subject = data.get("subject")
    known = {
        "refinements": rounds,
        "device": used,
        "reach": Reach(**_with_tuples(reach)),
        "recalibration": None if ranged is None else Recalibration(**ranged),
        "sequential_rounding": None if again is None else SequentialRounding(**again),
        "bias_correction": None if biases is None else BiasCorrection(**_with_tuples(biases)),
        "recipe": UsedRecipe.from_dict(data.get("recipe")),
        "tuning": None if tuning is None else TuningRecord(**_with_tuples(tuning)),
        "steps": None if steps is None else StepRecord.from_dict(steps),
        "asked": Asked.from_dict(data.get("asked")),
        "subject": None if subject is None else Subject(**subject),
    }
    return Provenance(**{**_with_tuples(data), **known})


def _device_from_dict(data: Mapping[str, Any]) -> UsedDevice:
    numbers = {name: Sourced(**number) for name, number in data.get("numbers", {}).items()}
    return UsedDevice(**{**_with_tuples(data), "numbers": numbers})


def _of_version_1(problem: Problem, assignment: Assignment, folder: Path) -> SearchResult:
    """As far as a folder of mpq 0.1 holds it."""
    known = assignment.metadata
    columns = _columns_of(problem, assignment, folder)
    name = known.solver_status or "feasible"
    if name.upper() not in Status.__members__:
        raise FileFormatError(
            f"{folder / 'assignment.json'}: expected a solver_status of "
            f"{', '.join(map(str.lower, Status.__members__))}; got {name!r}"
        )
    status = Status[name.upper()]
    solver = known.solver or "unknown"
    solution = Solution(status, columns, problem.loss_of(columns), known.bound, solver, nan)
    provenance = Provenance(
        estimator=known.estimator or "unknown",
        # Version 1 kept a solver's name with its backend, which nothing can be built from.
        solver="auto",
        seed=known.seed or 0,
        device=None if known.device is None else UsedDevice(known.device),
        mpq_version=known.mpq_version or "",
        torch_version=known.torch_version or "",
    )
    # a step of a maximum is no resource by itself
    sums = (budget.sum_table for budget in problem.budgets)
    tables = tuple(table for table in sums if table is not None)
    return SearchResult(problem, solution, assignment, (), tables, (), (), provenance)


def _columns_of(problem: Problem, assignment: Assignment, folder: Path) -> Columns:
    """``[L]`` of the assignment, which must be one of this problem."""
    missing = [name for name in problem.loss.layers if name not in assignment.precisions]
    if missing:
        raise FileFormatError(
            f"{folder / 'assignment.json'} has no layer {missing[0]!r}, which problem.json has: "
            "copy both files of one run"
        )
    try:
        return problem.columns_of(assignment.precisions)
    except InputError as error:
        raise FileFormatError(
            f"{folder / 'assignment.json'} is of another problem: {error}"
        ) from error

"""Every number in the tables of report.html is that of the run's files, within its digits."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import floor, log10, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch

import mpq
from mpq.report.page import render
from tests.recipes.reference import data, tiny
from tests.report.reading import tables

NUMBER = re.compile(r"([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?) ?(KiB|MiB|B|ms|µs|ns|s|%)?(?![\w.])")
SCALES = {"KiB": 1024.0, "MiB": 1024.0**2, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9, "%": 0.01}
PERCENT = 0
"""Digits of a share: one behind the point, whatever its size."""
WORDS = {
    "Network, data, methods",
    "Single moves from the answer",
    "By phase, as measured",
}
"""Tables of other files, or of differences, which test_page.py has."""

Number = tuple[float | None, int]
"""What a file says, and its digits on the page; ``None``: a dash."""
Expected = Mapping[tuple[str, str, str], Sequence[Number]]
"""Beginnings of caption, row and heading to the numbers of a cell."""


class Files:
    """What a run wrote, read as JSON by nothing of ours."""

    def __init__(self, folder: Path) -> None:
        self.result, self.problem, self.frontier, self.assignment, self.made = (
            json.loads((folder / f"{name}.json").read_text())
            for name in ("result", "problem", "frontier", "assignment", "made")
        )
        self.tables = {table["name"]: table for table in self.result["tables"]}
        self.names = [layer["name"] for layer in self.result["layers"]]
        self.precisions = self.problem["loss"]["precisions"]
        self.unit = self.problem["loss"]["unit"]
        self.columns = self.result["solution"]["columns"]
        self.rows = {row["label"]: row for row in self.result["comparisons"]}

    def cost(self, name: str, columns: Sequence[int]) -> float:
        """Of a network."""
        table = self.tables[name]
        cells = (row[column] for row, column in zip(table["values"], columns, strict=True))
        return float(sum(cells) + table["constant"])


def accuracy_error(measured: Mapping[str, Any]) -> float:
    """Of a share of so many examples."""
    share = measured["accuracy"]
    return sqrt(share * (1 - share) / measured["num_examples"])


def of_networks(files: Files) -> Iterator[tuple[tuple[str, str, str], list[Number]]]:
    for label, row in files.rows.items():
        name, measured = "answer" if label == "result" else label, row["measured"]
        place = ("Measured on held-out", name)
        error = [] if label == "original" else [(measured["standard_error"], 2)]
        yield (*place, "Loss, measured"), [(measured["divergence"], 3), *error]
        yield (*place, "Loss, predicted"), [(row["predicted_loss"], 3)]
        share = (measured["accuracy"], PERCENT)
        yield (*place, "Accuracy"), [share, (accuracy_error(measured), PERCENT)]
        yield (*place, "Score"), [(measured["score"], 4)]
        yield (*place, "Cross entropy"), [(measured["cross_entropy_nats"], 3)]
        yield (*place, "weight bytes"), [(row["costs"]["weight_bytes"], 4)]
        yield (*place, "effective bits"), [(row["costs"]["effective_bits"], 4)]
        if label == "original":
            continue
        ratio = measured["divergence"] / row["predicted_loss"]
        check = ("All that was predicted", name)
        yield (*check, "Predicted"), [(row["predicted_loss"], 3)]
        yield (*check, "Measured"), [(measured["divergence"], 3), *error]
        yield (*check, "Ratio"), [(ratio, 2)]


def of_points(files: Files) -> Iterator[tuple[tuple[str, str, str], list[Number]]]:
    def of_point(
        name: str, columns: Sequence[int], loss: float, measured: Mapping[str, Any]
    ) -> Iterator[tuple[tuple[str, str, str], list[Number]]]:
        place = ("Points: ", name)
        yield (*place, "predicted loss"), [(loss, 4)]
        errors = (measured["divergence"], 3), (measured["standard_error"], 2)
        yield (*place, "Loss, measured"), list(errors)
        yield (*place, "Accuracy"), [(measured["accuracy"], PERCENT)]
        yield (*place, "Score"), [(measured["score"], 4)]
        for resource in files.tables:
            yield (*place, resource.replace("_", " ")), [(files.cost(resource, columns), 4)]

    for number, point in enumerate(files.frontier["points"], start=1):
        columns = [files.precisions.index(point["precisions"][name]) for name in files.names]
        loss, measured = point[f"predicted_loss_{files.unit}"], point["measured"]
        yield from of_point(f"frontier point {number}", columns, loss, measured)
        check = ("All that was predicted", f"frontier point {number}")
        yield (*check, "Predicted"), [(loss, 3)]
        errors = (measured["divergence"], 3), (measured["standard_error"], 2)
        yield (*check, "Measured"), list(errors)
        yield (*check, "Ratio"), [(measured["divergence"] / loss, 2)]
    solution = files.result["solution"]
    answer = files.rows["result"]["measured"]
    yield from of_point("answer", files.columns, solution["loss"], answer)
    for column, precision in enumerate(files.precisions):
        row = files.rows[precision]
        uniform = [column] * len(files.names)
        loss, measured = row["predicted_loss"], row["measured"]
        yield from of_point(f"uniform {precision}", uniform, loss, measured)


def of_budgets(files: Files) -> Iterator[tuple[tuple[str, str, str], list[Number]]]:
    for budget in files.assignment["metadata"]["budgets"]:
        limit, used = budget["limit"], budget["used"]
        place = ("Budgets", budget["resource"].replace("_", " "))
        yield (*place, "Used"), [(used, 4)]
        yield (*place, "Limit"), [(limit, 4)]
        yield (*place, "Left"), [(limit - used, 4)]
        # Once for a screen, once for who reads the page aloud.
        yield (*place, "Share used"), [(used / limit, PERCENT)] * 2


def of_layers(files: Files) -> Iterator[tuple[tuple[str, str, str], list[Number]]]:
    losses = files.problem["loss"]["values"]
    chosen = [row[column] for row, column in zip(losses, files.columns, strict=True)]
    shown = [name for name in ("weight_bytes", "effective_bits") if name in files.tables]
    for row, layer in enumerate(files.result["layers"]):
        column, name = files.columns[row], layer["name"]
        place = ("Layers by module", name)
        bits = [float(x) for x in re.findall(r"\d+", files.precisions[column])]
        yield (*place, "Weights"), [(layer["weight_shape"][0] * layer["weight_shape"][1], 9)]
        yield (*place, "Bits of weights"), [(bits[0], 3)]
        yield (*place, "Bits of inputs"), [(bits[1], 3)]
        yield (*place, "Share of loss"), [(chosen[row] / sum(chosen), PERCENT)]
        for resource in shown:
            whole = files.cost(resource, files.columns)
            part = files.tables[resource]["values"][row][column] / whole
            yield (*place, f"Share of {resource.replace('_', ' ')}"), [(part, PERCENT)]
        for precision, loss in zip(files.precisions, losses[row], strict=True):
            yield ("Sensitivity [layers", name, precision), [(loss, 2)]


def of_cells(files: Files) -> Iterator[tuple[tuple[str, str, str], list[Number]]]:
    for cell in files.result["spot_check"]["cells"]:
        place = ("All that was predicted", f"{cell['layer']} at {cell['precision']}")
        yield (*place, "Predicted"), [(cell["predicted"], 3)]
        yield (*place, "Measured"), [(cell["measured"], 3)]
        yield (*place, "Ratio"), [(cell["measured"] / cell["predicted"], 2)]


def expected(folder: Path) -> Expected:
    """Every number of the tables, by where it stands."""
    files = Files(folder)
    found = dict(of_networks(files))
    for more in (of_points, of_cells, of_budgets, of_layers):
        found |= dict(more(files))
    return found


def read(text: str) -> list[tuple[float, float]]:
    """The numbers of a cell as they are printed, each with the scale of its unit."""
    return [(float(x.replace(",", "")), SCALES.get(u, 1.0)) for x, u in NUMBER.findall(text)]


def half(value: float, digits: int) -> float:
    """What a number that was rounded to so many digits may be off."""
    if digits == PERCENT:
        return 0.05
    return 0.5 * 10.0 ** (floor(log10(abs(value))) - digits + 1) if value else 0.0


def is_written(text: str, numbers: Sequence[Number]) -> bool:
    """Whether a cell has these numbers, in its own units and within its digits."""
    found, known = read(text), [(x, digits) for x, digits in numbers if x is not None]
    return len(found) == len(known) and all(
        abs(shown - value / scale) <= half(value / scale, digits) * (1 + 1e-6)
        for (shown, scale), (value, digits) in zip(found, known, strict=True)
    )


def wrong(page: Mapping[str, list[list[str]]], known: Expected) -> list[str]:
    """Cells that say another number than the files, and numbers that nobody looked at."""
    found, seen = [], set()
    by_row: dict[str, list[tuple[str, str, str]]] = {}
    for key in known:
        by_row.setdefault(key[1], []).append(key)
    for caption, (headings, *rows) in page.items():
        if caption in WORDS:
            continue
        for row in rows:
            # A group of layers has their bits and shares together.
            cells = zip(headings[1:], row[1:], strict=True) if len(row) == len(headings) else ()
            for heading, text in cells:
                keys = [
                    key for key in by_row.get(row[0], ())
                    if caption.startswith(key[0]) and heading.startswith(key[2])
                ]  # fmt: skip
                seen.update(keys)
                if not keys and (read(text) and heading not in ("Precision", "Marks")):
                    found.append(f"{caption[:20]}, {row[0]}, {heading}: {text} is in no file")
                found += [
                    f"{caption[:20]}, {row[0]}, {heading}: {text} for {known[key]}"
                    for key in keys
                    if not is_written(text, known[key])
                ]
    return [*found, *(f"{key} is on no page" for key in known if key not in seen)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with a score, budgets and a frontier that was measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "vega_script", lambda: "vega")
        torch.manual_seed(0)
        task = mpq.Task(
            tiny(), data, data, candidates=["w3a8", "w4a8", "w8a8"], rounding="nearest",
            score="accuracy",
        )  # fmt: skip
        limits = {"weight_bytes": "0.85x:w8a8", "effective_bits": 11}
        found = mpq.search(task, limits, sensitivity="weight-error")
        frontier = mpq.Session.of(task).measured(found.frontier("weight_bytes", 4))
        folder = tmp_path_factory.mktemp("run")
        found.save(folder, frontier)
    return folder


def test_tables_say_what_the_files_say(folder: Path) -> None:
    """Losses, errors, scores, accuracies, costs, budgets used and left, of every row."""
    page, known = tables((folder / "report.html").read_bytes()), expected(folder)

    assert len(known) > 150
    assert wrong(page, known) == []


def test_an_altered_number_is_found(folder: Path) -> None:
    """Each of them by itself, in its last digit; so is one that a table has no more."""
    page, known = tables((folder / "report.html").read_bytes()), expected(folder)
    missed = []
    for key, numbers in known.items():
        for place, (value, digits) in enumerate(numbers):
            if value is None:
                continue
            step = 0.0011 if digits == PERCENT else max(3 * half(value, digits), 1e-9)
            altered = [*numbers[:place], (value + step, digits), *numbers[place + 1 :]]
            missed += [] if wrong(page, {**known, key: altered}) else [(key, value)]
    headings, *rows = page["Budgets of the answer"]

    assert missed == []
    assert wrong({**page, "Budgets of the answer": [headings, *rows[1:]]}, known)

"""A problem adds tied layers up, and refuses what contradicts itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.errors import FileFormatError, InputError, UnknownNameError
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from tests.problem.tables import BYTES, LAYERS, LOSS, NAN, PRECISIONS, TIME, W2, W4, W8, table


def problem(
    limits: tuple[float, float] = (30.0, 7.0),
    ties: tuple[tuple[str, ...], ...] = (),
    fixed: Mapping[str, Precision] | None = None,
    candidates: Mapping[str, Sequence[Precision]] | None = None,
    interactions: Interactions | None = None,
) -> Problem:
    """Four layers, a budget of bytes and one of seconds; ``c`` lacks w4a8 and ``d`` w2a8."""
    budgets = (
        Budget.of(table("size", "bytes", BYTES), limits[0]),
        Budget.of(table("latency", "seconds", TIME), limits[1]),
    )
    loss = table("sketch", "nats", LOSS)
    return Problem(loss, Constraints(budgets, ties, fixed or {}, candidates or {}), interactions)


def assignments() -> list[tuple[int, ...]]:
    """Every column per layer."""
    return list(product(range(3), repeat=4))


def test_without_ties_every_layer_is_a_group() -> None:
    """Grouped numbers are then the tables themselves; nan becomes 0 and is not allowed."""
    grouped = problem().grouped

    assert grouped.members == ((0,), (1,), (2,), (3,))
    np.testing.assert_array_equal(grouped.loss, LOSS)
    np.testing.assert_array_equal(grouped.costs[0][~np.isnan(TIME)], BYTES[~np.isnan(TIME)])
    np.testing.assert_array_equal(grouped.costs[1], np.nan_to_num(TIME))
    np.testing.assert_array_equal(grouped.allowed, ~np.isnan(TIME))
    np.testing.assert_array_equal(grouped.limits, [30.0, 7.0])


def test_tied_layers_are_added_up() -> None:
    """A group's row is the sum of its members' rows, in the order of first members."""
    grouped = problem(ties=(("d", "b"),)).grouped

    assert grouped.members == ((0,), (1, 3), (2,))
    np.testing.assert_array_equal(grouped.loss, [[9, 4, 1], [14, 9, 6], [7, 5, 2]])
    np.testing.assert_array_equal(grouped.costs[0], [[1, 2, 4], [0, 12, 24], [3, 0, 12]])
    np.testing.assert_array_equal(grouped.costs[1], [[1, 1, 2], [0, 2, 4], [1, 0, 2]])
    np.testing.assert_array_equal(grouped.expand(np.array([0, 1, 2])), [0, 1, 2, 1])


@pytest.mark.parametrize(
    ("ties", "merged"),
    [
        ((("a", "b"), ("b", "c")), (("a", "b", "c"),)),
        ((("d", "c"), ("b", "a")), (("a", "b"), ("c", "d"))),
        ((("a", "b"), ("c", "d"), ("d", "a")), (("a", "b", "c", "d"),)),
        ((("a",), ("b", "b")), ()),
    ],
)
def test_overlapping_ties_become_one(
    ties: tuple[tuple[str, ...], ...], merged: tuple[tuple[str, ...], ...]
) -> None:
    """Ties are merged when the problem is made."""
    assert problem(ties=ties).ties == merged


@given(
    ties=st.lists(st.lists(st.sampled_from(LAYERS), min_size=2, max_size=2).map(tuple), max_size=2),
    limits=st.tuples(st.integers(5, 45), st.integers(3, 9)),
    only=st.lists(st.sampled_from(PRECISIONS), min_size=1, max_size=3),
)
def test_feasible_means_what_the_tables_say(
    ties: list[tuple[str, ...]], limits: tuple[int, int], only: list[Precision]
) -> None:
    """Ties, candidates, missing precisions and both budgets, checked one assignment at a time."""
    try:
        asked = problem(limits=limits, ties=tuple(ties), candidates={"a": only})
    except InputError:
        return

    for columns in assignments():
        runs = not any(np.isnan(TIME[row, column]) for row, column in enumerate(columns))
        agree = all(columns[LAYERS.index(x)] == columns[LAYERS.index(y)] for x, y in ties)
        allowed = runs and agree and PRECISIONS[columns[0]] in only
        size, seconds = (sum(t[r, c] for r, c in enumerate(columns)) for t in (BYTES, TIME))
        feasible = allowed and size <= limits[0] and seconds <= limits[1]
        assert asked.is_allowed(np.array(columns)) == allowed
        assert asked.is_feasible(np.array(columns)) == feasible


def test_loss_is_the_sum_over_layers() -> None:
    """Without interactions."""
    asked = problem()

    for columns in assignments():
        expected = sum(LOSS[row, column] for row, column in enumerate(columns))
        assert asked.loss_of(np.array(columns)) == expected


def test_loss_with_interactions_has_the_products_of_layers() -> None:
    """Beside the sum of the table, which is all that the additive problem has."""
    factor = np.ones((1, 4, 3), dtype=np.float32)
    asked = problem(interactions=Interactions(factor))
    columns = np.array([0, 0, 0, 1])

    assert asked.loss_of(columns) == 9 + 8 + 7 + 6 + 4 * 3 / 2
    assert asked.additive().loss_of(columns) == 9 + 8 + 7 + 6
    assert asked.additive().interactions is None


def test_shrunk_interactions_count_in_part() -> None:
    """Three quarters of six products."""
    asked = problem(interactions=Interactions(np.ones((1, 4, 3)), shrinkage=0.25))

    assert asked.loss_of(np.array([0, 0, 0, 1])) == 9 + 8 + 7 + 6 + 0.75 * 6


def test_fixed_layers_have_one_choice() -> None:
    """Other layers keep theirs; what is fixed binds its whole tie, and overrides candidates."""
    asked = problem(ties=(("a", "b"),), fixed={"a": W8}, candidates={"a": (W2,)})

    np.testing.assert_array_equal(asked.grouped.allowed[0], [False, False, True])
    np.testing.assert_array_equal(asked.grouped.allowed[1:], ~np.isnan(TIME[2:]))


def test_candidates_restrict_their_layer() -> None:
    """In any order; layers without an entry may take all."""
    asked = problem(candidates={"a": [W8, W2], "b": (W4,)})

    np.testing.assert_array_equal(asked.allowed[0], [True, False, True])
    np.testing.assert_array_equal(asked.allowed[1], [False, True, False])
    np.testing.assert_array_equal(asked.allowed[2:], ~np.isnan(TIME[2:]))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"fixed": {"c": W4}}, "'c'"),  # the device lacks it
        ({"ties": (("a", "b"),), "fixed": {"a": W4, "b": W8}}, "'a', 'b'"),
        ({"ties": (("a", "b"),), "candidates": {"a": [W4], "b": [W8]}}, "'a', 'b'"),
        ({"ties": (("c", "d"),), "candidates": {"c": [W2, W4]}}, "'c', 'd'"),
        ({"ties": (("a", "c"),), "fixed": {"a": W4}}, "'a', 'c'"),
        ({"candidates": {"b": []}}, "'b'"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], names: str) -> None:
    """A group without a choice is named, with every reason that there may be."""
    with pytest.raises(InputError, match=f"no precision is left for {names} among w2a8, w4a8, w8"):
        problem(**options)


@pytest.mark.parametrize(
    "options",
    [{"ties": (("a", "x"),)}, {"fixed": {"x": W4}}, {"candidates": {"x": [W4]}}],
)
def test_unknown_layers_are_refused(options: dict[str, Any]) -> None:
    """Wherever a layer is named."""
    with pytest.raises(UnknownNameError, match=r"no layer 'x' \(there are: a, b, c, d\)"):
        problem(**options)


@pytest.mark.parametrize(
    "options",
    [{"fixed": {"a": Precision.parse("bf16")}}, {"candidates": {"a": [Precision.parse("bf16")]}}],
)
def test_a_precision_that_the_tables_lack_is_refused(options: dict[str, Any]) -> None:
    """The message lists those that there are."""
    with pytest.raises(UnknownNameError, match=r"no precision 'bf16' \(there are: w2a8, w4a8, w8a"):
        problem(**options)


def test_the_loss_has_no_empty_cell() -> None:
    """A solver needs a loss for every choice."""
    with pytest.raises(InputError, match="sketch: layer 'a' at w4a8 costs nan"):
        Problem(table("sketch", "nats", [[1.0, NAN, 1.0], *LOSS[1:].tolist()]))


def test_tables_fit_together() -> None:
    """Layers and precisions are the same everywhere, in the same order."""
    loss = table("sketch", "nats", LOSS)
    flipped = CostTable("size", "bytes", LAYERS[::-1], PRECISIONS, BYTES)
    narrow = table("size", "bytes", BYTES).select([W2, W4])

    for other in (flipped, narrow):
        with pytest.raises(InputError, match="size has other layers or precisions than the loss"):
            Problem(loss, Constraints((Budget.of(other, 1.0),)))


def test_one_resource_has_one_budget() -> None:
    """Two limits on it would be a slip."""
    size = table("size", "bytes", BYTES)

    with pytest.raises(InputError, match="a resource has two budgets"):
        Problem(
            table("sketch", "nats", LOSS),
            Constraints((Budget.of(size, 30.0), Budget.of(size, 20.0))),
        )


def test_interactions_fit_the_loss() -> None:
    """Layers and precisions of the factor are those of the table."""
    with pytest.raises(InputError, match=r"interactions are .*4, 2.*, the loss is \(4, 3\)"):
        problem(interactions=Interactions(np.ones((5, 4, 2), dtype=np.float32)))


def test_a_problem_has_a_layer() -> None:
    """Nothing to decide is an error and no empty answer."""
    empty = CostTable("sketch", "nats", (), PRECISIONS, np.zeros((0, 3)))

    with pytest.raises(InputError, match="there is no layer to assign a precision to"):
        Problem(empty)


@given(
    ties=st.sampled_from([(), (("a", "b"),), (("a", "b"), ("c", "d"))]),
    fixed=st.sampled_from([{}, {"a": W8}, {"a": W4, "b": W4}]),
    candidates=st.sampled_from([{}, {"c": (W8,)}, {"c": (W2, W8), "d": (W8, W4)}]),
    limits=st.tuples(st.floats(0, 1e300), st.floats(1e-300, 1)),
)
def test_json_round_trip_keeps_the_problem(
    ties: tuple[tuple[str, ...], ...],
    fixed: dict[str, Precision],
    candidates: dict[str, tuple[Precision, ...]],
    limits: tuple[float, float],
) -> None:
    """Tables, limits bit by bit, ties, fixed layers and candidates; the text stays the same."""
    asked = problem(limits=limits, ties=ties, fixed=fixed, candidates=candidates)

    again = Problem.from_json(asked.to_json())

    assert again.to_json() == asked.to_json()
    assert (again.ties, again.constraints.fixed) == (asked.ties, fixed)
    assert again.constraints.candidates == candidates
    assert [budget.limit for budget in again.budgets] == list(limits)
    np.testing.assert_array_equal(again.grouped.costs, asked.grouped.costs)
    np.testing.assert_array_equal(again.grouped.loss, asked.grouped.loss)
    np.testing.assert_array_equal(again.allowed, asked.allowed)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '{"schema_version": 1}'])
def test_text_that_is_no_problem_is_refused(text: str) -> None:
    """Truncated or foreign JSON is a ``FileFormatError``."""
    with pytest.raises(FileFormatError, match="not a problem"):
        Problem.from_json(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("budgets", 7),
        ("budgets", [{"table": {}}]),
        ("budgets", [{"limit": "much", "table": table("size", "bytes", BYTES).to_dict()}]),
        ("ties", 7),
        ("fixed", ["a"]),
        ("candidates", {"a": 7}),
        ("loss", 7),
        ("cuts", [{"columns": [0, 0, 0, True], "num_layers": 1}]),
        ("constants", []),
        ("mask", [[1, 1, 1]] * 4),
        ("cuts", [{"columns": [0, 0, 0, 10**30], "num_layers": 1}]),
        ("cuts", [{"columns": [0, 0, 0, 0], "num_layers": float("inf")}]),
    ],
)
def test_json_with_a_wrong_key_is_no_problem(key: str, value: object) -> None:
    """A key of another kind is a ``FileFormatError``, whatever Python would raise."""
    data = json.loads(problem().to_json()) | {key: value}

    with pytest.raises(FileFormatError, match="not a"):
        Problem.from_json(json.dumps(data))


def test_a_future_schema_version_asks_to_update() -> None:
    """Files of a later mpq are told apart from garbage."""
    data = json.loads(problem().to_json()) | {"schema_version": 3}

    with pytest.raises(FileFormatError, match="problem of schema version 3; this mpq reads versi"):
        Problem.from_json(json.dumps(data))


def test_json_keeps_the_rules_of_the_problem() -> None:
    """Reading a file checks as much as building a problem."""
    data = json.loads(problem().to_json())

    with pytest.raises(InputError, match="no layer 'x'"):
        Problem.from_json(json.dumps(data | {"fixed": {"x": "w8a8"}}))
    with pytest.raises(InputError, match="no precision is left for 'c'"):
        Problem.from_json(json.dumps(data | {"fixed": {"c": "w4a8"}}))


def test_a_cut_has_no_column_below_0() -> None:
    """It would be counted from the end."""
    data = json.loads(problem().to_json())
    data["cuts"] = [{"columns": [0, 0, 0, -1], "num_layers": 1}]

    with pytest.raises(InputError, match="a cut's columns count from 0; got -1"):
        Problem.from_json(json.dumps(data))


def test_json_keeps_the_interactions() -> None:
    """Bit for bit, so that the same problem is solved again elsewhere."""
    factor = np.random.default_rng(0).standard_normal((5, 4, 3)).astype(np.float32)
    asked = problem(interactions=Interactions(factor, 0.25))

    again = Problem.from_json(asked.to_json())

    assert again.interactions is not None
    assert again.interactions.shrinkage == 0.25
    np.testing.assert_array_equal(again.interactions.factor, factor)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [5, 4, 2]},
        {"shape": [5, 4, 10**30]},
        {"factor_float32_base64": "!"},
        {"shrinkage": "x"},
        {"shape": None},
    ],
)
def test_json_with_broken_interactions_is_no_problem(change: dict[str, object]) -> None:
    """The message says what is broken."""
    data = json.loads(problem(interactions=Interactions(np.ones((5, 4, 3)))).to_json())
    data["interactions"] |= change

    with pytest.raises(FileFormatError, match="interactions"):
        Problem.from_json(json.dumps(data))


@pytest.mark.parametrize("distance", range(1, 5))
def test_differing_leaves_out_what_is_near(distance: int) -> None:
    """By the number of layers that have another precision; twice for two assignments."""
    first, second = np.array([0, 1, 2, 1]), np.array([2, 1, 0, 1])
    asked = problem(limits=(100.0, 100.0))

    apart = asked.differing(first, distance).differing(second, distance)

    for columns in map(np.array, assignments()):
        is_far = all((columns != other).sum() >= distance for other in (first, second))
        assert apart.is_feasible(columns) == (is_far and asked.is_feasible(columns))


def test_least_swaps_cost_and_loss() -> None:
    """The loss becomes a budget; the other budgets and empty cells stay."""
    asked = problem(limits=(20.0, 6.0))
    swapped = asked.least(table("energy", "joules", BYTES * 2), max_loss=12.0)

    for columns in map(np.array, assignments()):
        expected = asked.is_feasible(columns) and asked.loss_of(columns) <= 12.0
        assert swapped.is_feasible(columns) == expected
        assert swapped.loss_of(columns) == 2 * BYTES[range(4), columns].sum()
    with pytest.raises(InputError, match="a loss with interactions is no budget"):
        problem(interactions=Interactions(np.ones((2, 4, 3)))).least(asked.loss, 1.0)


def test_within_replaces_limits() -> None:
    """Those that are named; the others stay, and a resource without a budget is an error."""
    asked = problem(limits=(20.0, 6.0))

    limits = {b.resource: b.limit for b in asked.within(["size=12B"]).budgets}

    assert limits == {"size": 12.0, "latency": 6.0}
    with pytest.raises(UnknownNameError, match="no resource 'energy'"):
        asked.within(["energy=1mJ"])


def test_a_file_of_version_1_is_read() -> None:
    """Its steps become one budget, its distances cuts; the file was written by that version."""
    text = (Path(__file__).parent / "data" / "problem_v1.json").read_text(encoding="utf-8")

    read = Problem.from_json(text)

    assert [(b.resource, b.unit, b.limit) for b in read.budgets] == [
        ("latency", "seconds", 5.5), ("peak_ram", "bytes", 20.0),
    ]  # fmt: skip
    assert [table.name for table in read.budgets[1].tables] == ["a", "c (reader 2)"]
    (cut,) = read.cuts
    assert (cut.columns.tolist(), cut.num_layers) == ([0, 0, 0], 2)
    # a and c are tied and b is given, so that only w8a8 in both differs in two layers; peak_ram
    # is then max(16 + 8, 3 + 2 + 10) bytes, which is too much.
    assert [read.budgets[1].used(np.array(c)) for c in ([0, 0, 0], [1, 0, 1])] == [20.0, 24.0]
    assert not any(read.is_feasible(np.array(c)) for c in ([0, 0, 0], [1, 0, 1]))
    wide = read.within(["peak_ram=24B", "latency=6s"])
    assert wide.is_feasible(np.array([1, 0, 1]))
    assert not wide.is_feasible(np.array([0, 0, 0]))
    assert Problem.from_json(read.to_json()).to_json() == read.to_json()


def test_steps_with_different_limits_are_refused() -> None:
    """A maximum has one limit; a file that has two was written by hand."""
    text = (Path(__file__).parent / "data" / "problem_v1.json").read_text(encoding="utf-8")
    data = json.loads(text)
    data["budgets"][1]["limit"] = 21.0

    with pytest.raises(FileFormatError, match="peak_ram has the limits 21.0 and 20.0 in different"):
        Problem.from_json(json.dumps(data))


def test_a_mask_takes_precisions_away() -> None:
    """As an empty cell of a budget's table does, without a budget; and it survives JSON."""
    mask = np.array([[False, True, True], *np.ones((3, 3), dtype=bool)])
    asked = replace(problem(limits=(100.0, 100.0)), mask=mask)

    again = Problem.from_json(asked.to_json())

    for columns in map(np.array, assignments()):
        expected = columns[0] != 0 and problem(limits=(100.0, 100.0)).is_feasible(columns)
        assert asked.is_feasible(columns) == again.is_feasible(columns) == expected
    with pytest.raises(InputError, match=r"the mask is \(2, 3\), the loss is \(4, 3\)"):
        replace(asked, mask=mask[:2])

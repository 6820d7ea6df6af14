"""Rows that are parts of layers: what they cost, and which precision a choice of them is."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpq.errors import InputError, UnknownNameError
from mpq.problem.alike_formats import can_split, can_split_read, open_reads, open_weights
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.layer_parts import InputParts, OutputParts, ReadParts
from mpq.problem.parts import Parts
from mpq.problem.problem import Problem
from mpq.problem.split import Split
from mpq.quantization.precision import Precision
from mpq.solvers import SOLVERS
from mpq.solvers.queries.alternatives import alternatives

PRECISIONS = tuple(map(Precision.parse, ("w2", "w4", "w8")))
LAYERS = ("embed", "conv", "fc", "head")
CONV = OutputParts(np.array([0, 1, 0, 2]))
FC = OutputParts(np.array([0, 0, 1, 1, 2]), 2)
PARTS = Parts(
    LAYERS,
    {"conv": CONV, "fc": FC},
    {"head": "embed"},
    code_bits=14,
)


def table(name: str = "weight_bytes") -> CostTable:
    values = np.array([[8.0, 16, 32], [4, 8, 16], [10, 20, 40], [0, 0, 0]])
    return CostTable(name, "bytes", LAYERS, PRECISIONS, values, constant=3.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("channels", [0, 1, 2, 3, 4]),
        ("channels:2", [0, 0, 1, 1, 2]),
        ("blocks:2", [0, 1, 0, 1, 0]),
        ("blocks:9", [1, 3, 0, 4, 2]),
        ("columns:2", [0, 1, 2, 3, 4]),
        ("groups", [0, 1, 2, 3, 4]),
    ],
)
def test_parts_of_a_layer(text: str, expected: list[int]) -> None:
    """Neighbours, or channels that lose about as much: also where one loses nothing."""
    losses = np.array([[2.0, 1], [4, 2], [0, 0], [9, 9], [3, 1]])
    split = Split.parse(text)
    assert split is not None

    assert split.parts(losses).tolist() == expected
    assert str(split) == text


@pytest.mark.parametrize("text", ["blocks", "channels:0", "rows:128", "blocks:x", "groups:2", ""])
def test_a_split_that_is_none_is_refused(text: str) -> None:
    """With what is one."""
    with pytest.raises(InputError, match="blocks:4"):
        Split.parse(text)


def test_rows_share_what_layers_cost() -> None:
    """By channels; they add up to it again, and what shares a weight is with its owner."""
    spread = PARTS.table(table(), constant=2.0)

    assert spread.layers == ("embed", "conv[0]", "conv[1]", "conv[2]", "fc[0]", "fc[1]", "fc[2]")
    assert spread.values[:, 1].tolist() == [16, 4, 2, 2, 8, 8, 4]
    assert spread.constant == 5.0
    assert PARTS.by_layer(spread.values[:, 2]).tolist() == [32, 16, 40, 0]


def test_a_choice_of_rows_is_a_precision_for_every_layer() -> None:
    """And back; layers that are whole have a plain one, and a weight has one for all layers."""
    columns = np.array([2, 0, 1, 0, 1, 1, 1])

    found = PARTS.precisions_of(columns, PRECISIONS)

    expected = {"embed": "w8a32", "conv": "w[2,4]:0100a32", "fc": "w4a32", "head": "w8a32"}
    assert {name: str(precision) for name, precision in found.items()} == expected
    assert PARTS.columns_of(found, PRECISIONS).tolist() == columns.tolist()
    blocks = PARTS.precisions_of(np.array([0, 0, 0, 0, 2, 1, 2]), PRECISIONS)
    assert str(blocks["fc"]) == "w[4,8]:5/2x101a32"
    assert PARTS.columns_of(blocks, PRECISIONS).tolist() == [0, 0, 0, 0, 2, 1, 2]
    with pytest.raises(UnknownNameError, match="w3a32"):
        PARTS.columns_of({**found, "fc": Precision.parse("w3")}, PRECISIONS)


def test_formats_that_channels_may_mix() -> None:
    """They differ in bits alone, and are integers with scales of their own."""
    w2, w4, others = (
        Precision.parse("w2g8").weight,
        Precision.parse("w4g8").weight,
        ["w4", "w4g16", "w4zg8", "w16", "wfp4g8", "w4t", "w4g8sfp8", "w9g8"],
    )

    assert can_split(w2, w4)
    assert not any(can_split(w2, Precision.parse(text).weight) for text in others)
    assert not can_split(Precision.parse("fp32").weight, w4)


def test_parts_keep_what_is_no_part_of_theirs() -> None:
    """The input, where they are of a weight, and the weight, where they are of an input."""
    texts = ("w4a8dg4", "w2a8dg4", "w4a4dg4", "w2a4dg4", "fp32", "w8a8dg4")
    layers, precisions = ("fc", "head"), tuple(map(Precision.parse, texts))
    losses = CostTable("loss", "nats", layers, precisions, np.zeros((2, 6)))
    mask = np.array([[True] * 6, [True] * 5 + [False]])
    problem, columns = Problem(losses, Constraints(()), mask=mask), np.array([0, 4])

    weights = open_weights(problem, columns, "outputs")
    reads = open_reads(problem, columns, can_split_read)

    # Parts of head, of which no other format differs in bits alone, keep fp32.
    assert [np.flatnonzero(row).tolist() for row in weights] == [[0, 1, 5], [4]]
    assert [np.flatnonzero(row).tolist() for row in reads] == [[0, 2], [4]]
    assert problem.allowed.tolist() == mask.tolist()


def test_a_problem_of_parts_is_solved_and_kept() -> None:
    """The optimum over parts, which no choice of whole layers reaches; JSON has all of it."""
    cost = PARTS.table(table())
    values = np.outer([1.0, 9, 1, 1, 9, 1, 1], [4.0, 1, 0.1])
    loss = replace(cost, name="loss", unit="nats", values=values, constant=0.0)
    problem = Problem(loss, Constraints((Budget.of(cost, 55.0),)), parts=PARTS)

    solution = SOLVERS.build("ilp").solve(problem)
    again = Problem.from_json(problem.to_json())

    assert solution.columns is not None
    chosen = problem.precisions_of(solution.columns)
    assert any(precision.weight.channels is not None for precision in chosen.values())
    assert again.precisions_of(solution.columns) == chosen
    assert again.columns_of(chosen).tolist() == solution.columns.tolist()
    with pytest.raises(InputError, match="the 7 parts are not the 4 rows"):
        Problem(table("loss"), parts=PARTS)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("layers", ("embed", "conv", "fc", "fc"), "named twice"),
        ("divided", {"other": FC}, "other"),
        ("divided", {"head": FC}, "has none of its own"),
        ("divided", {"conv": CONV, "fc": ReadParts(5, 2)}, "of one axis"),
        ("owners", {"head": "other"}, "other"),
        ("owners", {"head": "embed", "embed": "fc"}, "has none of its own"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(name: str, value: Any, why: str) -> None:
    """A file that was edited may say anything."""
    with pytest.raises(InputError, match=why):
        replace(PARTS, **{name: value})


@pytest.mark.parametrize(
    ("key", "told", "why"),
    [
        ("of_channels", {"conv": [0, 1, 1, 3]}, "'conv': each from 0 to 3 has a channel"),
        ("of_channels", {"conv": [0, 1, 10**15]}, "has a channel"),
        ("blocks", {"fc": 3}, "'fc': each is of 3 channels that are neighbours"),
    ],
)
def test_a_file_of_parts_that_are_none_is_refused(key: str, told: Any, why: str) -> None:
    """With the layer's name."""
    with pytest.raises(InputError, match=why):
        Parts.from_dict({**PARTS.to_dict(), key: told})


def test_alternatives_of_parts_are_refused() -> None:
    """Each would differ in one channel, and not in so many layers."""
    rows = PARTS.table(table("loss"))

    with pytest.raises(InputError, match="whole layers"):
        alternatives(Problem(rows, parts=PARTS), SOLVERS.build("ilp"), 2)


@pytest.mark.parametrize(
    ("text", "candidates", "why"),
    [
        ("columns:100", ["w2g64", "w4g64"], "w4g64.*columns:64 or columns:128"),
        ("columns", ["w2g32", "w4"], "a multiple of 32"),
        ("groups", ["w2", "w4"], "sizes of none"),
        ("groups", ["w2g32", "w4g64"], "sizes 32, 64"),
    ],
)
def test_parts_that_cut_through_groups_are_refused(
    text: str, candidates: list[str], why: str
) -> None:
    """With the sizes that work."""
    split = Split.parse(text)
    assert split is not None

    with pytest.raises(InputError, match=why):
        split.check(map(Precision.parse, candidates))


def test_columns_of_a_convolution_are_input_channels() -> None:
    """With their kernels."""
    split = Split.parse("columns:4")
    assert split is not None

    assert split.inputs_per_part((8, 16, 3, 3), None) == 36
    assert split.inputs_per_part((8, 16), None) == 4


OF_INPUTS = {
    "inputs": Parts(("conv", "fc"), {"fc": InputParts("inputs", 10, 4, 3)}),
    "groups": Parts(("conv", "fc"), {"fc": InputParts("groups", 10, 4, 6)}),
}


@pytest.mark.parametrize(
    ("axis", "columns", "expected"),
    [
        ("inputs", [2, 0, 1, 0], "w[2,4]g4:i10/4x010a32"),
        ("groups", [2, 0, 1, 0, 2, 2, 0], "w[2,4,8]g4:g10/4x010220a32"),
    ],
)
def test_a_choice_of_inputs_is_a_precision(axis: str, columns: list[int], expected: str) -> None:
    """And the other way round; the last block is short, and has a smaller share."""
    parts, precisions = OF_INPUTS[axis], [Precision.parse(f"w{n}g4") for n in (2, 4, 8)]

    found = parts.precisions_of(np.array(columns), precisions)

    assert str(found["fc"]) == expected
    assert parts.columns_of(found, precisions).tolist() == columns
    blocks = [0.4, 0.4, 0.2]
    rows = blocks if axis == "inputs" else [share / 2 for share in blocks * 2]
    np.testing.assert_allclose(parts.shares, [1.0, *rows])
    again = Parts.from_dict(parts.to_dict())
    assert again.to_dict() == parts.to_dict()
    assert again.precisions_of(np.array(columns), precisions) == found


def test_parts_of_inputs_are_whole_rows() -> None:
    """Each row has as many blocks."""
    with pytest.raises(InputError, match="whole rows"):
        InputParts("groups", 10, 4, 5)
    told = {**OF_INPUTS["groups"].to_dict(), "inputs": {}}
    with pytest.raises(InputError, match="lacks its number of inputs"):
        Parts.from_dict(told)


def test_a_file_whose_blocks_are_numbered_otherwise_is_refused() -> None:
    """Only output channels may be in any part."""
    told = {**OF_INPUTS["inputs"].to_dict(), "of_channels": {"fc": [0, 2, 1]}}

    with pytest.raises(InputError, match="parts of 'fc': they are numbered from 0 to 2"):
        Parts.from_dict(told)

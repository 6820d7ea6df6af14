"""A cost table keeps its numbers exactly, and refuses what is none."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.errors import FileFormatError, InputError, UnknownNameError
from mpq.problem.cost_table import UNITS, CostTable, PairwiseCost
from mpq.quantization.precision import Precision

CHOICES = tuple(map(Precision.parse, ("w2a8", "w4a8", "w8a8", "w4zg128a16", "fp8", "fp32")))
W4, W8 = map(Precision.parse, ("w4a8", "w8a8"))
CELLS = st.one_of(st.just(float("nan")), st.floats(allow_nan=False, allow_infinity=False))
MODULES = st.lists(st.sampled_from(["0", "1", "10", "layer1", "conv", "self_attn"]), min_size=1)
LAYERS = MODULES.map(lambda parts: ".".join(parts[:4]))


@st.composite
def tables(draw: st.DrawFn) -> CostTable:
    """Any table: empty cells, huge and tiny numbers, names as torch gives them."""
    layers = draw(st.lists(LAYERS, unique=True, min_size=1, max_size=4))
    precisions = draw(st.lists(st.sampled_from(CHOICES), unique=True, min_size=1))
    size = len(layers) * len(precisions)
    cells = draw(st.lists(CELLS, min_size=size, max_size=size))
    values = np.array(cells).reshape(len(layers), len(precisions))
    name = draw(st.sampled_from(["latency", "weight_bytes", "a:b", "with, comma"]))
    unit = draw(st.sampled_from(UNITS))
    return CostTable(name, unit, tuple(layers), tuple(precisions), values)


def table(values: Any, layers: tuple[str, ...] = ("conv", "fc")) -> CostTable:
    """A latency table at w4a8 and w8a8."""
    return CostTable("latency", "seconds", layers, (W4, W8), np.array(values, dtype=np.float64))


def same(first: CostTable, second: CostTable) -> bool:
    """Whether two tables agree in every name and every bit of every number."""
    names = (first.name, first.unit, first.layers, first.precisions)
    if names != (second.name, second.unit, second.layers, second.precisions):
        return False
    return np.array_equal(first.values, second.values, equal_nan=True)


@given(expected=tables())
def test_json_round_trip_is_exact(expected: CostTable) -> None:
    """Every float comes back bit by bit, empty cells as nan; the text is strict JSON."""
    text = expected.to_json()

    assert same(CostTable.from_json(text), expected)
    assert "NaN" not in text


@given(expected=tables())
def test_csv_round_trip_is_exact(expected: CostTable) -> None:
    """Every float comes back bit by bit, empty cells as nan."""
    text = expected.to_csv()

    assert same(CostTable.from_csv(text), expected)


@pytest.mark.parametrize(
    "layers",
    [("0.1", "0.10"), ("1", "01"), ("1e3", "1000.0"), ("NA", "null"), ("None", "True"), ("", "a ")],
)
def test_csv_keeps_layer_names_as_text(layers: tuple[str, ...]) -> None:
    """Modules of an ``nn.Sequential`` have names that look like numbers, and are none."""
    expected = table([[1, 2], [3, np.nan]], layers)

    assert CostTable.from_csv(expected.to_csv()).layers == layers


def test_csv_is_what_a_spreadsheet_expects() -> None:
    """Head with name and unit, one line per layer, empty where a layer cannot run."""
    text = table([[0.1, 1e-9], [2.0, np.nan]]).to_csv()

    assert text.splitlines() == ["latency:seconds,w4a8,w8a8", "conv,0.1,1e-09", "fc,2.0,"]


def test_csv_written_by_hand_is_read() -> None:
    """Integers, exponents and spaces in numbers are numbers; precisions may be shorthands."""
    read = CostTable.from_csv("my:latency:seconds,w4a8,int8\nconv,1, 2.5e-3\nfc,,3\n")

    assert (read.name, read.unit, read.layers) == ("my:latency", "seconds", ("conv", "fc"))
    assert read.precisions == (W4, W8)
    np.testing.assert_array_equal(read.values, [[1, 2.5e-3], [np.nan, 3]])


def test_pandas_has_layers_precisions_and_unit() -> None:
    """The frame is labelled, and changing it does not change the table."""
    original = table([[1, 2], [3, np.nan]])

    frame = original.to_pandas()
    frame.loc["conv", "w4a8"] = 99.0

    assert list(frame.index) == ["conv", "fc"]
    assert list(frame.columns) == ["w4a8", "w8a8"]
    assert frame.attrs == {"name": "latency", "unit": "seconds", "constant": 0.0}
    assert original.values[0, 0] == 1


def test_values_are_copied_and_read_only() -> None:
    """Nobody changes a table from outside."""
    values = np.array([[1.0, 2.0], [3.0, 4.0]])
    kept = table(values)
    source = CostTable("latency", "seconds", ("conv", "fc"), (W4, W8), values)

    values[0, 0] = 99.0

    assert source.values[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        kept.values[0, 0] = 99.0


def test_integers_become_floats() -> None:
    """Counts such as bytes may be given as integers."""
    counted = CostTable("size", "bytes", ("fc",), (W4, W8), np.array([[1, 2]]))

    assert counted.values.dtype == np.float64


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_infinite_costs_are_refused_by_name(bad: float) -> None:
    """The message names the layer and the precision, not indices."""
    with pytest.raises(InputError, match=r"latency: layer 'fc' at w8a8 costs -?inf; every cost"):
        table([[1, 2], [3, bad]])


@pytest.mark.parametrize("shape", [(2,), (2, 3), (3, 2), (1, 2, 2), ()])
def test_the_shape_is_layers_by_precisions(shape: tuple[int, ...]) -> None:
    """The message has the expected and the given shape."""
    with pytest.raises(InputError, match=r"latency: expected \[L, B\] = \(2, 2\), got \("):
        table(np.ones(shape))


def test_a_name_that_comes_twice_is_refused() -> None:
    """Twice the same layer or precision would make lookups ambiguous."""
    with pytest.raises(InputError, match=r"a layer is listed twice in \['fc', 'fc'\]"):
        table([[1, 2], [3, 4]], ("fc", "fc"))
    with pytest.raises(InputError, match=r"a precision is listed twice in \['w8a8', 'w8a8'\]"):
        replace(table([[1, 2], [3, 4]]), precisions=(W8, Precision.parse("int8")))


def test_an_unknown_unit_is_refused_with_a_hint() -> None:
    """Units are spelled out."""
    with pytest.raises(UnknownNameError, match=r"no unit 'second'; did you mean 'seconds'\?"):
        replace(table([[1, 2], [3, 4]]), unit="second")


@pytest.mark.parametrize(
    "unit", ["ms", "kib", "milliseconds", "byte", "joule", "My Unit", "", "Nats"]
)
def test_what_may_mean_a_resources_unit_is_refused(unit: str) -> None:
    """A scaled or misspelled unit would be compared with limits in the right one."""
    with pytest.raises(UnknownNameError, match=f"no unit '{unit}'"):
        replace(table([[1, 2], [3, 4]]), unit=unit)


@pytest.mark.parametrize("unit", ["squared_logits", "rank_distance", "edits2"])
def test_a_loss_may_have_a_unit_of_its_metric(unit: str) -> None:
    """Metrics of other packages declare their own; files keep it without that package."""
    own = replace(table([[1, 2], [3, 4]]), name="loss", unit=unit)

    assert CostTable.from_json(own.to_json()).unit == CostTable.from_csv(own.to_csv()).unit == unit
    assert own.column == f"loss_{unit}"


def test_a_complete_table_is_required_where_every_cell_counts() -> None:
    """The first empty cell is named; a complete table is returned as it is."""
    complete = table([[1, 2], [3, 4]])

    assert complete.require_complete() is complete
    with pytest.raises(InputError, match="layer 'conv' at w8a8 costs nan; every cost must be fin"):
        table([[1, np.nan], [np.nan, 4]]).require_complete()


def test_columns_are_found_and_selected_by_precision() -> None:
    """Selection keeps the order that is asked for."""
    whole = table([[1, 2], [3, 4]])

    swapped = whole.select([W8, W4])

    assert (whole.index_of(W4), whole.index_of(W8)) == (0, 1)
    assert swapped.precisions == (W8, W4)
    np.testing.assert_array_equal(swapped.values, [[2, 1], [4, 3]])
    with pytest.raises(UnknownNameError, match=r"no precision 'w2a8'; did you mean"):
        whole.select([Precision.parse("w2a8")])


@pytest.mark.parametrize(
    ("name", "unit", "column"),
    [
        ("latency", "seconds", "latency_seconds"),
        ("weight_bytes", "bytes", "weight_bytes"),
        ("effective_bits", "bits", "effective_bits"),
    ],
)
def test_columns_say_the_unit_once(name: str, unit: str, column: str) -> None:
    """A name that ends in its unit does not repeat it."""
    assert replace(table([[1, 2], [3, 4]]), name=name, unit=unit).column == column


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema_version", None),
        ("name", None),
        ("unit", None),
        ("layers", None),
        ("layers", 7),
        ("precisions", None),
        ("precisions", [4, 8]),
        ("values", None),
        ("values", [["one", 2], [3, 4]]),
        ("values", [[1, 2], [3]]),
        ("values", [[1, {}], [3, 4]]),
        ("values", [[1, 10**400], [3, 4]]),
        ("values", [[1, True], [3, 4]]),
        ("values", [[1, "2"], [3, 4]]),
        ("constant", True),
        ("constant", 10**400),
        ("constnt", 3.0),
        ("layers", "ab"),
        ("layers", ["a", 3]),
    ],
)
def test_json_with_a_wrong_or_missing_key_is_no_cost_table(key: str, value: object) -> None:
    """A key that is missing (here: None) or of another kind is a ``FileFormatError``."""
    data = table([[1, 2], [3, 4]]).to_dict()
    data[key] = value
    if value is None:
        del data[key]

    with pytest.raises(FileFormatError, match="not a (valid )?cost table"):
        CostTable.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"text"', "{}", "layer,w4a8\n"])
def test_text_that_is_no_such_json_is_refused(text: str) -> None:
    """Truncated or foreign JSON is a ``FileFormatError``, not a traceback of the parser."""
    with pytest.raises(FileFormatError, match="not a cost table"):
        CostTable.from_json(text)


def test_json_keeps_the_rules_of_the_table() -> None:
    """Reading a file checks as much as building a table."""
    data = table([[1, 2], [3, 4]]).to_dict()

    with pytest.raises(InputError, match="costs inf"):
        CostTable.from_json(json.dumps(data | {"values": [[1, float("inf")], [3, 4]]}))
    with pytest.raises(InputError, match=r"expected \[L, B\] = \(2, 2\), got \(1, 2\)"):
        CostTable.from_json(json.dumps(data | {"values": [[1, 2]]}))
    with pytest.raises(InputError, match="'w99' is not a precision"):
        CostTable.from_json(json.dumps(data | {"precisions": ["w4a8", "w99"]}))


def test_a_future_schema_version_asks_to_update() -> None:
    """Files of a later mpq are told apart from garbage."""
    data = table([[1, 2], [3, 4]]).to_dict()

    with pytest.raises(FileFormatError, match="schema version 2; this mpq reads version 1: update"):
        CostTable.from_json(json.dumps(data | {"schema_version": 2}))
    with pytest.raises(FileFormatError, match="schema version true; this mpq reads version 1"):
        CostTable.from_json(json.dumps(data | {"schema_version": True}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a cost table in CSV"),
        ("layer,w4a8\nfc,1\n", "first header cell must be name:unit"),
        ("latency:seconds,w4a8\nfc,fast\n", "not a cost table in CSV"),
        ("latency:seconds,w4a8\nfc,1_0\n", "not a cost table in CSV"),
        ("latency:seconds,w4a8\nfc,True\n", "not a cost table in CSV"),
        ("latency:seconds,w4a8\nfc,1,2,3\nconv,1\n", "not a cost table in CSV"),
        ("latency:seconds,w4a8\nfc,1,2\n", "not a cost table in CSV|first header cell must be"),
    ],
)
def test_csv_that_is_no_cost_table_is_refused(text: str, message: str) -> None:
    """A wrong head, a word instead of a number or a ragged line is a ``FileFormatError``."""
    with pytest.raises(FileFormatError, match=message):
        CostTable.from_csv(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency:hours,w4a8\nfc,1\n", "no unit 'hours'"),
        ("latency:seconds,wide\nfc,1\n", "'wide' is not a precision"),
        ("latency:seconds,w4a8\nfc,inf\n", "layer 'fc' at w4a8 costs inf"),
        ("latency:seconds,w4a8\nfc,1\nfc,2\n", "a layer is listed twice"),
        ("latency:seconds,w4a8,w4a8\nfc,1,2\n", "a precision is listed twice"),
    ],
)
def test_csv_keeps_the_rules_of_the_table(text: str, message: str) -> None:
    """Reading a spreadsheet checks as much as building a table."""
    with pytest.raises(InputError, match=message):
        CostTable.from_csv(text)


@pytest.mark.parametrize(
    ("unit", "is_known"),
    [("second", False), ("byte", False), ("joules", True), ("bit", False), ("bitop", False),
     ("ms", False), ("kib", False), ("hours", False), ("milliseconds", False), ("bites", False),
     ("perplexity", True), ("points", True), ("dice_loss", True), ("Nats", False), ("a-b", False)],
)  # fmt: skip
def test_only_what_looks_like_a_resources_unit_is_refused(unit: str, is_known: bool) -> None:
    """A metric may have a unit of its own; a resource's is compared with limits."""
    values = np.zeros((1, 1))
    precisions = (Precision.parse("w8a8"),)
    if is_known:
        assert CostTable("x", unit, ("a",), precisions, values).unit == unit
        return
    with pytest.raises(UnknownNameError, match="unit"):
        CostTable("x", unit, ("a",), precisions, values)


def test_json_is_indented_by_one() -> None:
    """As all files of ours are."""
    assert table([[1.0, 2.0], [3.0, 4.0]]).to_json().startswith('{\n "schema_version": 1,\n "name"')


def test_no_total_is_farther_from_0_than_the_magnitude() -> None:
    """All numbers without their signs: constant, cells that can run, every pair."""
    precisions = tuple(map(Precision.parse, ("w4a8", "w8a8")))
    values = np.array([[-1.0, float("nan")], [2.0, -4.0]])
    pairs = (
        PairwiseCost("a", "b", np.array([[8.0, -16.0], [32.0, 0.0]])),
        PairwiseCost("b", "a", np.array([[64.0, 0.0], [0.0, -128.0]])),
    )

    found = CostTable("x", "bytes", ("a", "b"), precisions, values, -256.0, pairs)

    assert found.magnitude == 511.0
    assert found.total_between(np.array([0, 1])) == -16.0
    assert found.total(np.array([0, 1])) == -256 - 1 - 4 - 16


def test_a_csv_says_which_cell_is_wrong() -> None:
    """A row that is too short, one that is too long, an empty file, a heading without a unit."""
    head = "x:bytes,w4a8,w8a8\n"
    for text, message in (
        (head + "a,1\n", r"not a cost table in CSV: ['a'] has 2 cells, not 3"),
        (head + "a,1,2,3\n", r"not a cost table in CSV: ['a'] has 4 cells, not 3"),
        (head + "a,1,x\n", "not a cost table in CSV: could not convert string to float: 'x'"),
        ("", "not a cost table in CSV: the first header cell must be name:unit, such as "
             "latency:seconds; got []"),
        ("x,w4a8\n", "not a cost table in CSV: the first header cell must be name:unit, such as "
                     "latency:seconds; got ['x']"),
    ):  # fmt: skip
        with pytest.raises(FileFormatError) as caught:
            CostTable.from_csv(text)
        assert str(caught.value) == message
    assert CostTable.from_csv(head).values.shape == (0, 2)
    assert CostTable.from_csv("a:b:bytes,w4a8\n'=1,\n").name == "a:b"

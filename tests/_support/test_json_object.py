"""The one door for JSON: whatever comes, a value or one sentence."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq._support.json_arrays import columns, number, numbers, texts, truth_values
from mpq._support.json_object import parsed_json, quoted, read_text, require_version
from mpq._support.schema import read_schema, validate
from mpq.errors import FileFormatError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=values)
def test_what_json_writes_is_read(value: Any) -> None:
    """Every value, as Python's own reader has it."""
    assert parsed_json(json.dumps(value)) == value


@given(text=st.text())
def test_any_text_is_a_value_or_a_sentence(text: str) -> None:
    """No exception but ours."""
    with suppress(FileFormatError):
        parsed_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' is there twice in one object"),
        ('[{"b": {"a": 1, "c": 2, "a": 1}}]', "the key 'a' is there twice in one object"),
        ("[" * 100_000, "brackets are nested too deeply"),
        ('{"a":' * 100_000, "brackets are nested too deeply"),
        ("9" * 5_000, "a whole number has too many digits"),
        ("{", "not JSON: Expecting property name"),
    ],
    ids=["double", "inner double", "deep list", "deep object", "digits", "cut off"],
)
def test_what_is_hostile_is_a_sentence(text: str, message: str) -> None:
    """Which says what is wrong, and never what Python called it."""
    with pytest.raises(FileFormatError, match=message) as caught:
        parsed_json(text)

    assert "Error" not in str(caught.value)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """By its size, which the message says; the file here has no content to be read."""
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(300 * 2**20)

    with pytest.raises(FileFormatError, match=r"huge.json: it has 300 MiB; files of up to 256 MiB"):
        read_text(path)


@pytest.mark.parametrize("size", [10, 11])
def test_the_bound_itself_is_read(size: int, tmp_path: Path) -> None:
    """One byte more is not."""
    (tmp_path / "file").write_bytes(b"x" * size)

    if size > 10:
        with pytest.raises(FileFormatError, match="cannot read"):
            read_text(tmp_path / "file", largest=10)
    else:
        assert read_text(tmp_path / "file", largest=10) == "x" * size


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a device of Unix")
def test_a_device_is_not_read() -> None:
    """It has no end."""
    with pytest.raises(FileFormatError, match="cannot read /dev/zero: it is no regular file"):
        read_text("/dev/zero")


@pytest.mark.parametrize("content", [None, b"\x89PNG\r\n"])
def test_what_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    """A file that is missing, and one that is no text."""
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)

    with pytest.raises(FileFormatError, match=r"cannot read .*a\.json: "):
        read_text(tmp_path / "a.json")


@given(value=values)
def test_a_quoted_value_is_short_and_one_line(value: Any) -> None:
    """Whatever a file holds."""
    found = quoted(value)

    assert len(found) <= 90
    assert found.isprintable()


def test_values_are_quoted_as_the_file_spells_them() -> None:
    """null and true, not None and True."""
    found = [quoted(x) for x in (None, True, "a", 1.5, [1, None], [[1], {}], {"a": 1}, [0] * 99)]

    assert found == [
        "null", "true", "'a'", "1.5", "[1, null]", "[a list, an object]", "an object of 1",
        "a list of 99",
    ]  # fmt: skip


SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"constant": {"type": "number"}, "deep": {"type": "string"}},
}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"constnt": 1}, r"unknown key 'constnt' \(did you mean 'constant'\?\)"),
        ({"zzz": 1}, r"unknown key 'zzz' \(there are constant, deep\)"),
        ({"z" * 99: 1}, r"unknown key 'z+\.\.\.z+' \(there are constant, deep\)"),
        ({"constant": True}, "at constant: true is not of type 'number'"),
        ({"constant": "x" * 10_000}, r"at constant: 'x+\.\.\.x+' is not of type 'number'"),
        ({"constant": [0] * 10_000}, "at constant: a list of 10000 is not of type 'number'"),
    ],
    ids=["near", "far", "long", "truth value", "long text", "long list"],
)
def test_a_mismatch_is_a_short_sentence(data: Any, message: str) -> None:
    """With the nearest known key, and values cut."""
    with pytest.raises(FileFormatError, match=message) as caught:
        validate(data, SCHEMA, "file")

    assert len(str(caught.value)) < 250


def test_a_deep_value_in_a_wrong_place_is_a_sentence() -> None:
    """jsonschema would spell all of it."""
    with pytest.raises(FileFormatError, match="not a valid file: "):
        validate({"deep": parsed_json("[" * 900 + "]" * 900)}, SCHEMA, "file")


@pytest.mark.parametrize(
    ("read", "given_cells", "message"),
    [
        (texts, "ab", "here: expected a list of texts, got 'ab'"),
        (texts, ["a", 1], "here/1: expected texts, got 1"),
        (columns, [0, True], "here/1: expected whole numbers, got true"),
        (columns, [0, 2**70], "here: a number has more than 64 bits"),
        (number, True, "here/0: expected a number, got true"),
        (number, 10**400, "here: the number is too large for 64 bits"),
        (numbers, [1, 2], "here/0: expected lists of numbers, got 1"),
        (numbers, [[1, 2], [1, "2"]], "here/1/1: expected numbers, got '2'"),
        (numbers, [[1, 2], [1, True]], "here/1/1: expected numbers, got true"),
        (numbers, [[1, 2], [1]], "here/1: expected 2 numbers as in the first row, got 1"),
        (numbers, [[1, 10**400]], "here: a number is too large for 64 bits"),
        (truth_values, [[True, 1]], "here/0/1: expected truth values, got 1"),
    ],
)
def test_cells_of_other_types_are_refused(read: Any, given_cells: Any, message: str) -> None:
    """numpy would take them for numbers; the message has row and column."""
    with pytest.raises(FileFormatError) as caught:
        read(given_cells, "here")

    assert str(caught.value) == message


cells = st.none() | st.integers(-9, 9) | st.floats(-9, 9)


@given(rows=st.lists(st.lists(cells, min_size=3, max_size=3)))
def test_numbers_are_read_as_they_are(rows: list[list[float | None]]) -> None:
    """null is nan; all others keep every bit."""
    found = numbers(rows, "here").tolist()

    assert [[None if x != x else x for x in row] for row in found] == rows


@pytest.mark.parametrize("version", [0, 4, True, 2.0, "2", None, [2]])
def test_other_versions_are_refused(version: Any) -> None:
    """Later ones, earlier ones than are read, and what is no whole number."""
    with pytest.raises(FileFormatError, match=r"file of schema version .*; this mpq reads v"):
        require_version({"schema_version": version}, "file", 3, oldest=1)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_versions_that_are_read(version: int) -> None:
    """Both ends too."""
    require_version({"schema_version": version}, "file", 3, oldest=1)


def test_a_short_list_is_spelled() -> None:
    """Of up to eight members; of more, how many there are. No digits without end."""
    assert quoted([0] * 8) == "[0, 0, 0, 0, 0, 0, 0, 0]"
    assert quoted([0] * 9) == "a list of 9"
    assert quoted([]) == "[]"
    assert quoted({}) == "{}"
    assert quoted(10**5_000) == "a number"


def test_values_nested_without_end_are_a_sentence() -> None:
    """Which only Python can make: as the reader refuses them in a file."""
    deep: Any = []
    for _ in range(50_000):
        deep = [deep]

    with pytest.raises(FileFormatError) as caught:
        validate({"deep": deep}, SCHEMA, "file")

    assert str(caught.value) == "not a valid file: brackets are nested too deeply"


def test_a_schema_is_filled_with_names() -> None:
    """Where it has such a definition; its other definitions stay."""
    plain = read_schema("mpq.problem", "assignment.schema.json")

    found = read_schema(
        "mpq.problem", "assignment.schema.json", number_format=iter(["a", "b"]), unknown=["c"]
    )

    assert found["$defs"]["number_format"] == {"enum": ["a", "b"]}
    assert found == plain | {"$defs": plain["$defs"] | {"number_format": {"enum": ["a", "b"]}}}


def test_a_reason_is_at_most_four_times_as_long_as_a_name() -> None:
    """Where it is jsonschema's that lists what is known: all of 320 characters, and no more."""
    known = {"enum": ["a" * 100, "b" * 100, "c" * 76]}  # with the words around them 319

    def reason(schema: Any) -> str:
        with pytest.raises(FileFormatError) as caught:
            validate("d", schema, "file")
        return str(caught.value).removeprefix("not a valid file: at the top level: ")

    most = len(reason(known))
    for longer in range(320 - most, 322 - most):
        words = reason({"enum": [*known["enum"][:2], "c" * (76 + longer)]})
        assert len(words) == 320
        assert ("..." in words) == (most + longer > 320)

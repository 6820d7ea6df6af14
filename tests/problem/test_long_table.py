"""A CSV in long form: what each line may say, by the line that says it."""

import numpy as np
import pytest

from mpq.errors import FileFormatError, UnknownNameError
from mpq.problem.table_file import LongTable

HEAD = "layer,precision,loss_nats,weight_bytes,latency_seconds,tie\n"
ROWS = "a,w4a8,0.5,4,1,t\na,w8a8,0.1,8,2,t\nb,w4a8,0.3,4,1,\nb,w8a8,-0.2,0,0,\n"


def test_what_the_columns_say() -> None:
    """The loss may be below 0, a resource may be 0; a tie of one layer is none."""
    found = LongTable.from_csv(HEAD + ROWS)

    assert found.loss.column == "loss_nats"
    assert found.loss.values.tolist() == [[0.5, 0.1], [0.3, -0.2]]
    assert {name: t.unit for name, t in found.resources.items()} == {
        "weight_bytes": "bytes", "latency": "seconds"
    }  # fmt: skip
    assert found.resources["latency"].values.tolist() == [[1, 2], [1, 0]]
    assert found.ties == ()
    assert found.candidates == {}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,w4a8,0.5,4,1\n", "line 2 has 5 cells, not 6"),
        ("a,w4a8,0.5,4,1,,\n", "line 2 has 7 cells, not 6"),
        (" ,w4a8,0.5,4,1,\n", "line 2 has no name of a layer"),
        ("a,w4a8,0.5,4,1,\n\na,w4a8,0.5,4,1,\n", "line 4: 'a' at w4a8 comes twice"),
        ("a,w4a8,0.5,-1,1,\n", "line 2, weight_bytes: -1 bytes are less than nothing"),
        ("a,w4a8,inf,1,1,\n", "line 2, loss_nats: 'inf' is no finite number"),
        ("a,w4a8,0.5,x,1,\n", "line 2, weight_bytes: 'x' is no finite number"),
        ("a,w4a8,0.5,1_0,1,\n", "line 2, weight_bytes: '1_0' is no finite number"),
        ("a,w4a8,２,1,1,\n", "line 2, loss_nats: '２' is no finite number"),
        ("a,w4a8,0.5,nan,1,\n", "line 2, weight_bytes: 'nan' is no finite number"),
        (
            "a,w4a8,0.5,4,1,t\na,w8a8,0.5,4,1,u\n",
            "'a' has two ties, 't' and 'u'",
        ),
    ],
)
def test_a_line_that_is_wrong_is_named(rows: str, message: str) -> None:
    """By its number in the file, blank lines counted."""
    with pytest.raises(FileFormatError) as caught:
        LongTable.from_csv(HEAD + rows)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "; got nothing"),
        (HEAD, "; got ['layer', 'precision', 'loss_nats', 'weight_bytes', 'latency_seconds', "),
        ("precision,layer,loss_nats\nw4a8,a,1\n", "; got ['precision', 'layer', 'loss_nats']"),
        ("layer,precision,loss_nats,loss_nats\na,w4a8,1,1\n", "column 'loss_nats' comes twice"),
        (
            "layer,precision,weight_bytes\na,w4a8,1\n",
            "one column is a loss, in nats, squared_output, cosine_distance, relative; there are 0",
        ),
        ("layer,precision,a_nats,b_nats\na,w4a8,1,1\n", "there are 2 of them"),
        (
            "layer,precision,loss_nats,t_seconds,t_joules\na,w4a8,1,1,1\n",
            "two columns have one name: ['loss', 't', 't']",
        ),
        (
            "layer,precision,loss_nats,loss_seconds\na,w4a8,1,1\n",
            "two columns have one name: ['loss', 'loss']",
        ),
    ],
)
def test_columns_that_do_not_fit_are_refused(text: str, message: str) -> None:
    """Before any number is read as something else."""
    with pytest.raises(FileFormatError) as caught:
        LongTable.from_csv(text)

    assert message in str(caught.value)


def test_a_column_has_a_unit() -> None:
    """The message has the column and the units."""
    with pytest.raises(UnknownNameError, match="unit at the end of column 'speed'"):
        LongTable.from_csv("layer,precision,loss_nats,speed\na,w4a8,1,1\n")


def test_what_is_missing_is_not_chosen_where_that_is_allowed() -> None:
    """No row: no candidate, and no loss; an empty cell of a resource: it cannot run there."""
    rows = "a,w4a8,0.5,4,1,t\na,w8a8,0.1,8,,t\nb,w8a8,0.2,8,2,t\nc,w4a8,,1,1,u\nc,w8a8,1,1,1,u\n"

    found = LongTable.from_csv(HEAD + rows, allow_missing=True)

    np.testing.assert_array_equal(found.loss.values, [[0.5, 0.1], [0.0, 0.2], [np.nan, 1.0]])
    np.testing.assert_array_equal(
        found.resources["latency"].values, [[1, np.nan], [np.nan, 2], [1, 1]]
    )
    assert {layer: list(map(str, ps)) for layer, ps in found.candidates.items()} == {
        "a": ["w4a8"], "b": ["w8a8"]
    }  # fmt: skip
    assert found.ties == (("a", "b"),)
    with pytest.raises(FileFormatError, match="^'b' has no row at w4a8; every layer has every"):
        LongTable.from_csv(HEAD + rows)
    with pytest.raises(FileFormatError, match="^line 3: 'a' at w8a8 has no latency_seconds; every"):
        LongTable.from_csv(HEAD + "a,w4a8,0.5,4,1,t\na,w8a8,0.1,8,,t\n")


def test_without_resources_a_missing_row_is_no_candidate() -> None:
    """There is nothing else that would say so."""
    text = "layer,precision,loss_nats\na,w4a8,1\na,w8a8,0\nb,w8a8,2\n"

    found = LongTable.from_csv(text, allow_missing=True)

    assert [(layer, list(map(str, ps))) for layer, ps in found.candidates.items()] == [
        ("b", ["w8a8"])
    ]
    assert found.resources == {}

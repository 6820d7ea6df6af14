"""Names of layers are any text; nothing of it acts on whoever reads it."""

import csv
import html
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import cbook
from rich.console import Console

import mpq
from mpq._support.names import (
    for_csv,
    for_markdown,
    for_people,
    for_picture,
    from_csv,
    shortened,
    visible,
)

ANYTHING = st.text(max_size=300)
HOSTILE = (
    r"$\frac{1}{0}$", "[/red]", ":smile:", "\x1b]0;owned\x07", "=cmd|' /C calc'!A0", "a|b",
    "<script>", "\u202egnp", "two\nlines", "'=1", "x" * 100_000,
)  # fmt: skip


@given(ANYTHING)
def test_no_control_character_is_left(text: str) -> None:
    """A terminal acts on none of it, and the text stays on its line."""
    assert visible(text).isprintable()
    assert all(line.isprintable() for line in for_people(text).split("\n"))


@given(st.text(alphabet=st.characters(categories=["L", "N"]), max_size=40))
def test_plain_names_are_shown_as_they_are(text: str) -> None:
    """Nobody has to recognise ``layer1.0.conv2`` in disguise."""
    assert for_people(text) == visible(text) == for_picture(text) == text


@given(ANYTHING, st.integers(5, 90))
def test_shortened_keeps_both_ends(text: str, longest: int) -> None:
    """Names differ at their ends, where numbers are."""
    short = shortened(text, longest)
    assert len(short) <= longest
    assert short == text or (text.startswith(short[0]) and text.endswith(short[-1]))


@given(ANYTHING)
def test_a_picture_sees_no_formula(text: str) -> None:
    """Matplotlib takes an even number of bare dollars for mathematics."""
    label = for_picture(text.replace("\\", "/"))
    assert not cbook.is_math_text(label)


@given(st.one_of(ANYTHING, st.text(alphabet="'=+-@\t a", max_size=5)))
def test_csv_comes_back_and_computes_nothing(cell: str) -> None:
    """What we write we read; a spreadsheet finds no formula."""
    assert from_csv(for_csv(cell)) == cell
    assert not for_csv(cell).startswith(("=", "+", "-", "@", "\t", "\r"))


@given(ANYTHING)
def test_markdown_has_as_many_cells_as_columns(cell: str) -> None:
    """No name begins a column, a line or a tag."""
    shown = for_markdown(cell)
    assert "<" not in shown
    assert "\n" not in shown
    bare = shown.replace("\\\\", "").replace("\\|", "")
    assert "|" not in bare


@given(st.text(alphabet="&<>lt;amp", max_size=9))
def test_markdown_shows_the_name_itself(cell: str) -> None:
    """Also one that is an entity of HTML already."""
    assert html.unescape(for_markdown(cell)) == cell


@pytest.mark.parametrize("name", ["<script>", "&lt;", "</td><b onclick='x'>", '"><img src=x>'])
def test_a_table_in_a_notebook_shows_names_as_text(name: str) -> None:
    """Its HTML is made by pandas, and a name is no tag there."""
    precision = mpq.Precision.parse("w4a8")
    table = mpq.CostTable("loss", "nats", (name,), (precision,), np.ones((1, 1))).to_pandas()

    shown = table.to_html()

    assert html.escape(name, quote=False) in shown
    assert not re.search("<(script|b|img)", shown)


def test_we_make_no_html_ourselves(root: Path) -> None:
    """Whoever adds some escapes names in it, as a result does that shows itself in a notebook."""
    maker = re.compile(r"_repr_html_|_repr_mimebundle_|to_html|\.style\.|IPython|<(table|div|td)\b")

    found = [path for path in (root / "mpq").rglob("*.py") if maker.search(path.read_text("utf-8"))]

    assert found == [root / "mpq" / "workflows" / "result.py"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_table_shows_hostile_names(name: str) -> None:
    """Markup, emoji and escape sequences arrive as text, in no time."""
    from mpq.cli.console import literal, new_table

    table = new_table()
    table.add_column("layer")
    table.add_row(literal(name, 80))
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shortened(visible(name)) in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("name", HOSTILE)
def test_a_csv_reader_gets_the_name(name: str) -> None:
    """The whole name, also of 100,000 characters, through a real CSV."""
    file = io.StringIO()
    csv.writer(file).writerow([for_csv(name), "w4a8"])
    file.seek(0)
    csv.field_size_limit(10**6)
    assert from_csv(next(csv.reader(file))[0]) == name


@given(longest=st.integers(5, 90), more=st.integers(0, 40))
def test_a_shortened_text_is_as_long_as_it_may_be(longest: int, more: int) -> None:
    """What just fits is whole; of more, the last third of what is kept is the end."""
    text = "".join(chr(ord("0") + i) for i in range(longest + more))

    found = shortened(text, longest)

    assert len(found) == longest
    if not more:
        assert found == text
        return
    head, _, tail = found.partition("...")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(tail) == max((longest - 3) // 3, 1)


@pytest.mark.parametrize("longest", range(5))
def test_a_text_is_never_shortened_to_nothing(longest: int) -> None:
    """A character of either end stays, however narrow the place is."""
    assert shortened("abcdefgh", longest) == "a...h"


@pytest.mark.parametrize(
    ("show", "longest"),
    [(shortened, 80), (for_picture, 40), (lambda text: for_people(text + " "), 80)],
    ids=["name", "label", "word"],
)
def test_lengths_that_people_are_shown(show: Callable[[str], str], longest: int) -> None:
    """80 characters of a name, 40 of a label; a word of 160 is a path, and shown whole."""
    whole = 159 if longest == 80 and show is not shortened else longest

    assert show("x" * whole).strip() == "x" * whole
    assert len(show("x" * (whole + 1)).strip()) == longest


def test_a_message_is_some_fifty_lines() -> None:
    """4000 characters are shown, and of more the ends."""
    line = "x" * 79 + "\n"

    assert for_people(line * 50).count("\n") == 49
    assert len(for_people(line * 50 + "y")) == 4000
    assert len(for_people(line * 50 + "yy")) == 4000
    assert "..." not in for_people((line * 50 + "y")[1:])
    assert "..." in for_people(line * 50 + "yy")


@pytest.mark.parametrize(
    ("name", "seen"),
    [("a\x1bb\n", r"a\x1bb\n"), ("\u202egnp", r"\u202egnp"), ("é\x00", r"é\x00"), ("ok", "ok")],
)
def test_what_is_not_printable_is_an_escape(name: str, seen: str) -> None:
    """As Python spells it, one by one; all else stays."""
    assert visible(name) == seen


@pytest.mark.parametrize(
    ("name", "cell"),
    [("plain", "plain"), ("'quoted'", "'quoted'"), ("=1", "'=1"), ("'=1", "''=1"), ("", ""),
     ("'", "'"), ("-a", "'-a"), ("a=1", "a=1"), ("''", "''")],
)  # fmt: skip
def test_only_what_begins_like_a_formula_gets_a_quote(name: str, cell: str) -> None:
    """And only there one is taken away."""
    assert for_csv(name) == cell
    assert from_csv(cell) == name

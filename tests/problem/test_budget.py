"""Limits are read in every unit, and what makes no sense is refused."""

import re
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq.errors import InputError, LimitError, PrecisionError, UnknownNameError
from mpq.problem.budget import Budget
from mpq.problem.cost_table import CostTable
from mpq.problem.limits import Limit, parse_limits, uniform_cost
from mpq.quantization.precision import Precision

W4, W8 = map(Precision.parse, ("w4a8", "w8a8"))
NAN = float("nan")


def table(
    unit: str = "seconds", rows: tuple[tuple[float, float], ...] = ((1, 2), (3, 4))
) -> CostTable:
    """Two layers ``conv`` and ``fc`` at w4a8 and w8a8."""
    return CostTable("cost", unit, ("conv", "fc"), (W4, W8), np.array(rows, dtype=np.float64))


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("cost=2s", "seconds", Fraction(2)),
        ("cost=2.5ms", "seconds", Fraction(25, 10**4)),
        ("cost=30us", "seconds", Fraction(3, 10**5)),
        ("cost=30µs", "seconds", Fraction(3, 10**5)),
        ("cost=7ns", "seconds", Fraction(7, 10**9)),
        ("cost=12B", "bytes", Fraction(12)),
        ("cost=1.5KB", "bytes", Fraction(1500)),
        ("cost=2MB", "bytes", Fraction(2_000_000)),
        ("cost=3GB", "bytes", Fraction(3 * 10**9)),
        ("cost=300KiB", "bytes", Fraction(307_200)),
        ("cost=2MiB", "bytes", Fraction(2_097_152)),
        ("cost=1GiB", "bytes", Fraction(1_073_741_824)),
        ("cost=1J", "joules", Fraction(1)),
        ("cost=5mJ", "joules", Fraction(5, 10**3)),
        ("cost=5uJ", "joules", Fraction(5, 10**6)),
        ("cost=5µJ", "joules", Fraction(5, 10**6)),
        ("cost=5nJ", "joules", Fraction(5, 10**9)),
        ("cost=5pJ", "joules", Fraction(5, 10**12)),
        ("cost=1200", "bitops", Fraction(1200)),
        ("cost=2K", "bitops", Fraction(2000)),
        ("cost=2M", "bitops", Fraction(2 * 10**6)),
        ("cost=1.5G", "bitops", Fraction(15 * 10**8)),
        ("cost=2T", "bitops", Fraction(2 * 10**12)),
        ("cost=4.5", "bits", Fraction(9, 2)),
        ("cost=4.5bits", "bits", Fraction(9, 2)),
        ("cost=1bit", "bits", Fraction(1)),
        ("  cost =  .5 ms ", "seconds", Fraction(5, 10**4)),
        ("cost=1e-3s", "seconds", Fraction(1, 1000)),
        ("cost=1E+3", "bitops", Fraction(1000)),
        ("cost=2.e2KB", "bytes", Fraction(200_000)),
    ],
)
def test_absolute_limits_are_converted_to_the_tables_unit(
    text: str, unit: str, amount: Fraction
) -> None:
    """Every unit that a limit may have, in decimal and binary multiples."""
    limit = Limit.parse(text)

    assert limit.resource == "cost"
    assert limit.reference is None
    assert limit.resolve(table(unit)) == pytest.approx(float(amount), rel=1e-15)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cost=0.5x:w8a8", 3.0),
        ("cost=0.5x w8a8", 3.0),
        ("cost = 0.5 x: w8a8", 3.0),
        ("cost=1x:w4a8", 4.0),
        ("cost=2X:W4A8", 8.0),
        ("cost=0.5x:int8", 3.0),
        ("cost=1e-1x:w8a8", 0.6),
    ],
)
def test_relative_limits_are_a_share_of_a_uniform_precision(text: str, expected: float) -> None:
    """The reference is the sum of its column: 4 at w4a8 and 6 at w8a8, in any unit."""
    limit = Limit.parse(text)

    for unit in ("seconds", "bytes", "joules", "nats", "relative"):
        assert limit.resolve(table(unit)) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    [
        *("", "cost", "cost=", "=2ms", "cost=ms", "cost=-2ms", "cost=two ms", "cost=2 ms 3"),
        *("cost=2ms!", "cost=nan", "cost=inf", "cost=0.5x:", "cost=x:w8a8"),
        *("cost==2ms", "cost=2,5ms", "cost<2ms", "cost=1.2.3s", "cost=0.5:w8a8", "cost=-1x:w8a8"),
    ],
)
def test_misspelled_limits_are_refused_with_examples(text: str) -> None:
    """The message repeats the text and shows every form."""
    with pytest.raises(
        LimitError, match=r"is not a limit: write resource=amount, such as"
    ) as error:
        Limit.parse(text)

    assert repr(text) in str(error.value)


@pytest.mark.parametrize("text", ["cost=0ms", "cost=0", "cost=0.0KiB", "cost=0x:w8a8"])
def test_a_limit_is_positive(text: str) -> None:
    """Nothing runs in no time; a zero is a slip of the pen, and said as it was written."""
    with pytest.raises(LimitError, match=r"^cost=0(ms|KiB|x:w8a8|): a limit is positive$"):
        Limit.parse(text)


def test_a_misspelled_reference_is_refused() -> None:
    """What follows ``x:`` is a precision."""
    with pytest.raises(PrecisionError, match="'w17' is not a precision"):
        Limit.parse("cost=0.5x:w17")


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        ("cost=2ms", "bytes", "cost: unit 'ms' does not measure bytes; use one of B, KB, MB"),
        ("cost=2KiB", "seconds", "unit 'KiB' does not measure seconds; use one of s, ms, us"),
        ("cost=2", "seconds", "cost: the limit 2 has no unit; use one of s, ms"),
        ("cost=2mj", "joules", "unit 'mj' does not measure joules; use one of J, mJ"),
        ("cost=2J", "bitops", r"unit 'J' does not measure bitops; use one of \(none\), K, M"),
        ("cost=2e", "bits", r"unit 'e' does not measure bits; use one of \(none\), bit, bits"),
        ("cost=2MS", "seconds", "unit 'MS' does not measure seconds"),
        ("cost=0.5x", "seconds", "say relative to which precision, such as 0.5x:w8a8"),
    ],
)
def test_a_unit_of_something_else_is_refused(text: str, unit: str, message: str) -> None:
    """The message has the resource and the units that fit; units are case sensitive."""
    with pytest.raises(LimitError, match=message):
        Limit.parse(text).resolve(table(unit))


@pytest.mark.parametrize("unit", ["nats", "relative"])
def test_a_unit_without_absolute_amounts_says_so(unit: str) -> None:
    """The list of units that fit is empty there: the message says what to write instead."""
    with pytest.raises(LimitError, match="has no unit; write the limit relative"):
        Limit.parse("cost=2").resolve(table(unit))


def test_a_limit_relative_to_what_the_device_lacks_is_refused() -> None:
    """A sum over layers that cannot run there means nothing; the first such layer is named."""
    lacking = table("seconds", ((1, NAN), (3, NAN)))

    with pytest.raises(LimitError, match=r"layer 'conv' cannot run at w8a8.*choose another"):
        Limit.parse("cost=0.5x:w8a8").resolve(lacking)
    assert Limit.parse("cost=0.5x:w4a8").resolve(lacking) == 2.0


def test_a_limit_relative_to_an_unknown_precision_is_refused() -> None:
    """The message lists the precisions that there are."""
    with pytest.raises(UnknownNameError, match=r"no precision 'bf16' \(there are: w4a8, w8a8\)"):
        Limit.parse("cost=0.5x:bf16").resolve(table())


def test_limits_are_a_mapping_too() -> None:
    """A number is in the table's own unit; text is what follows the equals sign; or a limit."""
    limits = parse_limits(
        {"latency": 2.5e-3, "weight_bytes": "0.5x:w8a8", "energy": Limit("energy", 3, "mJ")}
    )

    assert [limit.resource for limit in limits] == ["latency", "weight_bytes", "energy"]
    assert [str(limit) for limit in limits] == [
        "latency=0.0025", "weight_bytes=0.5x:w8a8", "energy=3mJ"
    ]  # fmt: skip
    assert limits[0].resolve(table("seconds")) == 2.5e-3
    assert limits[1].resolve(table("bytes")) == 3.0
    assert limits[2].resolve(table("joules")) == pytest.approx(3e-3)


def test_limits_and_texts_may_be_mixed() -> None:
    """A sequence holds either."""
    limits = parse_limits([Limit("latency", 0.5), "energy=1J"])

    assert [str(limit) for limit in limits] == ["latency=0.5", "energy=1J"]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("latency=2ms", r"limits are several: write \['latency=2ms'\], or a mapping"),
        ({"latency": True}, r"limits\['latency'\] is True; expected a positive number"),
        ({"latency": 0}, "is 0; expected a positive number"),
        ({"latency": NAN}, "is nan; expected a positive number"),
        ({"latency": None}, "is None; expected a positive number in the resource's own unit"),
        ({"latency": "2 ms fast"}, "'latency=2 ms fast' is not a limit"),
        ({"latency": Limit("energy", 1)}, r"limits\['latency'\] is a limit on 'energy'"),
        ([2.5], "2.5 is not a limit: write 'latency=2.5ms' or a Limit"),
    ],
)
def test_limits_of_another_form_are_refused(limits: Any, message: str) -> None:
    """The message says what was given, and what is expected."""
    with pytest.raises(LimitError, match=message):
        parse_limits(limits)


def test_several_limits_are_read_in_their_order() -> None:
    """Each resource may have one."""
    limits = parse_limits(["latency=2ms", "weight_bytes=300KiB", "energy=0.5x:w8a8"])

    assert [limit.resource for limit in limits] == ["latency", "weight_bytes", "energy"]
    assert limits[2].reference == W8
    assert parse_limits([]) == ()


@pytest.mark.parametrize("second", ["latency=3ms", " latency = 0.5x:w8a8"])
def test_two_limits_on_one_resource_are_refused(second: str) -> None:
    """Also if the two are written differently."""
    with pytest.raises(LimitError, match="latency has 2 limits; give one"):
        parse_limits(["latency=2ms", "energy=1J", second])


@pytest.mark.parametrize("limit", [np.inf, -np.inf, np.nan])
def test_an_infinite_budget_is_refused(limit: float) -> None:
    """No limit at all is written by leaving the budget out."""
    with pytest.raises(LimitError, match=r"cost: the limit must be finite, got -?(inf|nan)"):
        Budget.of(table(), limit)


def test_an_amount_too_large_for_a_float_is_refused() -> None:
    """It reads as infinite, and the budget says so."""
    limit = Limit.parse("cost=1e999s").resolve(table())

    with pytest.raises(LimitError, match="the limit must be finite, got inf"):
        Budget.of(table(), limit)


@given(
    cells=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=30),
    random=st.randoms(use_true_random=False),
)
def test_sums_are_correctly_rounded_in_any_order(cells: list[float], random: Random) -> None:
    """The sum is the float nearest to the exact one, whatever the order of the layers."""
    exact = sum(map(Fraction, cells), Fraction(0))
    other = random.sample(cells, len(cells))
    layers = tuple(f"layer{i}" for i in range(len(cells)))
    column = CostTable("cost", "seconds", layers, (W4,), np.array(cells)[:, None])
    shuffled = CostTable("cost", "seconds", layers, (W4,), np.array(other)[:, None])
    columns = np.zeros(len(cells), dtype=np.intp)

    assert column.total(columns) == shuffled.total(columns) == float(exact)
    assert uniform_cost(column, W4) == float(exact)
    assert Budget.of(column, 1.0).used(columns) == float(exact)


def test_a_budget_adds_the_chosen_cells() -> None:
    """One column per layer."""
    budget = Budget.of(table(), 5.0)

    assert [budget.used(np.array(columns)) for columns in ([0, 0], [1, 0], [0, 1], [1, 1])] == [
        4.0,
        5.0,
        5.0,
        6.0,
    ]
    assert [budget.is_met(np.array(columns)) for columns in ([0, 0], [1, 0], [1, 1])] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e12])
def test_a_limit_holds_up_to_rounding_only(scale: float) -> None:
    """1e-13 above a limit is rounding, 1e-11 above is too much, whatever the unit."""
    columns = np.array([1, 1])  # uses 6
    scaled = table("seconds", ((1 * scale, 2 * scale), (3 * scale, 4 * scale)))

    assert Budget.of(scaled, 6 * scale).is_met(columns)
    assert Budget.of(scaled, 6 * scale * (1 - 1e-13)).is_met(columns)
    assert not Budget.of(scaled, 6 * scale * (1 - 1e-11)).is_met(columns)


def test_a_cell_that_cannot_run_meets_no_limit() -> None:
    """A sum with nan is nan, and nan is within nothing."""
    budget = Budget.of(table("seconds", ((1, NAN), (3, 4))), 100.0)

    assert budget.is_met(np.array([0, 1]))
    assert not budget.is_met(np.array([1, 1]))


def test_limit_errors_are_input_errors() -> None:
    """One ``except`` catches whatever the user wrote wrong."""
    with pytest.raises(InputError):
        Limit.parse("nonsense")
    with pytest.raises(ValueError, match="is not a limit"):
        Limit.parse("nonsense")


def test_one_limit_need_not_be_in_a_list() -> None:
    """A ``Limit`` says what it is."""
    assert parse_limits(Limit("latency", 0.5)) == (Limit("latency", 0.5),)


@pytest.mark.parametrize("number", [np.int64(3), np.int32(3), np.float32(3.0), np.float64(3.0)])
def test_numbers_of_numpy_are_numbers(number: Any) -> None:
    """Sizes are often computed."""
    (limit,) = parse_limits({"weight_bytes": number})

    assert limit == Limit("weight_bytes", 3.0)
    assert type(limit.number) is float


def test_a_limit_that_is_used_up_exactly_is_met() -> None:
    """Also one of 0, which has no slack: what uses nothing is within it."""
    precisions = (Precision.parse("w8a8"),)
    nothing = CostTable("r", "bytes", ("l0",), precisions, np.array([[0.0]]))

    assert Budget.of(nothing, 0.0).is_met(np.array([0]))
    assert not Budget.of(nothing, -5e-324).is_met(np.array([0]))


def test_a_budget_has_tables_of_one_unit() -> None:
    """Whichever of two units comes first; and a table at least."""
    precisions = (Precision.parse("w8a8"),)
    steps = [
        CostTable(name, unit, ("l0",), precisions, np.array([[1.0]]))
        for name, unit in (("one", "bytes"), ("two", "seconds"))
    ]

    for first, second in (steps, steps[::-1]):
        with pytest.raises(InputError) as caught:
            Budget("peak", (first, first, second), 1.0)
        assert str(caught.value) == (
            f"peak: step {second.name} is in {second.unit}, the first step in {first.unit}: a "
            "maximum needs one unit"
        )
    with pytest.raises(InputError, match="^peak: a budget has at least one table; got none$"):
        Budget("peak", (), 1.0)
    for limit in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(LimitError, match="^peak: the limit must be finite, got "):
            Budget("peak", (steps[0],), limit)


def test_a_sum_is_called_as_its_table_is() -> None:
    """A maximum over one step is none, and one over several either."""
    precisions = (Precision.parse("w8a8"),)
    one = CostTable("one", "bytes", ("l0",), precisions, np.array([[3.0]]))
    two = CostTable("two", "bytes", ("l0",), precisions, np.array([[5.0]]))

    assert Budget.of(one, 1).sum_table is one
    assert Budget("peak", (one,), 1).sum_table is None
    assert Budget("one", (one, two), 1).sum_table is None
    assert Budget("peak", (one, two), 1).used(np.array([0])) == 5.0
    assert type(Budget.of(one, 1).limit) is float


@pytest.mark.parametrize(
    ("unit", "amounts"),
    [
        ("seconds", {"s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}),
        (
            "bytes",
            {"B": 1, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000, "KiB": 1_024,
             "MiB": 1_048_576, "GiB": 1_073_741_824},
        ),
        (
            "joules",
            {"J": 1, "mJ": 1e-3, "uJ": 1e-6, "µJ": 1e-6, "nJ": 1e-9, "pJ": 1e-12},
        ),
        ("bitops", {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}),
        ("bits", {"": 1, "bit": 1, "bits": 1}),
    ],
)  # fmt: skip
def test_every_unit_is_what_it_is_called(unit: str, amounts: dict[str, float]) -> None:
    """Prefixes of the SI and of the IEC; the message of another unit lists all of them."""
    precisions = (Precision.parse("w8a8"),)
    resource = CostTable("r", unit, ("l0",), precisions, np.array([[1.0]]))

    for written, factor in amounts.items():
        assert Limit.parse(f"r=3{written}").resolve(resource) == 3 * factor
        assert str(Limit.parse(f"r=3{written}")) == f"r=3{written}"
    listed = ", ".join(written or "(none)" for written in amounts)
    with pytest.raises(LimitError, match=rf"use one of {re.escape(listed)}$"):
        Limit.parse("r=3parsec").resolve(resource)


@pytest.mark.parametrize(
    ("text", "number"),
    [("3", 3), ("3.", 3), ("3.25", 3.25), (".5", 0.5), ("2e3", 2000), ("2E-3", 0.002),
     ("2.5e+1", 25), ("07", 7)],
)  # fmt: skip
def test_numbers_as_people_write_them(text: str, number: float) -> None:
    """Absolute, and as a factor."""
    assert Limit.parse(f"r={text}").number == number
    assert Limit.parse(f" r = {text} ").resource == "r"
    relative = Limit.parse(f"r={text}x:w8a8")
    assert (relative.number, str(relative.reference)) == (number, "w8a8")
    assert str(relative) == f"r={number:g}x:w8a8"
    for wrong in (f"-{text}", f"+{text}", f"{text}e", f"{text} 4", f"={text}"):
        with pytest.raises(LimitError, match="is not a limit|does not measure"):
            Limit.parse(f"r={wrong}").resolve(
                CostTable("r", "seconds", ("a",), (Precision.parse("w8a8"),), np.ones((1, 1)))
            )


def test_a_relative_limit_is_of_the_peak() -> None:
    """Of several steps the largest at the reference counts, with constants and pairs."""
    precisions = tuple(map(Precision.parse, ("w4a8", "w8a8")))
    one, two = (
        CostTable("one", "bytes", ("a", "b"), precisions, np.array([[1.0, 2.0], [1.0, 5.0]]), c)
        for c in (0.0, 10.0)
    )
    limit = Limit.parse("peak=0.5x:w8a8")

    assert [limit.resolve(one), limit.resolve(one, two), limit.resolve(two, one)] == [3.5, 8.5, 8.5]

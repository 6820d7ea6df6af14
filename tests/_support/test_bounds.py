"""Absurd numbers are refused in a sentence, before anything is made of that size."""

import os
import re
import sys
from math import nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import mpq
from mpq._support.bounds import LARGEST, check_memory, check_whole
from mpq._support.registry import Registry
from mpq.cli.__main__ import app
from mpq.errors import InputError
from mpq.network.synthetic import DATA_SOURCES
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RANGE_METHODS
from mpq.sensitivity import ESTIMATORS
from mpq.solvers import SOLVERS

REGISTRIES: tuple[Registry[Any], ...] = (
    SOLVERS,
    ESTIMATORS,
    DATA_SOURCES,
    RANGE_METHODS,
    mpq.BACKENDS,
)
WHOLE = [
    (registry, f"{part.name}:{option}")
    for registry in REGISTRIES
    for part in registry
    for option, default in registry.options(part).items()
    if type(default) is int
]
NUMBERS = [
    (registry, f"{part.name}:{option}")
    for registry in REGISTRIES
    for part in registry
    for option, default in registry.options(part).items()
    if type(default) is float or option == "time_limit_s"
]


@pytest.mark.parametrize("number", ["9" * 20, "9" * 5_000, "9e99", "inf"], ids=len)
@pytest.mark.parametrize(("registry", "option"), WHOLE, ids=[option for _, option in WHOLE])
def test_every_whole_option_has_a_bound(
    registry: Registry[Any],
    option: str,
    number: str,
) -> None:
    """Of every part, also of parts that are added later: one place reads them all."""
    with pytest.raises(InputError) as caught:
        registry.build(f"{option}={number}")

    assert option.partition(":")[2] in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("digits", [20, 5_000])
@pytest.mark.parametrize(("registry", "option"), WHOLE, ids=[option for _, option in WHOLE])
def test_a_part_that_is_made_in_python_has_the_bounds(
    registry: Registry[Any], option: str, digits: int, sign: int
) -> None:
    """Whoever writes ``Surrogate(num_trials=10**20)`` reads the same sentence."""
    name, _, field = option.partition(":")
    kind = type(registry.build(name))

    with pytest.raises(InputError) as caught:
        kind(**{field: sign * 10**digits})

    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(("registry", "option"), NUMBERS, ids=[option for _, option in NUMBERS])
def test_no_part_is_made_with_nan(registry: Registry[Any], option: str) -> None:
    """Whatever is compared with it is false, so that it would pass as any number."""
    name, _, field = option.partition(":")
    kind = type(registry.build(name))

    with pytest.raises(InputError, match=field):
        kind(**{field: nan})


BOUNDS = {
    "alternatives": 100_000,
    "batch_size": 1_000_000,
    "grid": 10_000_000,
    "num_bins": 1_000_000,
    "num_halvings": 100_000,
    "num_networks": 1_000_000,
    "num_probes": 1_000_000,
    "num_random": 10_000_000,
    "num_restarts": 10_000_000,
    "num_shrinks": 100_000,
    "num_trials": 10_000_000,
    "points": 100_000,
    "population_size": 1_000_000,
    "refine": 10_000,
    "rounds": 1_000_000,
    "seed": 9_223_372_036_854_775_807,
}


@pytest.mark.parametrize("name", sorted({*LARGEST, *BOUNDS, "of another package"}))
def test_the_bound_itself_is_let_in(name: str) -> None:
    """What a script asks for today is let in tomorrow, and one more than the bound never."""
    largest = BOUNDS.get(name, 1_000_000_000)

    assert check_whole(name, largest) == largest
    with pytest.raises(InputError, match=f"^{name} is at most {largest}; got {largest + 1}$"):
        check_whole(name, largest + 1)


@pytest.mark.parametrize(
    ("option", "largest"),
    [
        (option, BOUNDS[option.partition(":")[2]])
        for _, option in WHOLE
        if option.partition(":")[2] in BOUNDS
    ],
)
def test_the_bound_of_an_option(option: str, largest: int) -> None:
    """Every part that has the option keeps its bound, by text and in Python alike."""
    registry = next(each for each, known in WHOLE if known == option)
    name, _, field = option.partition(":")
    refusal = f":{field} is at most {largest}; got {largest + 1}$"

    registry.build(f"{option}={largest}")
    with pytest.raises(InputError, match=refusal):
        registry.build(f"{option}={largest + 1}")
    with pytest.raises(InputError, match=refusal):
        type(registry.build(name))(**{field: largest + 1})


@pytest.mark.parametrize(
    ("name", "least"), [("seed", 0), ("rounds", -1_000_000_000), ("other", -1_000_000_000)]
)
def test_the_least_itself_is_let_in(name: str, least: int) -> None:
    """Whether an option may be below 0 is for the option to say, if it is no seed."""
    assert check_whole(name, least) == least
    with pytest.raises(InputError, match=f"^shown is at least 0; got {least - 1}$"):
        check_whole(name, least - 1, "shown")


@pytest.mark.skipif(not hasattr(sys, "set_int_max_str_digits"), reason="spells any number")
def test_a_number_is_refused_where_python_spells_few_digits() -> None:
    """``PYTHONINTMAXSTRDIGITS=640`` is no reason for a traceback."""
    most = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        with pytest.raises(InputError, match="got a number of thousands of digits"):
            check_whole("grid", 10**1_000)
    finally:
        sys.set_int_max_str_digits(most)


@given(value=st.integers(max_value=-1))
def test_a_seed_is_not_below_0(value: int) -> None:
    """numpy takes none."""
    with pytest.raises(InputError, match="seed is at least 0"):
        check_whole("seed", value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("noise:shape=1x9999x9999,num_examples=900000000", "examples of 1x9999x9999 take 3352"),
        ("batch-norm:shape=9999x9999x9999", "64 examples of 9999x9999x9999 take 238"),
        ("random-tokens:length=900000000,num_examples=900000000", "texts of 900000000 tokens"),
        ("self-generated:length=900000000,num_examples=900000000", "texts of 900000000 tokens"),
        ("noise:shape=" + "9" * 5_000, "write a shape such as 3x32x32"),
        ("noise:shape=1x9999x9999,num_examples=9e99", "num_examples takes a value of type int"),
    ],
    ids=lambda text: text[:20],
)
def test_examples_that_no_memory_holds(source: str, words: str) -> None:
    """The message says how much they would take and how much there is."""
    with pytest.raises(InputError, match=words) as caught:
        DATA_SOURCES.build(source)

    assert len(str(caught.value)) < 250


@given(num_bytes=st.integers(min_value=2**60, max_value=10**5_000))
def test_memory_of_any_size_is_a_sentence(num_bytes: int) -> None:
    """Also a number that Python refuses to spell."""
    with pytest.raises(InputError, match="it take .* GiB of memory; this machine has"):
        check_memory("it", num_bytes)


@pytest.mark.skipif(sys.platform == "win32", reason="its memory is not asked for")
def test_the_memory_of_this_machine_is_the_bound() -> None:
    """All of it is let in, and a byte more is not; GiB are rounded up."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shown = -(-there // 1024**3)
    assert 1 < shown < 10**6  # GiB indeed

    check_memory("it", there)
    with pytest.raises(InputError, match=f"^it take {shown} GiB .* this machine has {shown} GiB:"):
        check_memory("it", there + 1)


@pytest.mark.parametrize("names", [{}, {"SC_PAGE_SIZE": 1}, {"SC_PHYS_PAGES": 1}])
def test_where_the_system_does_not_tell_a_tebibyte_is_the_bound(
    names: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows has no such names; what is absurd is refused there as well."""
    monkeypatch.setattr(os, "sysconf_names", names)

    check_memory("it", 1024**4)
    with pytest.raises(InputError, match="it take 1025 GiB of memory; this machine has 1024 GiB"):
        check_memory("it", 1024**4 + 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w4g99999999999999a8", "a group has at most 2147483648 weights; got 99999999999999"),
        ("w4g" + "9" * 5_000, r"w4g9+\.\.\.9+' is not a precision"),
        ("w4g0a8", "a group has at least 1 weight"),
    ],
    ids=["large", "digits", "none"],
)
def test_absurd_groups(text: str, message: str) -> None:
    """No channel has as many weights."""
    with pytest.raises(InputError, match=message) as caught:
        Precision.parse(text)

    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("option", ["--seed", "--batch-size", "--tokens"])
def test_absurd_numbers_on_the_command_line(option: str) -> None:
    """One sentence, exit code 2, and no work."""
    phase = ["--phase", "prefill"] if option == "--tokens" else []

    ran = CliRunner().invoke(app, ["search", option, "9" * 20, *phase, "--output", "never-made"])

    assert ran.exit_code == 2
    assert re.search(rf"{option[2:].replace('-', '_')}( \({option}\))? is at most", ran.stderr)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("search", "--refine"),
        ("search", "--alternatives"),
        ("search", "--differing"),
        ("search", "--points"),
        ("frontier", "--points"),
        ("compare", "--random"),
        ("compare", "--refine"),
        ("profile", "--rounds"),
        ("profile", "--num-networks"),
    ],
)
@pytest.mark.parametrize("number", ["9" * 20, "9" * 4_000], ids=len)
def test_absurd_repetitions_on_the_command_line(command: str, option: str, number: str) -> None:
    """Refused before the first of them."""
    ran = CliRunner().invoke(app, [command, option, number, "--output", "never-made"])

    assert ran.exit_code == 2, ran.output
    assert re.search(rf"{option[2:].replace('-', '_')}( \({option}\))? is at most", ran.stderr)
    assert len(ran.stderr) < 400

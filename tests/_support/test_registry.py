"""Parts and values of other packages, by entry points: found, checked, refused."""

import re
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest

import mpq
from mpq._support.bounds import Bounded
from mpq._support.registry import Registry, ValueRegistry
from mpq.backends import BACKENDS
from mpq.errors import InputError, UnknownNameError
from mpq.hardware_profiles.profiling.runtimes import RUNTIMES
from mpq.network.metrics import METRICS
from mpq.network.named_outputs import _OF_TERMS
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.range_method import RangeMethod
from mpq.quantization.ranges import RANGE_METHODS, MinMax
from mpq.report.sections import SECTIONS

MODULE = """
from dataclasses import dataclass
from typing import ClassVar
from mpq.quantization.number_format import NumberFormat

@dataclass(frozen=True)
class Part:
    name: ClassVar[str] = "part"
    summary: ClassVar[str] = "a part"
    size: int = 3

class Bare:
    name = "bare"

VALUE = NumberFormat("value", 5)
"""
OWN = (NumberFormat("own", 4),)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, with a package in it."""
    (tmp_path / "some_parts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_parts", raising=False)
    return tmp_path


def declare(site: Path, *lines: str) -> None:
    """Installs the package with entry points of the group ``mpq.tests``."""
    about = site / "some_parts-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-parts\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("\n".join(("[mpq.tests]", *lines)) + "\n")


def parts() -> Registry[RangeMethod]:
    """A registry of parts, which looks at the path anew."""
    return Registry("toy", (MinMax,), group="mpq.tests")


def values() -> ValueRegistry[NumberFormat]:
    """A registry of values, which looks at the path anew."""
    return ValueRegistry("toy", OWN, group="mpq.tests", reserved=("4",))


def test_a_part_is_built_with_options(site: Path) -> None:
    """By the name of its entry point, after mpq's own."""
    declare(site, "part = some_parts:Part")

    registry = parts()

    assert registry.names() == ("minmax", "part")
    assert repr(registry.build("part:size=5")) == "Part(size=5)"


def test_a_value_is_loaded_when_it_is_asked_for(site: Path) -> None:
    """Names are known before; afterwards it is one value."""
    declare(site, "value = some_parts:VALUE")
    registry = values()

    assert list(registry) == ["own", "value"]
    assert len(registry) == 2
    assert "some_parts" not in sys.modules
    assert registry["value"] is registry["value"]
    assert registry["value"] == NumberFormat("value", 5)


def test_a_name_that_nobody_has() -> None:
    """A registry of parts says which there are; one of values is a mapping like any other."""
    with pytest.raises(UnknownNameError, match="no toy 'part' .there are: minmax"):
        parts().get("part")
    assert values().get("value") is None
    assert "value" not in values()
    with pytest.raises(KeyError, match="value"):
        values()["value"]


@pytest.mark.parametrize("name", ["own", "4"])
def test_a_name_of_ours_is_refused(site: Path, name: str) -> None:
    """Otherwise it would hang on the order of installing which one is meant."""
    declare(site, f"{name} = some_parts:VALUE")

    with pytest.raises(InputError, match=f"the package some-parts adds a toy '{name}', but mpq"):
        list(values())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gone = some_parts:Gone", "the toy 'gone' of the package some-parts cannot be imported"),
        ("gone = no_such_module:Part", "'gone' of the package some-parts cannot be imported"),
        ("bare = some_parts:Bare", "some_parts:Bare is no dataclass; a toy is one"),
        ("other = some_parts:Part", "needs a class variable name = 'other'"),
        ("zother = some_parts:Part", "needs a class variable name = 'zother'"),
    ],
)
def test_a_part_that_cannot_be_used(site: Path, line: str, message: str) -> None:
    """Says whose it is and what is wrong."""
    declare(site, line)

    with pytest.raises(InputError, match=message):
        parts().get(line.split()[0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gone = some_parts:Gone", "the toy 'gone' of the package some-parts cannot be imported"),
        ("part = some_parts:Part", "some_parts:Part is of type type; a toy is a NumberFormat"),
        ("other = some_parts:VALUE", "is called 'value' and its entry point 'other'"),
        ("zother = some_parts:VALUE", "is called 'value' and its entry point 'zother'"),
    ],
)
def test_a_value_that_cannot_be_used(site: Path, line: str, message: str) -> None:
    """Says what was expected and what came."""
    declare(site, line)

    with pytest.raises(InputError, match=message):
        values()[line.split()[0]]


def test_our_own_formats_come_first() -> None:
    """The order of the table is the order of the list."""
    assert list(NUMBER_FORMATS)[:14] == [f"int{bits}" for bits in range(2, 16)]


def test_a_module_that_fails_is_an_error_of_its_package(site: Path) -> None:
    """Whatever it raises while it runs."""
    (site / "some_parts.py").write_text("1 / 0\n")
    declare(site, "part = some_parts:Part")

    with pytest.raises(InputError, match=r"toy 'part' of the package some-parts .*ZeroDivision"):
        parts().get("part")


@dataclass(frozen=True)
class Toy(Bounded):
    """A part with an option of every kind."""

    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "for these tests"

    is_quick: bool = False
    is_slow: bool = True
    size: int = 3
    share: float = 0.5
    word: str = "none"
    limit: float | None = None
    begin: Any = ()  # no text can say it

    def __post_init__(self) -> None:
        if self.size == 13:
            raise InputError("not 13")


TOYS: Registry[Any] = Registry("toy", (Toy,), group="mpq.no-such-group")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("toy", {}),
        ("toy:", {}),
        (" toy : size = 5 , ", {"size": 5}),
        ("toy:is_quick=true,is_slow=false", {"is_quick": True, "is_slow": False}),
        ("toy:is_quick=False,is_slow=TRUE", {}),
        ("toy:share=0.25,limit=7,word=a=b", {"share": 0.25, "limit": 7.0, "word": "a=b"}),
        ("toy:share=1", {"share": 1.0}),
    ],
)
def test_options_are_read_by_their_type(text: str, options: dict[str, Any]) -> None:
    """And what is built is spelled so that it is built again."""
    found = TOYS.build(text)

    assert found == Toy(**options)
    assert TOYS.build(TOYS.spell(found)) == found


def test_only_what_is_not_default_is_spelled() -> None:
    """In the order of the fields; what no text can say is left out."""
    assert TOYS.spell(Toy()) == "toy"
    made = Toy(is_quick=True, size=5, limit=1.5, begin=(1,))
    assert TOYS.spell(made) == "toy:is_quick=true,size=5,limit=1.5"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("is_quick=yes", "toy:is_quick is true or false; got 'yes'"),
        ("size=2.5", "toy:size takes a value of type int; got '2.5'"),
        ("share=much", "toy:share takes a value of type float; got 'much'"),
        ("share=nan", "toy:share is a number; got nan"),
        ("limit=nan", "toy:limit is a number; got nan"),
        ("size=1000000001", "toy:size is at most 1000000000; got 1000000001"),
        ("size=13", "not 13"),
    ],
)
def test_a_value_of_another_type_is_refused(option: str, message: str) -> None:
    """With the option as it is written."""
    with pytest.raises(InputError) as caught:
        TOYS.build(f"toy:{option}")

    assert str(caught.value) == message


def test_a_seed_is_given_to_parts_that_have_one() -> None:
    """One in the text wins; a part without the option is left alone."""

    @dataclass(frozen=True)
    class Drawing(Bounded):
        name: ClassVar[str] = "drawing"
        summary: ClassVar[str] = "with a seed"
        seed: int = 0

    registry: Registry[Any] = Registry("toy", (Drawing, Toy), group="mpq.no-such-group")

    assert registry.build("drawing").seed == 0
    assert registry.build("drawing", seed=5).seed == 5
    assert registry.build("drawing:seed=7", seed=5).seed == 7
    assert registry.build("toy", seed=5) == Toy()


def test_bounds_do_not_stop_other_base_classes() -> None:
    """A class may have a second one that wants to know of its children."""
    told: list[Any] = []

    class Telling:
        def __init_subclass__(cls, tag: int, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            told.append(tag)

    class Both(Bounded, Telling, tag=7):
        pass

    assert told == [7]
    assert issubclass(Both, Bounded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": float("nan")}, "toy:share is a number; got nan"),
        ({"limit": float("nan")}, "toy:limit is a number; got nan"),
        ({"size": 10**9 + 1}, "toy:size is at most 1000000000; got 1000000001"),
        ({"size": 13}, "not 13"),
    ],
)
def test_a_part_made_in_python_is_looked_at(options: dict[str, Any], message: str) -> None:
    """By its own rule, and by the bounds of its options; a truth value is no number."""
    with pytest.raises(InputError) as caught:
        Toy(**options)

    assert str(caught.value) == message


def test_a_name_is_registered_once() -> None:
    """Of two parts of one name the first would be forgotten."""
    from mpq.solvers.baselines.greedy import Greedy

    with pytest.raises(InputError, match="solver 'greedy' is registered 2 times"):
        Registry("solver", (Greedy, Greedy), "mpq.none")


REGISTRIES = (
    *(mpq.ESTIMATORS, mpq.SOLVERS, mpq.ROUNDINGS, mpq.TRANSFORMS, mpq.TUNINGS, mpq.DATA_SOURCES),
    *(RANGE_METHODS, METRICS, _OF_TERMS, BACKENDS, SECTIONS, RUNTIMES),
)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda x: x.kind)
def test_an_option_without_a_value_is_refused(registry: Registry[Any]) -> None:
    """Of every part; where the default is an empty text, it would be taken without a word."""
    texts = [f"{part.name}:{option}" for part in registry for option in registry.options(part)]

    for text, end in product(texts, ("=", " = ", "")):
        with pytest.raises(InputError, match=re.escape(f"{text} has no value")):
            registry.build(f"{text}{end}")


def test_every_registry_is_there() -> None:
    """Of parts with options; a new one is an entry of the test above."""
    texts = [file.read_text(encoding="utf-8") for file in Path(mpq.__file__).parent.rglob("*.py")]

    assert sum(text.count("= Registry(") for text in texts) == len(REGISTRIES)

"""Checksums of objects of anybody's class: what changes an answer changes them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch

from mpq._support.told import code_told, told
from mpq.quantization.fingerprint import checksum


@dataclass(frozen=True, eq=False)
class Holder:
    """A field, and what is computed from it once it is asked for."""

    value: Any

    @cached_property
    def twice(self) -> Any:
        return (self.value, self.value)


class Silent:
    """Nothing of it is in its ``repr``."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Silent()"


def long(fourth: float) -> torch.Tensor:
    found = torch.ones(3000)
    found[3] = fourth
    return found


PAIRS: dict[str, tuple[Any, Any]] = {
    "a number": (1, 2),
    "a long tensor": (long(1), long(2)),
    "a tensor's dtype": (torch.ones(2), torch.ones(2).double()),
    "what is inside": (Silent(1), Silent(2)),
    "a function": (lambda x: x + 1, lambda x: x + 2),
}


@pytest.mark.parametrize("holder", [Holder, Silent])
@pytest.mark.parametrize("pair", PAIRS)
def test_another_state_is_another_object(pair: str, holder: Any) -> None:
    """And the same state is the same, in another object."""
    one, other = PAIRS[pair]

    assert told(holder(one), checksum) != told(holder(other), checksum)
    assert told(holder(one), checksum) == told(holder(one), checksum)


def test_what_was_asked_for_is_no_state() -> None:
    """A cached property is there after the first search and not before."""
    asked = Holder(1)
    before = told(asked, checksum)

    assert asked.twice == (1, 1)
    assert told(asked, checksum) == before


def test_what_cannot_be_read_is_never_the_same() -> None:
    """An open file may have anything behind it."""
    with Path(__file__).open(encoding="utf-8") as file:
        assert told(Holder(file), checksum) != told(Holder(file), checksum)


def typed(factor: int) -> type:
    """A class as a shell has it: without a file, calling a function beside it."""
    source = (
        f"def helped(x):\n return {factor} * x\nclass Kind:\n def f(self, x):\n  return helped(x)"
    )
    names: dict[str, Any] = {"__name__": "typed_by_hand"}
    exec(source, names)
    assert isinstance(names["Kind"].f, FunctionType)
    return names["Kind"]  # type: ignore[no-any-return]


def test_code_without_a_file_is_told_with_what_it_calls() -> None:
    """The class is the same text; a function that it calls is not."""
    assert code_told(typed(2)) == code_told(typed(2))
    assert code_told(typed(2)) != code_told(typed(3))

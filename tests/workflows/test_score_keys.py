"""What a score said is found again by the same function, and never taken for another's."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mpq.workflows.score import Score

Function = Callable[[Any], float]


def closed(factor: float) -> Function:
    """Closes over a number."""

    def judge(_: nn.Module) -> float:
        return factor

    return judge


def by_default(factor: float) -> Function:
    """With a default."""

    def judge(_: nn.Module, times: float = factor) -> float:
        return times

    return judge


def by_keyword(factor: float) -> Function:
    """With a default of a keyword."""

    def judge(_: nn.Module, *, times: float = factor) -> float:
        return times

    return judge


def plain(_: nn.Module, times: float = 1.0) -> float:
    """Of a module."""
    return times


def scaled(function: Function, factor: float) -> Function:
    """As decorators do it."""

    @functools.wraps(function)
    def judge(network: nn.Module) -> float:
        return factor * function(network)

    return judge


@dataclass
class Held:
    """An object that is called, or has a method."""

    factor: float

    def __call__(self, _: nn.Module) -> float:
        return self.factor

    def method(self, _: nn.Module) -> float:
        """The same."""
        return self.factor


class Tensors:
    """Holds a long tensor, of which a repr shows the ends."""

    def __init__(self, factor: float) -> None:
        self.examples = torch.zeros(5000)
        self.examples[2500] = factor

    def judge(self, _: nn.Module) -> float:
        """Of all of them."""
        return float(self.examples.sum())


MADE: dict[str, Callable[[float], Function]] = {
    "closure": closed,
    "default": by_default,
    "keyword": by_keyword,
    "partial": lambda x: functools.partial(plain, times=x),
    "decorated": lambda x: scaled(plain, x),
    "decorated closure": lambda x: scaled(closed(x), 1.0),
    "partial of a closure": lambda x: functools.partial(closed(x)),
    "object": Held,
    "method": lambda x: Held(x).method,
    "method with a tensor": lambda x: Tensors(x).judge,
    "lambda": lambda x: eval(f"lambda _: {x}"),
}


def key(function: Function) -> str:
    """Under one name for all."""
    return Score.of(function, higher_is_better=True, name="judge").key


@pytest.mark.parametrize("kind", MADE)
def test_what_a_function_was_made_with_tells_it_apart(kind: str) -> None:
    """Another number is another score; the same one is the same, though it was made again."""
    make = MADE[kind]
    assert make(2.0)(None) != make(3.0)(None)
    assert key(make(2.0)) != key(make(3.0))
    assert key(make(2.0)) == key(make(2.0))


def test_functions_of_other_texts_are_others() -> None:
    """Also where only what they call differs."""
    assert len({key(f) for f in (plain, closed(1.0), scaled(plain, 1.0), Held(1.0))}) == 4


def test_what_cannot_be_read_is_never_found(tmp_path: Path) -> None:
    """An open file may say anything."""
    with (tmp_path / "file").open("w") as file:
        judge: Any = functools.partial(print, file=file)
        assert key(judge) != key(judge)

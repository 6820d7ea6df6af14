"""Formulas by chance: drawn, mutated and crossed, without those that say nothing new."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from mpq.sensitivity.formula import AGGREGATES, BINARY, ELEMENTWISE, INPUTS, Formula

LARGEST: Final = 15
"""Inputs and operations of a formula that is tried; larger ones fit a benchmark by chance."""
_DEPTH = 4
_OF_SIZES = ("square", "sqrt", "log", "norm")
"""Operations that look at absolute values alone."""
_POSITIVE = ("abs", "square", "sqrt", "log", "relu", "sigmoid", "norm", "std")
"""Operations whose results are not negative."""
_IDEMPOTENT = ("abs", "relu", "normalize")


def drawn(rng: np.random.Generator, is_number: bool = True, depth: int = _DEPTH) -> Formula:
    """A formula that is one number, or one for every weight."""
    draw = rng.random()
    if is_number:
        if depth > 2 and draw < 0.25:
            return _binary(rng, drawn(rng, True, depth - 1), drawn(rng, True, depth - 1))
        return Formula(_one(rng, tuple(AGGREGATES)), (drawn(rng, False, depth - 1),))
    if depth <= 0 or draw < 0.25:
        return Formula(_one(rng, tuple(INPUTS)))
    if draw < 0.6:
        return Formula(_one(rng, tuple(ELEMENTWISE)), (drawn(rng, False, depth - 1),))
    return _binary(rng, drawn(rng, False, depth - 1), drawn(rng, rng.random() < 0.1, depth - 1))


def mutated(formula: Formula, rng: np.random.Generator) -> Formula:
    """The formula with one part drawn anew, another operation, or one operation more or less."""
    place = int(rng.integers(len(list(formula.nodes()))))
    node = list(formula.nodes())[place]
    match int(rng.integers(4)):
        case 0 if node.parts:
            kinds = (AGGREGATES, ELEMENTWISE, BINARY)
            alike = next(tuple(kind) for kind in kinds if node.name in kind)
            changed = replace(node, name=_one(rng, alike))
        case 1 if node.parts:
            fitting = [part for part in node.parts if part.is_number == node.is_number]
            changed = fitting[int(rng.integers(len(fitting)))] if fitting else node
        case 2:
            changed = Formula(_one(rng, tuple(ELEMENTWISE)), (node,))
        case _:
            changed = drawn(rng, node.is_number, 2)
    return _with(formula, place, changed)


def crossed(first: Formula, second: Formula, rng: np.random.Generator) -> Formula:
    """The first with a part of the second in the place of one like it."""
    places = [(i, node.is_number) for i, node in enumerate(first.nodes())]
    place, is_number = places[int(rng.integers(len(places)))]
    fitting = [node for node in second.nodes() if node.is_number == is_number]
    return _with(first, place, fitting[int(rng.integers(len(fitting)))])


def why_incompatible(formula: Formula) -> str | None:
    """Why operations do not go together, without a look at any network; ``None``: they do."""
    if len(list(formula.nodes())) > LARGEST:
        return "too large"
    if not formula.is_number:
        return "no number"
    return next(filter(None, map(_needless, formula.nodes())), None)


def _needless(node: Formula) -> str | None:
    if len(node.parts) == 2:
        is_same = node.parts[0] == node.parts[1]
        return "cancels" if is_same and node.name in "-/" else None
    for part in node.parts:
        if part.is_number and (node.name in AGGREGATES or node.name == "normalize"):
            return "of one number"
        if part.name == node.name and node.name in _IDEMPOTENT:
            return "twice"
        if part.name == "abs" and node.name in _OF_SIZES:
            return "needless sign"
        if part.name in _POSITIVE and node.name in ("abs", "relu"):
            return "needless sign"
        if {part.name, node.name} == {"sqrt", "square"}:
            return "undone"
    return None


def _with(formula: Formula, place: int, part: Formula) -> Formula:
    """The formula with another part at a place in the order of ``nodes``."""
    if place == 0:
        return part
    place -= 1
    parts = list(formula.parts)
    for number, old in enumerate(parts):
        size = len(list(old.nodes()))
        if place < size:
            parts[number] = _with(old, place, part)
            break
        place -= size
    return replace(formula, parts=tuple(parts))


def _binary(rng: np.random.Generator, first: Formula, second: Formula) -> Formula:
    return Formula(_one(rng, tuple(BINARY)), (first, second))


def _one(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]

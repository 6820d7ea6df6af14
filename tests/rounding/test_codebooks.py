"""Roundings with a codebook for every row: what they share with other formats, and the weights."""

from itertools import combinations

import numpy as np
import pytest
import torch

from mpq.quantization.codes import Codes
from mpq.quantization.kmeans import kmeans_levels
from mpq.rounding import ROUNDINGS
from tests.rounding.cases import errors, formats_of, grids_of, layer, rounded

TEXTS = [
    *("quantease", "nearest", "gptq", "coordinate-descent", "adaround:iterations=30", "auto"),
    "weighted-nearest",
]
NAMES = ["cb2", "cb3", "cb4"]


def test_all_roundings_are_tried() -> None:
    assert {text.partition(":")[0] for text in TEXTS} == set(ROUNDINGS.names())


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_kept_is_what_was_found(text: str, groups: int) -> None:
    """Every number is a level of its row; a file gives them back."""
    rows, moment = layer(6, 19, groups)

    for codes in rounded(ROUNDINGS.build(text), rows, moment, formats_of(*NAMES)):
        assert codes.levels is not None
        assert codes.levels.shape == (6, 2**codes.tensor_format.number.bits)
        for row in range(6):
            assert np.isin(codes.numbers()[row], codes.levels[row]).all()
        again = Codes.of_stored(codes.stored(rows), codes.tensor_format)
        assert torch.equal(again.numbers(), codes.numbers())


@pytest.mark.parametrize("name", NAMES)
def test_levels_count_what_inputs_count(name: str) -> None:
    """By the diagonal of the second moment, of each group of rows its own, damped."""
    rows, moment = layer(4, 19, 2)
    bits = int(name[-1])

    (found,) = rounded(ROUNDINGS.build("gptq"), rows, moment, formats_of(name))

    diagonal = moment.diagonal(dim1=-2, dim2=-1).double().numpy()
    damped = diagonal + 0.01 * diagonal.mean(axis=1, keepdims=True)
    expected = kmeans_levels(rows.double().numpy(), damped.repeat(2, axis=0), 2**bits)
    assert found.levels is not None
    np.testing.assert_allclose(found.levels.numpy(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_coordinate_descent_is_no_worse_than_gptq_and_than_each_weight_alone(name: str) -> None:
    """At the same levels, row by row, by the same quadratic form."""
    rows, moment = layer(8, 24, seed=3)
    formats = formats_of(name)

    best, gptq = (
        rounded(ROUNDINGS.build(text), rows, moment, formats)[0]
        for text in ("coordinate-descent", "gptq")
    )

    assert best.levels is not None
    assert gptq.levels is not None
    assert torch.equal(best.levels, gptq.levels)
    distance = (rows[:, :, None] - best.levels[:, None]).abs()
    alone = best.levels.gather(1, distance.argmin(dim=2))
    own = errors(rows, best.numbers(), moment)
    assert (own <= errors(rows, gptq.numbers(), moment) * (1 + 1e-4)).all()
    assert (own <= errors(rows, alone, moment) * (1 + 1e-4)).all()
    assert own.sum() < errors(rows, alone, moment).sum()


@pytest.mark.parametrize("text", TEXTS)
def test_inputs_that_are_always_0_do_no_harm(text: str) -> None:
    """Nor where all are."""
    rows, moment = layer(3, 12)
    moment[:, 4] = moment[:, :, 4] = 0.0

    for some in (moment, torch.zeros_like(moment)):
        (found,) = rounded(ROUNDINGS.build(text), rows, some, formats_of("cb3"))
        assert bool(found.numbers().isfinite().all())


@pytest.mark.parametrize("text", TEXTS)
def test_rows_in_another_order_become_the_same(text: str) -> None:
    rows, moment = layer(5, 12)
    order = torch.tensor([3, 0, 4, 1, 2])

    (found,) = rounded(ROUNDINGS.build(text), rows, moment, formats_of("cb3"))
    (other,) = rounded(ROUNDINGS.build(text), rows[order], moment, formats_of("cb3"))

    assert torch.equal(other.numbers(), found.numbers()[order])


def test_to_nearest_all_weights_count_the_same() -> None:
    """As where nothing is known of inputs."""
    rows, moment = layer(4, 12)
    formats = formats_of("cb3")

    (found,) = rounded(ROUNDINGS.build("nearest"), rows, moment, formats)

    expected = Codes.of(rows, formats[0], grids_of(rows, formats)[0])
    assert torch.equal(found.numbers(), expected.numbers())


def test_weighted_levels_and_the_nearest_of_each() -> None:
    """Found by a search of every partition of the sorted numbers; no number looks at another."""
    rows, moment = layer(3, 7)
    (found,) = rounded(ROUNDINGS.build("weighted-nearest"), rows, moment, formats_of("cb2"))

    counted = moment[0].diagonal().double().numpy()
    counted = counted + 0.01 * counted.mean()
    for row, numbers in zip(rows.double().numpy(), found.numbers().numpy(), strict=True):
        order, best = np.argsort(row), np.inf
        for borders in combinations(range(1, 7), 3):
            parts = np.split(order, borders)
            levels = np.array([np.average(row[p], weights=counted[p]) for p in parts])
            nearest = levels[np.abs(row[:, None] - levels).argmin(axis=1)]
            best = min(best, float((counted * (row - nearest) ** 2).sum()))
        assert float((counted * (row - numbers) ** 2).sum()) == pytest.approx(best, rel=1e-3)


def test_other_formats_are_those_to_nearest() -> None:
    """Whatever inputs count."""
    rows, moment = layer(4, 12)
    formats = formats_of("w3", "w4zg4", "nf4")

    found, nearest = (
        rounded(ROUNDINGS.build(text), rows, moment, formats)
        for text in ("weighted-nearest", "nearest")
    )

    for ours, other in zip(found, nearest, strict=True):
        assert torch.equal(ours.numbers(), other.numbers())

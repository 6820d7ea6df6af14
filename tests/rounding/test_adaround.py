"""AdaRound: the neighbours of a weight, and which of them is taken, against trying all."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.grid import round_float
from mpq.rounding import AdaRound, Gptq
from mpq.rounding.adaround import float_levels, neighbours
from tests.rounding.layers import (
    Array,
    Layer,
    damped,
    errors_of,
    layer,
    layers,
    nearest_codes,
    rounded,
    stack_of,
)

SPELLINGS = ["w2", "w3", "w8", "w3z", "w4t", "w4g5", "w3zg8", "wfp4", "wfp8", "wmxfp4", "wnvfp4"]
FLOATS = [number.name for number in NUMBER_FORMATS.own if number.is_float and number.needs_scale]


@pytest.mark.parametrize("name", FLOATS)
def test_levels_are_all_numbers_of_the_format(name: str) -> None:
    """Those that rounding leaves alone, among far more numbers than there are codes."""
    number = NUMBER_FORMATS[name]

    found = float_levels(number)

    # Every number of a format has its exponent and mantissa bits, and one bit more tells others.
    smallest = 2.0 ** (number.min_exponent - number.mantissa_bits - 1)
    mantissas = torch.arange(2 ** (number.mantissa_bits + 2)) * smallest
    finer = mantissas[:, None] * 2.0 ** torch.arange(2**number.exponent_bits)
    tried = finer.flatten().unique()
    tried = tried[tried <= 1.5 * number.max_value]
    positive = tried[round_float(tried, number) == tried]
    assert torch.equal(found, torch.cat([-positive.flip(0)[:-1], positive]))
    assert found[-1] == number.max_value


@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(max_examples=15)
@given(of=layers(max_inputs=20))
def test_one_of_both_neighbours_is_the_nearest(spelling: str, of: Layer) -> None:
    """They enclose the weight, or are one and the same end of the grid."""
    stack = stack_of(of, spelling)

    down, up = neighbours(stack)

    below, above = stack.all_numbers(down), stack.all_numbers(up)
    slack = 1e-5 * stack.target.abs() + 1e-30
    is_end = down == up
    assert bool(
        (is_end | ((below <= stack.target + slack) & (stack.target <= above + slack))).all()
    )
    gaps = [(numbers - stack.target).abs() for numbers in (below, above)]
    nearest = (stack.all_numbers(stack.nearest()) - stack.target).abs()
    assert bool((torch.minimum(*gaps) <= nearest + slack).all())


@pytest.mark.parametrize("spelling", ["w3", "w3z", "wfp4"])
def test_nothing_lies_between_the_neighbours(spelling: str) -> None:
    """Of weights on all of the grid and beyond it."""
    stack = stack_of(layer(20, 30), spelling)
    units = torch.linspace(-9.0, 9.0, 600).reshape(30, 20)
    stack = stack.with_scale(torch.ones_like(stack.scale))
    stack.target.copy_(units)

    down, up = neighbours(stack)

    point = stack.zero_point[stack.group_of]
    levels = {
        "w3": torch.arange(-4.0, 4.0),
        "w3z": torch.arange(0.0, 8.0),
        "wfp4": float_levels(NUMBER_FORMATS["fp4_e2m1"]),
    }[spelling]
    numbers = levels[:, None, None] - point
    expected_down = torch.where(numbers <= units, levels[:, None, None], levels[0]).amax(dim=0)
    expected_up = torch.where(numbers > units, levels[:, None, None], levels[-1]).amin(dim=0)
    assert torch.equal(down, expected_down)
    assert torch.equal(up, expected_up)


@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(max_examples=15)
@given(of=layers())
def test_codes_are_neighbours_and_no_row_is_worse_than_to_nearest(spelling: str, of: Layer) -> None:
    stack = stack_of(of, spelling)
    down, up = (codes.t() for codes in neighbours(stack))

    found = rounded(AdaRound(num_steps=30), of, [spelling])[0]

    codes, nearest = found.codes[:, : found.num_inputs], stack.nearest().t()
    assert bool(((codes == down) | (codes == up) | (codes == nearest)).all())
    errors, others = (errors_of(of, c.numbers()) for c in (found, nearest_codes(of, spelling)))
    assert (errors <= others * (1 + 1e-4) + 1e-9 * others.max()).all()


def optimum(of: Layer, spelling: str) -> Array:
    """``[O]`` the smallest error over all ups and downs."""
    stack, form = stack_of(of, spelling), damped(of.moment[0])
    below, above = (
        (stack.all_numbers(codes) - stack.target).double().numpy() for codes in neighbours(stack)
    )
    ups = np.array(list(product((False, True), repeat=stack.num_inputs)))
    found = []
    for down, up in zip(below.T, above.T, strict=True):
        errors = np.where(ups, up, down)
        found.append(np.einsum("nk,kl,nl->n", errors, form, errors).min())
    return np.array(found)


@pytest.mark.parametrize("spelling", ["w2", "w3z", "w4", "wfp4", "w3g5"])
def test_rows_come_near_to_the_best_ups_and_downs(spelling: str) -> None:
    """Of 100 rows with eight inputs, by trying all 256 of each."""
    of = layer(100, 8, seed=5)
    best = optimum(of, spelling)

    errors = errors_of(of, rounded(AdaRound(), of, [spelling])[0].numbers())

    ratios = errors / best
    assert ratios.min() > 1 - 1e-4
    assert (ratios < 1 + 1e-4).mean() > 0.4
    nearest = errors_of(of, nearest_codes(of, spelling).numbers())
    # Inputs are so much alike that their relaxation decides little: a third may be missed of what
    # can be gained over rounding to nearest.
    assert (errors - best).sum() < 0.35 * (nearest - best).sum()


@given(of=layers(max_inputs=7), spelling=st.sampled_from(["w2", "w4", "w3z"]))
def test_it_lies_between_the_best_and_rounding_to_nearest(of: Layer, spelling: str) -> None:
    best = optimum(of, spelling)

    errors = errors_of(of, rounded(AdaRound(num_steps=100), of, [spelling])[0].numbers())

    assert (best <= errors * (1 + 1e-4) + 1e-9 * errors.max()).all()
    assert (errors <= errors_of(of, nearest_codes(of, spelling).numbers()) * (1 + 1e-4)).all()


@pytest.mark.parametrize("spelling", ["w2", "w4", "w4g8"])
def test_many_inputs_lose_less_than_by_gptq(spelling: str) -> None:
    """It looks at all of a row together; where a few directions are not nearly all there is."""
    random = torch.Generator().manual_seed(0)
    directions = torch.randn(64, 64, generator=random) * torch.arange(1, 65) ** -0.5
    of = Layer(torch.randn(16, 64, generator=random), (directions @ directions.t())[None])

    errors = errors_of(of, rounded(AdaRound(), of, [spelling])[0].numbers())

    assert errors.sum() < errors_of(of, rounded(Gptq(), of, [spelling])[0].numbers()).sum()


def test_inputs_that_share_nothing_are_rounded_to_nearest() -> None:
    of = Layer(layer(5, 24).rows, torch.diag(torch.arange(1.0, 25.0))[None])

    for spelling in ("w3", "w3zg8", "wfp4"):
        found = rounded(AdaRound(), of, [spelling])[0]
        assert torch.equal(found.codes, nearest_codes(of, spelling).codes)


def test_without_the_regularizer_less_is_decided() -> None:
    """What is left at a half is rounded by chance: the regularizer is worth its name."""
    of = layer(32, 40, seed=7)

    none, some = (
        errors_of(of, rounded(AdaRound(regularizer=r), of, ["w3"])[0].numbers()).sum()
        for r in (0.0, 0.3)
    )

    assert some < 0.9 * none


def test_more_steps_come_nearer() -> None:
    of = layer(32, 40, seed=7)

    few, many = (
        errors_of(of, rounded(AdaRound(num_steps=n), of, ["w3"])[0].numbers()).sum()
        for n in (10, 500)
    )

    assert many < 0.8 * few

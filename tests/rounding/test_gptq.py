"""GPTQ against optimal brain quantization written down column by column, in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpq.quantization.codes import Codes
from mpq.quantization.numerics import Numerics
from mpq.rounding import Gptq
from mpq.rounding.gptq import BLOCK, Sequential
from tests.rounding.layers import (
    Array,
    Layer,
    damped,
    errors_of,
    format_of,
    layer,
    layers,
    nearest_codes,
    objective_of,
    rounded,
    stack_of,
)

SPELLINGS = ["w2", "w3", "w4", "w8", "w3z", "w4t", "w4g5", "w3zg8", "wfp4", "wfp8", "wmxfp4"]
INTEGERS = [s for s in SPELLINGS if "fp" not in s]
RANGES = {
    **dict.fromkeys(("w4", "w4t", "w4g5"), (-8, 7)),
    **dict.fromkeys(("w3z", "w3zg8"), (0, 7)),
    "w2": (-2, 1),
    "w3": (-4, 3),
    "w8": (-128, 127),
}


def moved(of: Layer, codes: Codes, activation_order: bool, damping: float = 0.01) -> Array:
    """``[O, K]`` where each weight lay when it was rounded, given how all before it were rounded.

    The inverse of what is left is made anew for every column: nothing of a factorization.
    """
    form = damped(of.moment[0], damping)
    count = len(form)
    order = sorted(range(count), key=lambda k: -form[k, k]) if activation_order else range(count)
    weights, numbers = of.rows.double().numpy().copy(), codes.numbers().double().numpy()
    found = np.empty_like(weights)
    left = list(order)
    while left:
        k = left[0]
        found[:, k] = weights[:, k]
        inverse = np.linalg.inv(form[np.ix_(left, left)])
        error = (weights[:, k] - numbers[:, k]) / inverse[0, 0]
        weights[:, left] -= np.outer(error, inverse[0])
        left = left[1:]
    return found


def nearest_integers(values: Array, codes: Codes, spelling: str) -> Array:
    """Codes of some weights at scales and zero points."""
    size = codes.tensor_format.group_size or values.shape[1]
    group = np.arange(values.shape[1]) // size
    scale, point = codes.scale.double().numpy()[:, group], codes.zero_point.numpy()[:, group]
    return np.asarray(np.clip(np.rint(values / scale) + point, *RANGES[spelling]))


@pytest.mark.parametrize("activation_order", [True, False])
@pytest.mark.parametrize("spelling", INTEGERS)
@pytest.mark.parametrize("num_inputs", [1, 7, BLOCK, 2 * BLOCK + 9])
def test_codes_are_those_of_the_textbook(
    spelling: str, activation_order: bool, num_inputs: int
) -> None:
    """Every column at the nearest code of what the columns before it left; also across blocks."""
    of = layer(5, num_inputs, seed=num_inputs)

    found = rounded(Gptq(activation_order=activation_order), of, [spelling])[0]

    expected = nearest_integers(moved(of, found, activation_order), found, spelling)
    np.testing.assert_array_equal(found.codes[:, :num_inputs].numpy(), expected)


@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(max_examples=25)
@given(of=layers(max_inputs=10), activation_order=st.booleans())
def test_every_code_is_nearest_to_what_was_left(
    spelling: str, of: Layer, activation_order: bool
) -> None:
    """No other code of the format lies nearer, but by float32's rounding; for any layer."""
    found = rounded(Gptq(activation_order=activation_order), of, [spelling])[0]

    places = moved(of, found, activation_order)

    size = found.tensor_format.group_size or of.rows.shape[1]
    group = np.arange(of.rows.shape[1]) // size
    scale = found.scale.double().numpy()[:, group]
    point = found.zero_point.double().numpy()[:, group]
    levels = levels_of(spelling)
    chosen = np.abs(found.numbers().double().numpy() - places) / scale
    other = np.abs((levels - point[..., None]) - (places / scale)[..., None]).min(axis=-1)
    np.testing.assert_allclose(chosen, other, rtol=1e-3, atol=1e-3)


def levels_of(spelling: str) -> Array:
    """Every code of a format."""
    if spelling in RANGES:
        low, high = RANGES[spelling]
        return np.arange(low, high + 1).astype(np.float64)
    if format_of(spelling).number.bits == 4:
        positive = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        return np.unique(np.concatenate([positive, -positive]))
    bits = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
    return np.unique(bits[np.isfinite(bits)])


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_scales_and_zero_points_are_those_of_rounding_to_nearest(spelling: str) -> None:
    of = layer(5, 24)

    found, nearest = rounded(Gptq(), of, [spelling])[0], nearest_codes(of, spelling)

    assert torch.equal(found.scale, nearest.scale)
    assert torch.equal(found.zero_point, nearest.zero_point)


@pytest.mark.parametrize("activation_order", [True, False])
@pytest.mark.parametrize("spelling", ["w3", "w3zg8", "wfp4"])
def test_inputs_that_share_nothing_are_rounded_to_nearest(
    spelling: str, activation_order: bool
) -> None:
    """The second moment is diagonal: no other input can make an error good."""
    of = Layer(layer(5, 24).rows, torch.diag(torch.arange(1.0, 25.0))[None])

    found = rounded(Gptq(activation_order=activation_order), of, [spelling])[0]

    assert torch.equal(found.codes, nearest_codes(of, spelling).codes)


def test_the_largest_inputs_come_first() -> None:
    """And of equal ones the first: also elsewhere."""
    of = Layer(layer(2, 5).rows, torch.diag(torch.tensor([1.0, 3.0, 1.0, 9.0, 3.0]))[None])

    assert Sequential.of(objective_of(of)).order.tolist() == [3, 1, 4, 0, 2]
    assert Sequential.of(objective_of(of), False).order.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("activation_order", [True, False])
def test_the_factor_is_that_of_the_inverse_in_that_order(activation_order: bool) -> None:
    of = layer(1, 20)

    found = Sequential.of(objective_of(of), activation_order)

    order, upper = found.order.numpy(), found.upper.double().numpy()
    form = damped(of.moment[0]) / float(of.moment[0].diagonal().mean())
    np.testing.assert_array_equal(upper, np.triu(upper))
    product = upper.T @ upper @ form[np.ix_(order, order)]
    np.testing.assert_allclose(product, np.eye(20), atol=1e-4)


def test_two_inputs_by_hand() -> None:
    """The first one's error is made good by the second one: 0.4 too low, 0.4 higher."""
    rows = torch.tensor([[1.4, 2.0, 7.0]])
    moment = torch.tensor([[[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.5]]])

    found = rounded(Gptq(damping=1e-6), Layer(rows, moment), ["w4"], weight_range="minmax")[0]

    # Scale 1: 1.4 becomes 1, which the second input sees as 0.4 of the first: 2.4 becomes 2.
    assert found.scale.item() == 1.0
    assert found.codes.tolist() == [[1.0, 2.0, 7.0]]
    rows[0, 1] = 2.2  # and 2.6 becomes 3, though 2.2 is nearer to 2
    found = rounded(Gptq(damping=1e-6), Layer(rows, moment), ["w4"], weight_range="minmax")[0]
    assert found.codes.tolist() == [[1.0, 3.0, 7.0]]


@pytest.mark.parametrize("spelling", ["w2", "w3", "w4", "w8", "w3zg8"])
def test_correlated_inputs_lose_far_less_than_by_rounding_to_nearest(spelling: str) -> None:
    of = layer(16, 64)

    errors = errors_of(of, rounded(Gptq(), of, [spelling])[0].numbers())

    assert errors.sum() < 0.5 * errors_of(of, nearest_codes(of, spelling).numbers()).sum()


def test_scales_of_groups_are_stored_before_codes_are_found() -> None:
    """In bfloat16, for example, which has two digits."""
    of = layer(5, 24)

    found = rounded(Gptq(), of, ["w4g8"], Numerics(group_scale="bf16"))[0]

    assert torch.equal(found.scale.bfloat16().float(), found.scale)
    places = moved(of, found, activation_order=True)
    scale = found.scale.double().numpy()[:, np.arange(24) // 8]
    expected = np.clip(np.rint(places / scale), -8, 7)
    np.testing.assert_array_equal(found.codes.numpy(), expected)


def test_a_stack_is_left_as_it_is() -> None:
    stack = stack_of(layer(4, 20), "w3")
    before = stack.target.clone()

    Sequential.of(objective_of(layer(4, 20))).codes(stack)

    assert torch.equal(stack.target, before)

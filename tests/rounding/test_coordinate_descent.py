"""Coordinate descent: its steps against slow references, its end against exhaustive search."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpq.rounding import ROUNDINGS, CoordinateDescent, Gptq
from mpq.rounding.coordinate_descent import FACTORS, refitted, swept
from mpq.rounding.gptq import BLOCK, Sequential
from mpq.rounding.stack import Stack
from tests.rounding.layers import (
    Array,
    Layer,
    damped,
    errors_of,
    layer,
    layers,
    nearest_codes,
    objective_of,
    rounded,
    stack_of,
)

NAME = "coordinate-descent"
SPELLINGS = ["w2", "w3", "w8", "w3z", "w4t", "w4g5", "w3zg8", "wfp4", "wfp8", "wmxfp4", "wnvfp4"]


def stack_errors(of: Layer, stack: Stack, codes: Tensor) -> Array:
    """``[O]`` in double precision."""
    return errors_of(of, stack.all_numbers(codes).t())


def is_not_above(errors: Array, others: Array) -> bool:
    """Of each row, but for float32's rounding."""
    return bool((errors <= others * (1 + 1e-4) + 1e-9 * others.max()).all())


@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(max_examples=15)
@given(of=layers())
def test_no_row_is_worse_than_rounded_to_nearest_or_by_gptq(spelling: str, of: Layer) -> None:
    found = errors_of(of, rounded(CoordinateDescent(), of, [spelling])[0].numbers())

    assert is_not_above(found, errors_of(of, nearest_codes(of, spelling).numbers()))
    assert is_not_above(found, errors_of(of, rounded(Gptq(), of, [spelling])[0].numbers()))


@pytest.mark.parametrize("spelling", ["w2", "w3z", "wfp4", "w3g8"])
@pytest.mark.parametrize("option", ["rounds", "sweeps"])
def test_more_never_hurts(spelling: str, option: str) -> None:
    """More rounds, and more sweeps where scales stay: each begins where the one before it ended."""
    of = layer(16, 40, seed=1)
    fixed = "rounds=1,scales=false," if option == "sweeps" else ""

    errors = []
    for number in (0, 1, 2, 5):
        rounding = ROUNDINGS.build(f"{NAME}:{fixed}{option}={number}")
        errors.append(errors_of(of, rounded(rounding, of, [spelling])[0].numbers()))

    assert all(is_not_above(later, earlier) for earlier, later in pairwise(errors))


@pytest.mark.parametrize("spelling", ["w2", "w3g8", "wfp4"])
@pytest.mark.parametrize("option", ["rounds", "sweeps"])
def test_rounds_and_sweeps_are_worth_it(spelling: str, option: str) -> None:
    """Where inputs are not so much alike that no single code can change any more."""
    of = layer(16, 40, seed=1)
    of = Layer(of.rows, of.moment + 10.0 * torch.eye(40))

    without, found = (
        errors_of(
            of, rounded(ROUNDINGS.build(f"{NAME}:{option}={number}"), of, [spelling])[0].numbers()
        )
        for number in (0, 2)
    )

    assert found.sum() < 0.995 * without.sum()


@pytest.mark.parametrize("spelling", SPELLINGS)
@settings(max_examples=15)
@given(of=layers(max_inputs=20), random=st.integers(0, 2**16))
def test_a_sweep_lowers_every_rows_error_from_any_codes(
    spelling: str, of: Layer, random: int
) -> None:
    """Also the second sweep; what a sweep does not change is best in every single code."""
    stack, objective = stack_of(of, spelling), objective_of(of)
    noise = torch.randn(stack.target.shape, generator=torch.Generator().manual_seed(random))
    inputs = torch.arange(stack.num_inputs)
    start = stack.codes(noise * stack.target.abs().amax(), inputs)

    once = swept(objective, stack, start)
    twice = swept(objective, stack, once)

    errors = [stack_errors(of, stack, codes) for codes in (start, once, twice)]
    assert is_not_above(errors[1], errors[0])
    assert is_not_above(errors[2], errors[1])


def test_a_sweep_is_that_of_one_code_after_another() -> None:
    """Each at the best of all of its codes, by trying them; also across blocks."""
    of = layer(4, 2 * BLOCK + 5, seed=2)
    stack = stack_of(of, "w2")
    start = Sequential.of(objective_of(of)).codes(stack)

    found = swept(objective_of(of), stack, start)

    expected = by_trying(of, stack, start)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert not torch.equal(found, start)


@pytest.mark.parametrize("spelling", ["w2z", "w2g5", "w3"])
@given(of=layers(max_inputs=9), random=st.integers(0, 2**16))
def test_a_sweep_finds_no_worse_codes_than_trying_all_of_each(
    spelling: str, of: Layer, random: int
) -> None:
    """At ties codes may part; then errors are compared."""
    stack = stack_of(of, spelling)
    noise = torch.randn(stack.target.shape, generator=torch.Generator().manual_seed(random))
    start = stack.codes(noise * stack.target.abs().amax(), torch.arange(stack.num_inputs))
    expected = torch.from_numpy(by_trying(of, stack, start)).float()

    found = swept(objective_of(of), stack, start)

    same = (found == expected).all(dim=0).numpy()
    errors, others = (stack_errors(of, stack, codes) for codes in (found, expected))
    near = np.isclose(errors, others, rtol=1e-3, atol=1e-9 * max(others.max(), 1e-30))
    assume((same | near).all())  # another code at a tie leads elsewhere
    assert same.mean() >= 0.5 or near.all()


def by_trying(of: Layer, stack: Stack, start: Tensor) -> Array:
    """``[K, R]`` codes after each was set to the best of all its codes, in order."""
    form, found = damped(of.moment[0]), start.double().numpy().copy()
    group, target = stack.group_of.numpy(), stack.target.double().numpy()
    scale, point = stack.scale.double().numpy(), stack.zero_point.double().numpy()
    for row in range(found.shape[1]):
        for k in range(len(found)):
            tried = []
            for code in range(int(stack.low[row]), int(stack.high[row]) + 1):
                found[k, row] = code
                error = (found[:, row] - point[group, row]) * scale[group, row] - target[:, row]
                tried.append((error @ form @ error, code))
            found[k, row] = min(tried)[1]
    return found


@pytest.mark.parametrize("spelling", ["w3", "w4z", "wfp4"])
def test_a_refit_of_one_scale_is_that_of_least_squares(spelling: str) -> None:
    of = layer(6, 20)
    stack = stack_of(of, spelling)
    codes = stack.nearest()

    found = refitted(objective_of(of), stack, codes)

    root = np.linalg.cholesky(damped(of.moment[0])).T
    for row in range(6):
        units = (codes - stack.zero_point)[:, row].double().numpy()
        target = of.rows[row].double().numpy()
        expected = np.linalg.lstsq((root @ units)[:, None], root @ target, rcond=None)[0]
        assert found.scale[0, row].item() == pytest.approx(expected[0], rel=1e-4)


def test_refits_of_groups_come_to_least_squares_together() -> None:
    """One after the other, again and again, is the joint solution in the end."""
    of = layer(3, 20)
    stack = stack_of(of, "w4g5")
    codes = stack.nearest()

    one = refitted(objective_of(of), stack, codes)
    many = one
    for _ in range(300):
        many = refitted(objective_of(of), many, codes)

    root, group = np.linalg.cholesky(damped(of.moment[0])).T, stack.group_of.numpy()
    for row in range(3):
        units = np.where(group[:, None] == np.arange(4), codes[:, row].numpy()[:, None], 0.0)
        target = of.rows[row].double().numpy()
        expected = np.linalg.lstsq(root @ units, root @ target, rcond=None)[0]
        # Scales are stored in float16 in between.
        np.testing.assert_allclose(many.scale[:, row].numpy(), expected, rtol=5e-3)
    before, first, last = (stack_errors(of, each, codes) for each in (stack, one, many))
    assert is_not_above(first, before * (1 + 1e-3))
    assert is_not_above(last, first * (1 + 1e-3))


def test_a_refit_of_groups_is_one_after_another() -> None:
    """The second group's scale knows of the first one's."""
    of = layer(2, 10)
    stack = stack_of(of, "w4g5")
    codes = stack.nearest()

    found = refitted(objective_of(of), stack, codes)

    form, group = damped(of.moment[0]), stack.group_of.numpy()
    for row in range(2):
        scale, target = stack.scale[:, row].double().numpy(), of.rows[row].double().numpy()
        units = codes[:, row].double().numpy()
        for g in range(2):
            own, others = np.where(group == g, units, 0.0), np.where(group == g, 0.0, units)
            rest = target - others * scale[group]
            scale[g] = own @ form @ rest / (own @ form @ own)
        np.testing.assert_allclose(found.scale[:, row].numpy(), scale, rtol=2e-3)


def test_scales_keep_their_sign_and_groups_of_zeros_keep_theirs() -> None:
    """Where the best scale is below 0, or there is none."""
    of = Layer(torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), torch.eye(3)[None])
    stack = stack_of(of, "w4")
    codes = torch.tensor([[-1.0, 0.0], [-2.0, 0.0], [-3.0, 0.0]])

    found = refitted(objective_of(of), stack, codes)

    assert torch.equal(found.scale, stack.scale)


@pytest.mark.parametrize("factor", FACTORS)
def test_each_factor_is_a_start(factor: float) -> None:
    """Of a row on a grid whose scale is that factor's, the error is 0 without any round."""
    codes = torch.tensor([[-8.0, 7.0, 3.0, -2.0, 5.0, 1.0, -6.0, 4.0]])
    of = Layer(codes * 0.25, layer(1, 8).moment)
    stack = stack_of(of, "w4").with_scale(torch.tensor([[0.25]]) / factor)
    solver = CoordinateDescent(rounds=0).prepared(of.moment[0])

    found, scale = solver.solve(stack)

    assert torch.equal(found, codes.t())
    assert scale.item() == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize("spelling", ["w2", "w3", "w4z"])
def test_scales_stay_where_they_are_told_to(spelling: str) -> None:
    of = layer(5, 20)

    found = rounded(CoordinateDescent(scales=False), of, [spelling])[0]

    assert torch.equal(found.scale, nearest_codes(of, spelling).scale)


@pytest.mark.parametrize("spelling", ["w2", "w3z", "w4g5", "wfp4"])
def test_scales_that_may_change_are_worth_it(spelling: str) -> None:
    of = layer(16, 40)

    free = errors_of(of, rounded(CoordinateDescent(), of, [spelling])[0].numbers())

    fixed = errors_of(of, rounded(CoordinateDescent(scales=False), of, [spelling])[0].numbers())
    assert free.sum() < 0.95 * fixed.sum()


def optimum(of: Layer, spelling: str) -> Array:
    """``[O]`` the smallest error over all codes, at the scales of rounding to nearest."""
    stack, form = stack_of(of, spelling), damped(of.moment[0])
    low, high = int(stack.low[0]), int(stack.high[0])
    codes = np.array(list(product(range(low, high + 1), repeat=stack.num_inputs)), dtype=np.float32)
    group, found = stack.group_of.numpy(), []
    for row, target in enumerate(of.rows.double().numpy()):
        # Numbers are float32, as the format has them.
        scale, point = (t[:, row].numpy()[group] for t in (stack.scale, stack.zero_point))
        errors = ((codes - point) * scale).astype(np.float64) - target
        found.append(np.einsum("nk,kl,nl->n", errors, form, errors).min())
    return np.array(found)


@pytest.mark.parametrize("spelling", ["w2", "w2z", "w2g2"])
@given(of=layers(max_inputs=5))
def test_it_is_never_below_and_seldom_far_above_the_optimum(spelling: str, of: Layer) -> None:
    """At fixed scales, by trying all codes; a local optimum may be a few times the global one."""
    best = optimum(of, spelling)

    found = errors_of(of, rounded(CoordinateDescent(scales=False), of, [spelling])[0].numbers())

    assert is_not_above(best, found)
    assert is_not_above(found, 10.0 * best)


@pytest.mark.parametrize(("spelling", "mean", "share"), [("w2", 1.15, 0.75), ("w2z", 1.3, 0.75)])
def test_most_rows_come_to_the_optimum(spelling: str, mean: float, share: float) -> None:
    """Of 200 rows with five inputs: how many, and the mean of the ratios."""
    of = layer(200, 5, seed=4)
    best = optimum(of, spelling)

    found = errors_of(of, rounded(CoordinateDescent(scales=False), of, [spelling])[0].numbers())

    ratios = found / best
    assert (ratios < 1.0 + 1e-4).mean() > share
    assert ratios.mean() < mean

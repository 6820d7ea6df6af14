"""Coordinate descent against exhaustive search and least squares."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpq.errors import InputError
from mpq.quantization.codes import Codes
from mpq.quantization.numerics import Numerics
from mpq.rounding import CoordinateDescent, Gptq, Nearest
from mpq.rounding.coordinate_descent import refitted, swept
from mpq.rounding.objective import Objective
from tests.rounding.cases import (
    EXACT,
    SPELLINGS,
    Array,
    damped,
    errors,
    formats_of,
    grids_of,
    layer,
    points,
    rounded,
    stack_of,
)


def optimum(codes: Codes, rows: torch.Tensor, moment: torch.Tensor) -> Array:
    """``[O]`` least quadratic errors at these scales, by trying all codes."""
    found = []
    for row in range(len(rows)):
        tried = np.stack(np.meshgrid(*points(codes, row)), axis=-1).reshape(-1, rows.shape[1])
        off = tried - rows[row].double().numpy()
        found.append(np.einsum("ni,ij,nj->n", off, damped(moment[0]), off).min())
    return np.array(found)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_row_is_worse_than_by_gptq_or_to_nearest(spelling: str, seed: int) -> None:
    """By the damped form, and better in sum: the best that was met is kept."""
    rows, moment = layer(24, 35, seed=seed)

    (found,) = rounded(CoordinateDescent(), rows, moment, formats_of(spelling))

    own = errors(rows, found.numbers(), moment)
    for other in (Nearest(), Gptq()):
        (theirs,) = rounded(other, rows, moment, formats_of(spelling))
        expected = errors(rows, theirs.numbers(), moment)
        assert (own <= expected * (1 + 1e-4)).all()
        assert own.sum() < expected.sum()


@pytest.mark.parametrize("num_inputs", [2, 3, 4, 5])
@pytest.mark.parametrize("spelling", ["w2", "w2z"])
def test_codes_are_close_to_the_optimum(spelling: str, num_inputs: int) -> None:
    """Eight layers of 64 rows, at scales that stay: in sum at most 15 % above exhaustive search.

    Two rows of three are optimal; scales that change make more of all than the best codes without.
    """
    own, best, rescaled = [], [], []
    for seed in range(8):
        rows, moment = layer(64, num_inputs, seed=100 * num_inputs + seed)
        codes, scales = (
            rounded(descent, rows, moment, formats_of(spelling))[0]
            for descent in (CoordinateDescent(scales=False), CoordinateDescent())
        )
        own.append(errors(rows, codes.numbers(), moment))
        best.append(optimum(codes, rows, moment))
        rescaled.append(errors(rows, scales.numbers(), moment))

    found, least = np.concatenate(own), np.concatenate(best)
    assert (found >= least * (1 - 1e-4) - 1e-9).all()
    assert found.sum() <= 1.15 * least.sum()
    assert np.mean(found <= least * (1 + 1e-4) + 1e-9) >= 2 / 3
    assert np.sum(rescaled) < 0.85 * least.sum()


def test_rounding_to_nearest_is_far_from_the_optimum() -> None:
    """So that to be close to it says something."""
    rows, moment = layer(64, 5, seed=5)

    (found,) = rounded(Nearest(), rows, moment, formats_of("w2"))

    own, best = errors(rows, found.numbers(), moment), optimum(found, rows, moment)
    assert own.sum() > 1.3 * best.sum()


@given(seed=st.integers(0, 2**31), num_inputs=st.integers(1, 4), is_affine=st.booleans())
def test_no_other_code_of_one_input_is_better(seed: int, num_inputs: int, is_affine: bool) -> None:
    """Of as many sweeps as it takes: what coordinate descent promises of any layer."""
    rows, moment = layer(3, num_inputs, seed=seed)
    descent = CoordinateDescent(scales=False, sweeps=30)

    (found,) = rounded(descent, rows, moment, formats_of("w2z" if is_affine else "w2"))

    own = errors(rows, found.numbers(), moment)
    for row, input_ in itertools.product(range(3), range(num_inputs)):
        for number in points(found, row)[input_]:
            other = found.numbers().double()
            other[row, input_] = float(number)
            assert errors(rows, other, moment)[row] >= own[row] * (1 - 1e-4) - 1e-9


@pytest.mark.parametrize("spelling", ["w3", "w4z"])
def test_a_scale_is_refitted_by_least_squares(spelling: str) -> None:
    """Of the rows' outputs, as NumPy solves it."""
    rows, moment = layer(6, 21)
    stack, start = stack_of(rows, spelling)

    found = refitted(Objective.of(moment[0], 0.01), stack, stack.nearest())

    factor = np.linalg.cholesky(damped(moment[0])).T
    units = (start.codes - start.zero_point).double().numpy()
    for row in range(6):
        a, b = factor @ units[row][:, None], factor @ rows[row].double().numpy()
        assert float(found.scale[0, row]) == pytest.approx(np.linalg.lstsq(a, b)[0][0], rel=1e-4)


@pytest.mark.parametrize("spelling", ["w3g8", "w4zg5"])
def test_scales_of_groups_come_to_their_common_least_squares(spelling: str) -> None:
    """One after another, over and over; the last group is short."""
    rows, moment = layer(5, 22)
    stack, start = stack_of(rows, spelling)
    codes, objective = stack.nearest(), Objective.of(moment[0], 0.01)
    size = start.tensor_format.group_size
    assert size is not None

    for _ in range(100):
        stack = refitted(objective, stack, codes)

    factor = np.linalg.cholesky(damped(moment[0])).T
    units = codes.t() - start.zero_point[:, torch.arange(22) // size]
    for row in range(5):
        parts = [np.zeros((22, 1)) for _ in range(start.num_groups)]
        for k in range(22):
            parts[k // size][k] = float(units[row, k])
        a, b = factor @ np.hstack(parts), factor @ rows[row].double().numpy()
        expected = np.linalg.lstsq(a, b)[0]
        np.testing.assert_allclose(stack.scale[:, row].numpy(), expected, rtol=1e-3)


def test_a_refitted_scale_is_stored_in_its_dtype() -> None:
    """Before anything is judged by it."""
    rows, moment = layer(5, 22)
    stack, _ = stack_of(rows, "w3g8", Numerics())

    scale = refitted(Objective.of(moment[0], 0.01), stack, stack.nearest()).scale

    assert torch.equal(scale.half().float(), scale)
    assert not torch.equal(scale, stack.scale)


@pytest.mark.parametrize("num_inputs", [5, 32, 70])
@pytest.mark.parametrize("spelling", ["w2", "w3zg8", "w4t"])
def test_a_sweep_sets_one_code_after_another(spelling: str, num_inputs: int) -> None:
    """Within a block and beyond it, each to the best that trying all of them finds."""
    rows, moment = layer(4, num_inputs)
    stack, start = stack_of(rows, spelling)
    form = damped(moment[0])

    found = stack.all_numbers(swept(Objective.of(moment[0], 0.01), stack, stack.nearest()))

    for row in range(4):
        numbers, target = start.numbers()[row].double().numpy(), rows[row].double().numpy()
        for k, allowed in enumerate(points(start, row)):
            tried = np.repeat(numbers[None], len(allowed), axis=0)
            tried[:, k] = allowed
            off = tried - target
            numbers = tried[np.einsum("ni,ij,nj->n", off, form, off).argmin()]
        np.testing.assert_allclose(found[:, row].numpy(), numbers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spelling", ["w2", "w3zg8", "fp4", "mxfp8"])
def test_every_step_lowers_the_error(spelling: str) -> None:
    """Of every row: sweeps, and refitting where scales may change."""
    rows, moment = layer(8, 40)
    stack, _ = stack_of(rows, spelling)
    objective, codes = Objective.of(moment[0], 0.01), stack.nearest()
    seen = [errors(rows, stack.all_numbers(codes).t(), moment)]

    for _ in range(3):
        if stack.can_rescale:
            stack = refitted(objective, stack, codes)
            seen.append(errors(rows, stack.all_numbers(codes).t(), moment))
        codes = swept(objective, stack, codes)
        seen.append(errors(rows, stack.all_numbers(codes).t(), moment))

    for before, after in itertools.pairwise(seen):
        assert (after <= before * (1 + 1e-5)).all()
    assert seen[-1].sum() < 0.7 * seen[0].sum()


def test_each_part_of_the_recipe_helps() -> None:
    """In sum, at 3 bits: sweeps after GPTQ, and scales beside codes; more rounds do no harm."""
    rows, moment = layer(48, 40)
    recipes = [
        CoordinateDescent(scales=False, rounds=0),
        CoordinateDescent(scales=False),
        CoordinateDescent(),
        CoordinateDescent(rounds=6),
    ]

    found = [rounded(r, rows, moment, formats_of("w3"))[0].numbers() for r in recipes]

    order, codes, scales, rounds = (errors(rows, numbers, moment).sum() for numbers in found)
    assert rounds <= scales < codes < order
    assert scales < 0.9 * order


def test_scales_stay_where_they_are_told_to() -> None:
    """And where all rows share one, or they are powers of two."""
    rows, moment = layer(6, 40)

    for descent, spelling in (
        (CoordinateDescent(scales=False), "w3"),
        (CoordinateDescent(scales=False), "w3g8"),
        (CoordinateDescent(), "w3t"),
        (CoordinateDescent(), "mxfp4"),
    ):
        (found,) = rounded(descent, rows, moment, formats_of(spelling))
        assert torch.equal(
            found.scale, rounded(Nearest(), rows, moment, formats_of(spelling))[0].scale
        )


def test_a_weight_on_the_grid_stays_there() -> None:
    """Nothing is better than no error."""
    rows, moment = layer(6, 30)
    (first,) = rounded(Nearest(), rows, moment, formats_of("w4"))
    on_grid = first.numbers()

    (found,) = CoordinateDescent().codes(
        on_grid, moment, formats_of("w4"), grids_of(rows, formats_of("w4")), Numerics()
    )

    assert torch.equal(found.numbers(), on_grid)


@pytest.mark.parametrize("options", [{"rounds": -1}, {"sweeps": -1}, {"damping": 0.0}])
def test_options_without_a_meaning_are_refused(options: dict[str, float]) -> None:
    """When they are set, not when they are used."""
    with pytest.raises(InputError, match="coordinate-descent needs"):
        CoordinateDescent(**options)  # type: ignore[arg-type]


def test_powers_of_two_stay_what_they_are() -> None:
    """Also those that float16, in which scales of groups are stored, does not hold."""
    rows, moment = layer(4, 32)
    small = rows * 1e-6

    (found,) = rounded(CoordinateDescent(), small, moment, formats_of("mxfp4"))
    (start,) = rounded(Nearest(), small, moment, formats_of("mxfp4"))

    assert torch.equal(found.scale, start.scale)
    assert (torch.frexp(found.scale)[0] == 0.5).all()


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_size_of_weights_does_not_matter(size: float) -> None:
    """Squares of such numbers are no float32; rows are better than to nearest all the same."""
    rows, moment = layer(8, 24)

    found, start = (
        rounded(descent, rows * size, moment, formats_of("w3"))[0].numbers() / size
        for descent in (CoordinateDescent(), Nearest())
    )

    assert errors(rows, found, moment).sum() < 0.9 * errors(rows, start, moment).sum()


def test_a_scale_keeps_its_sign_and_one_of_zeros_stays() -> None:
    """The best scale of codes of the wrong sign is negative, and that of zeros is any number."""
    rows, moment = layer(2, 16)
    stack, start = stack_of(rows, "w4")
    codes = torch.stack([-stack.nearest()[:, 0], torch.zeros(16)], dim=1)

    found = refitted(Objective.of(moment[0], 0.01), stack, codes)

    assert torch.equal(found.scale, stack.scale)
    assert (start.scale > 0).all()


def long_upwards() -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of every eight weights is positive, where codes around 0 have one less."""
    rows, moment = layer(32, 24)
    sizes = rows.unflatten(1, (-1, 8)).abs()
    is_largest = (sizes == sizes.amax(2, keepdim=True)).flatten(1)
    return torch.where(is_largest, 1.5 * rows.abs(), rows), moment


@pytest.mark.parametrize("spelling", ["w2", "w3", "w3g8"])
def test_a_scale_may_be_negative_where_that_suits_a_row(spelling: str) -> None:
    """Most of these rows turn their codes around, and all of them together err less."""
    rows, moment = long_upwards()

    plain, free = (
        rounded(CoordinateDescent(signs=signs), rows, moment, formats_of(spelling), EXACT)[0]
        for signs in (False, True)
    )

    assert (plain.scale > 0).all()
    assert (free.scale < 0).float().mean() > 0.5
    assert errors(rows, free.numbers(), moment).sum() < errors(rows, plain.numbers(), moment).sum()


@pytest.mark.parametrize(
    ("spelling", "sign"),
    [("w3", "positive"), ("w3z", "either"), ("w3t", "either"), ("fp4", "either")],
)
def test_scales_stay_positive_where_a_sign_is_not_read_or_says_nothing(
    spelling: str, sign: Any
) -> None:
    """Zero points and signed numbers have that freedom already; one scale of all rows stays."""
    rows, moment = long_upwards()

    (found,) = rounded(
        CoordinateDescent(), rows, moment, formats_of(spelling), Numerics(scale_sign=sign)
    )

    assert (found.scale > 0).all()


def test_a_negative_scale_is_stored_in_its_dtype() -> None:
    """As a positive one is: before anything is judged by it."""
    rows, moment = long_upwards()

    (found,) = rounded(CoordinateDescent(), rows, moment, formats_of("w3g8"), Numerics())

    assert (found.scale < 0).any()
    assert torch.equal(found.scale.half().float(), found.scale)

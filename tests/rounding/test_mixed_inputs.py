"""Weights whose inputs or groups differ in bits, rounded with regard to data."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mpq.quantization.codes import Codes
from mpq.quantization.grid import Grid
from mpq.quantization.numerics import OWN
from mpq.quantization.precision import Precision
from mpq.quantization.tensor_format import TensorFormat
from mpq.quantization.tied_scales import tied_grids
from mpq.rounding import ROUNDINGS, CoordinateDescent, Gptq, Nearest
from mpq.rounding.column_losses import column_losses
from tests.rounding.cases import Array, grids_of, layer

MIXED = [
    "w[2,4]:i8/3x010", "w[2,4]:i01110010", "w[2,8]zg2:i8/4x01", "w[2,4,8]g3:g8/3x012210121212",
    "w[1,4]:i8/3x010", "w[1,2]:i00110010", "w[1,2,8]g3:g8/3x012210121212",
    "w[0,4]:i8/3x010", "w[0,1]:i00110010", "w[0,8]zg2:i8/4x01", "w[0,1,8]g3:g8/3x012210121212",
]  # fmt: skip


def starts(rows: Tensor, weight: TensorFormat) -> list[Grid]:
    own = grids_of(rows, weight.by_channel)
    return tied_grids(weight, own, OWN) if weight.has_tied_scales else own


def form_of(codes: Codes, rows: Tensor, moment: Tensor) -> Array:
    """``[O]`` the damped quadratic form of each row's error, in double precision."""
    errors = (codes.numbers() - rows).double().numpy().reshape(len(moment), -1, rows.shape[1])
    form = moment.double().numpy()
    mean = np.trace(form, axis1=1, axis2=2)[:, None, None] / rows.shape[1]
    form = form + 0.01 * mean * np.eye(rows.shape[1])
    return np.asarray(np.einsum("grk,gkl,grl->gr", errors, form, errors).ravel())


def one_after_another(target: Array, form: Array, steps: Array, ends: Array) -> Array:
    """``[K]`` numbers of a row: each is rounded, and those left are set to their best values.

    By solving for these anew, without a factorization; the largest inputs come first.
    """
    order = np.argsort(-np.diag(form), kind="stable")
    found, left = np.zeros_like(target), target.copy()
    for turn, here in enumerate(order):
        low, high = ends[here]
        code = np.clip(np.rint(left[here] / steps[here]), low, high)
        if (low, high) == (-1, 1):  # signs
            code = 1.0 if left[here] > 0 else -1.0
        found[here] = steps[here] * code
        done, rest = order[: turn + 1], order[turn + 1 :]
        errors = found[done] - target[done]
        if len(rest):
            moved = np.linalg.solve(form[np.ix_(rest, rest)], form[np.ix_(rest, done)] @ errors)
            left[rest] = target[rest] - moved
    return found


@pytest.mark.parametrize(
    "text",
    [
        "w[2,4]:i8/3x010",
        "w[2,4]:i01110010",
        "w[2,4]g2:i8/4x10",
        "w[1,4]:i8/3x010",
        "w[1,3]g2:i8/4x10",
        "w[0,1,4]:i01210012",
        "w[0,3]g2:i8/4x10",
    ],
)
def test_gptq_is_that_of_each_column_at_its_bits(text: str) -> None:
    """Against one input after another, the others fitted anew each time."""
    rows, moment = layer(4, 8)
    weight = Precision.parse(text).weight
    assert weight.channels is not None
    grids = starts(rows, weight)

    found = Gptq().codes_of_inputs(rows, moment, weight, grids, OWN)

    form = moment[0].double().numpy()
    form = form + 0.01 * np.trace(form) / 8 * np.eye(8)
    size = weight.group_size or 8
    widths = weight.channels.columns
    bits = [number.bits for number in weight.channels.numbers]
    by_bits = {b: (-(2 ** (b - 1)), max(2 ** (b - 1) - 1, 1)) for b in bits if b} | {0: (0, 0)}
    ends = np.array([by_bits[bits[w]] for w in widths])
    for row in range(4):
        scales = [grid.scale.reshape(4, -1)[row].double().numpy() for grid in grids]
        steps = np.array([scales[w][k // size] for k, w in enumerate(widths)])
        expected = one_after_another(rows[row].double().numpy(), form, steps, ends)
        np.testing.assert_allclose(found.numbers()[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ROUNDINGS.names())
@pytest.mark.parametrize("text", MIXED)
def test_every_rounding_keeps_each_weight_at_its_bits(name: str, text: str) -> None:
    """Codes are within their widths, and kept codes stand for the same numbers."""
    rows, moment = layer(4, 8, num_groups=2)
    weight = Precision.parse(text).weight

    found = ROUNDINGS.build(name).codes_of_inputs(rows, moment, weight, starts(rows, weight), OWN)

    stored = found.stored(rows)
    assert stored.why_not(weight, (4, 8)) == ""
    assert torch.equal(Codes.of_stored(stored, weight).numbers(), found.numbers())


@pytest.mark.parametrize("text", MIXED)
def test_coordinate_descent_is_no_worse_than_its_starts(text: str) -> None:
    """Row by row, by the damped form: also where one scale does for several widths."""
    rows, moment = layer(6, 8, num_groups=2, seed=3)
    weight = Precision.parse(text.replace("012210121212", "012210121212012012")).weight
    grids = starts(rows, weight)
    by = {
        kind: form_of(kind().codes_of_inputs(rows, moment, weight, grids, OWN), rows, moment)
        for kind in (Nearest, Gptq, CoordinateDescent)
    }

    assert (by[CoordinateDescent] <= by[Nearest] * (1 + 1e-5)).all()
    assert (by[CoordinateDescent] <= by[Gptq] * (1 + 1e-5)).all()
    assert by[CoordinateDescent].sum() < by[Gptq].sum()


def test_nearest_is_what_the_simulation_rounds_to() -> None:
    """The start of all others."""
    rows, moment = layer(4, 8)
    weight = Precision.parse("w[2,4]:i8/3x010").weight
    grids = starts(rows, weight)
    parts = [Codes.of(rows, f, grid) for f, grid in zip(weight.by_channel, grids, strict=True)]

    found = Nearest().codes_of_inputs(rows, moment, weight, grids, OWN)

    assert torch.equal(found.numbers(), Codes.of_channels(parts, weight).numbers())


def test_what_a_column_loses_is_what_brute_force_loses() -> None:
    """Many rows, each column at a step of its own: the mean loss is the closed form's sum."""
    inputs, num_rows = 5, 3000
    _, moment = layer(1, inputs, seed=2)
    form = moment[0].double().numpy()
    form = form + 0.01 * np.trace(form) / inputs * np.eye(inputs)
    steps, random = np.array([0.5, 0.1, 0.3, 0.2, 0.4]), np.random.default_rng(0)
    wide = np.tile([-1e6, 1e6], (inputs, 1))  # no code is beyond the ends, as BAQ has it
    lost = []
    for target in random.normal(size=(num_rows, inputs)):
        errors = one_after_another(target, form, steps, wide) - target
        lost.append(errors @ form @ errors)

    found = column_losses(moment)[0].numpy() * np.trace(moment[0].double().numpy()) / inputs

    assert np.mean(lost) == pytest.approx(float((steps**2 / 12 * found).sum()), rel=0.03)

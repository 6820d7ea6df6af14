"""Weights that rules keep beside codes: each rule against numpy, and where it cannot be had."""

from typing import Any

import numpy as np
import pytest
import torch

from mpq.errors import InputError, PrecisionError
from mpq.quantization.branch_fits import with_branches
from mpq.quantization.branch_numbers import SparseNumbers
from mpq.quantization.codes import Codes
from mpq.quantization.error_form import ErrorForm
from mpq.quantization.numerics import OWN
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import weight_grid
from mpq.quantization.side_branch import Pick, Sparse
from mpq.quantization.tensor_format import TensorFormat

Array = np.ndarray[Any, Any]
DRAW = np.random.default_rng(0)
ROWS = DRAW.standard_t(3, (12, 16)).astype(np.float32)
FISHER = DRAW.lognormal(0, 2, ROWS.shape)
MIXED = DRAW.normal(size=(16, 40))
MOMENT = MIXED @ MIXED.T / 40


def nearest(rows: torch.Tensor, plain: TensorFormat) -> Codes:
    grid = weight_grid(rows, plain, RANGE_METHODS.build("minmax"), OWN)
    return Codes.of(rows, plain, grid)


def kept(spelled: str, form: ErrorForm) -> tuple[Array, Codes]:
    """``[O, K]`` where a format keeps weights, and all of it."""
    tensor_format, rows = Precision.parse(spelled).weight, torch.from_numpy(ROWS)
    plain = tensor_format.plain
    (found,) = with_branches(
        rows, [tensor_format], form, nearest(rows, plain), lambda x: nearest(x, plain)
    )
    assert isinstance(found.branch, SparseNumbers)
    assert found.stored(rows).why_not(tensor_format, ROWS.shape) == ""
    return found.branch.numbers(16) != 0, found


def largest(score: Array, count: int) -> Array:
    """``[O, K]`` where the largest are."""
    found = np.zeros(score.size, bool)
    found[np.argsort(-score.ravel(), kind="stable")[:count]] = True
    return found.reshape(score.shape)


def of_numbers() -> ErrorForm:
    """What Fisher information says: every number by itself."""
    blocks = [(slice(k, k + 1), torch.from_numpy(FISHER[:, k, None, None])) for k in range(16)]
    return ErrorForm.of_blocks(blocks)


@pytest.mark.parametrize("base", ["w3", "w3g8", "wcb2", "w4zg8", "w3t"])
def test_the_largest_are_kept_as_they_are(base: str) -> None:
    """By magnitude: as SqueezeLLM's outliers; of all others the range is smaller."""
    places, found = kept(f"{base}+s5%m", of_numbers())

    assert np.array_equal(places, largest(np.abs(ROWS), 10))
    np.testing.assert_allclose(found.numbers().numpy()[places], ROWS[places], rtol=1e-3)
    plain = nearest(torch.from_numpy(ROWS), Precision.parse(base).weight).numbers().numpy()
    others = np.where(places, 0.0, ROWS - found.numbers().numpy())
    assert np.square(others).sum() < np.square(np.where(places, 0.0, ROWS - plain)).sum()


def test_the_largest_gradients_are_kept() -> None:
    """GWQ's 1 %, by squared gradients and nothing else."""
    places, found = kept("w3g8+s3%g", of_numbers())

    assert np.array_equal(places, largest(FISHER, 6))
    np.testing.assert_allclose(found.numbers().numpy()[places], ROWS[places], rtol=1e-3)


def test_sensitive_weights_come_before_large_ones() -> None:
    """SqueezeLLM's two picks: what the first has taken is none of the second's."""
    places, _ = kept("wcb2+s1%g5%m", of_numbers())

    sensitive = largest(FISHER, 2)
    large = largest(np.where(sensitive, 0.0, np.abs(ROWS)), 10)
    assert np.array_equal(places, sensitive | large)


@pytest.mark.parametrize(("base", "size", "low"), [("w3", 16, -4), ("w3g8", 8, -4)])
def test_errors_that_nothing_makes_good_are_kept(base: str, size: int, low: int) -> None:
    """SpQR's: the squared error to nearest by the diagonal of the inverse second moment."""
    form = ErrorForm.of_blocks([(slice(0, 16), torch.from_numpy(MOMENT)[None])])
    places, _ = kept(f"{base}+s4%e", form)

    groups = ROWS.reshape(12, 16 // size, size).astype(np.float64)
    steps = np.maximum(groups.max(2) / (-low - 1), groups.min(2) / low)[:, :, None]
    if size < 16:
        steps = steps.astype(np.float16).astype(np.float64)
    rounded = np.clip(np.round(groups / steps), low, -low - 1) * steps
    errors = ROWS - rounded.reshape(12, 16)
    score = errors**2 / np.diag(np.linalg.inv(MOMENT))
    assert np.array_equal(places, largest(score, 8))


def test_gradients_that_nobody_looked_at_are_no_rule() -> None:
    """To nearest, and by a second moment of inputs, which all rows have in common."""
    shared = ErrorForm.of_blocks([(slice(0, 16), torch.from_numpy(MOMENT)[None])])
    for form in (ErrorForm(), shared):
        with pytest.raises(InputError, match="take rounding 'weighted-nearest'"):
            kept("w3+s1%g", form)


def test_picks_are_a_share_together() -> None:
    """Spelled one after the other, counted as their sum; others contradict themselves."""
    precision = Precision.parse("w3g8+s0.05%g0.4%ma16")
    branch = Sparse.of(Pick(0.05, "g"), Pick(0.4, "m"))

    assert str(precision) == "w3g8+s0.05%g0.4%ma16"
    assert precision.weight.branch == branch
    assert (branch.percent, sum(branch.counts(1001)), branch.count(1001)) == (0.45, 5, 5)
    assert repr(Sparse(0.5)) == "Sparse(percent=0.5)"
    assert "rule='m'" in repr(precision.weight)
    with pytest.raises(PrecisionError, match=r"not 1.0 % together"):
        Sparse(1.0, (Pick(0.5, "m"),))
    with pytest.raises(PrecisionError, match="rules m, g, e; got s1%x"):
        Sparse.of(Pick(1.0, "x"))
    with pytest.raises(PrecisionError, match="more than 0"):
        Precision.parse("w3+s0%m1%g")

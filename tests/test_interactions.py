"""The loss with interactions is the quadratic form of the factor's Gram matrix."""

from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from mpq.errors import InputError
from mpq.interactions import Interactions


def factor_of(
    seed: int, probes: int = 7, layers: int = 3, precisions: int = 4
) -> npt.NDArray[np.float64]:
    """A random factor ``[S, L, B]`` that float32 holds exactly."""
    return np.random.default_rng(seed).integers(-9, 10, (probes, layers, precisions)) / 8


@pytest.mark.parametrize("seed", range(3))
def test_loss_is_half_the_quadratic_form_of_the_gram_matrix(seed: int) -> None:
    """For every assignment, with one-hot ``x``: loss = x' G x / 2, G = R' R / S."""
    factor = factor_of(seed)
    flat = factor.reshape(len(factor), -1)
    gram = flat.T @ flat / len(factor)
    interactions = Interactions(factor.astype(np.float32))

    for choice in product(range(4), repeat=3):
        one_hot = np.eye(4)[list(choice)].ravel()
        expected = 0.5 * one_hot @ gram @ one_hot
        assert interactions.loss(np.array(choice)) == pytest.approx(expected, rel=1e-12)


def test_errors_of_two_layers_may_cancel_or_add_up() -> None:
    """Equal errors count four times, opposite ones not at all."""
    factor = np.array([[[1.0, -1.0], [1.0, -1.0]]], dtype=np.float32)
    interactions = Interactions(factor)

    losses = [interactions.loss(np.array(choice)) for choice in ([0, 0], [0, 1], [1, 0], [1, 1])]

    assert losses == [2.0, 0.0, 0.0, 2.0]


def test_independent_layers_add_up() -> None:
    """Where every probe sees one layer only, the loss is the additive one."""
    factor = np.zeros((3, 3, 2), dtype=np.float32)
    factor[range(3), range(3)] = [[1, 2], [3, 4], [5, 6]]
    additive = 0.5 * np.array([[1, 4], [9, 16], [25, 36]]) / 3  # [L, B]
    interactions = Interactions(factor)

    for choice in product(range(2), repeat=3):
        expected = additive[range(3), choice].sum()
        assert interactions.loss(np.array(choice)) == pytest.approx(expected, rel=1e-12)


def test_many_layers_are_added_in_double_precision() -> None:
    """A thousand layers of 0.1 lose no digits beyond those of float32 itself."""
    factor = np.full((2, 1000, 1), 0.1, dtype=np.float32)

    loss = Interactions(factor).loss(np.zeros(1000, dtype=np.intp))

    assert loss == pytest.approx(0.5 * (1000 * float(np.float32(0.1))) ** 2, rel=1e-12)


def test_the_factor_is_copied_and_read_only() -> None:
    """Nobody changes the loss from outside."""
    factor = np.ones((1, 2, 2), dtype=np.float32)
    interactions = Interactions(factor)

    factor[:] = 5.0

    assert interactions.loss(np.array([0, 0])) == 2.0
    with pytest.raises(ValueError, match="read-only"):
        interactions.factor[0, 0, 0] = 1.0


@pytest.mark.parametrize("shape", [(2, 3), (0, 2, 2), (2,), (1, 1, 2, 2), ()])
def test_a_factor_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    """Three axes, and at least one probe."""
    with pytest.raises(InputError, match=r"interactions: expected a factor \[S, L, B\], got \("):
        Interactions(np.ones(shape, dtype=np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_factor_that_is_not_finite_is_refused(bad: float) -> None:
    """One such value would spoil every loss."""
    factor = np.ones((2, 2, 2), dtype=np.float32)
    factor[1, 0, 1] = bad

    with pytest.raises(InputError, match="the factor has a value that is not finite"):
        Interactions(factor)


def test_a_factor_too_large_for_float32_is_refused() -> None:
    """It would be infinite once kept as float32; that is an error and no warning."""
    with pytest.raises(InputError, match="not finite"):
        Interactions(np.full((1, 1, 1), 1e39))


@pytest.mark.parametrize("seed", range(3))
def test_what_is_lost_anyway_is_added_before_the_square(seed: int) -> None:
    """An offset is one more layer that has a single precision."""
    factor, offset = factor_of(seed), factor_of(seed + 10, layers=1, precisions=1).ravel()
    wider = np.concatenate([factor, np.tile(offset[:, None, None], (1, 1, 4))], axis=1)
    interactions = Interactions(factor, offset)

    for choice in product(range(4), repeat=3):
        expected = Interactions(wider).loss(np.array([*choice, 0]))
        assert interactions.loss(np.array(choice)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_loss_is_shrunk_towards_the_additive_one(share: float) -> None:
    """From the quadratic form alone to the additive loss alone, in proportion."""
    factor, offset = factor_of(0), factor_of(1, layers=1, precisions=1).ravel()
    choice = np.array([1, 3, 0])

    found = Interactions(factor, offset, share).loss(choice, additive=7.0)

    quadratic = Interactions(factor, offset).loss(choice)
    assert found == pytest.approx((1 - share) * quadratic + share * 7.0, rel=1e-12)


def test_an_offset_is_copied_and_read_only() -> None:
    """Nobody changes the loss from outside; without one it is 0."""
    offset = np.ones(1)
    interactions = Interactions(np.ones((1, 1, 1)), offset)

    offset[:] = 5.0

    kept = interactions.offset
    assert kept is not None
    assert interactions.loss(np.array([0])) == 2.0
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1.0
    assert Interactions(np.ones((1, 1, 1))).loss(np.array([0])) == 0.5


def test_an_offset_that_does_not_fit_is_refused() -> None:
    """One number per probe, and finite."""
    factor = np.ones((2, 2, 2))

    with pytest.raises(InputError, match=r"interactions: 2 probes, offset \(3,\)"):
        Interactions(factor, np.zeros(3))
    with pytest.raises(InputError, match="has a value that is not finite"):
        Interactions(factor, np.array([0.0, np.nan]))


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan")])
def test_a_shrinkage_that_is_no_share_is_refused(share: float) -> None:
    """Outside 0 to 1 the loss would no longer be bounded below."""
    with pytest.raises(InputError, match=f"a shrinkage is from 0 to 1, got {share}"):
        Interactions(np.ones((1, 1, 1)), shrinkage=share)

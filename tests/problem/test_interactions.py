"""The loss with interactions is the quadratic form of the factor's Gram matrix."""

from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import pytest

from mpq.errors import FileFormatError, InputError
from mpq.problem.interactions import Interactions


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

    for columns in product(range(4), repeat=3):
        one_hot = np.eye(4)[list(columns)].ravel()
        expected = 0.5 * one_hot @ gram @ one_hot
        assert interactions.together(np.array(columns)) == pytest.approx(expected, rel=1e-12)


def test_errors_of_two_layers_may_cancel_or_add_up() -> None:
    """Equal errors count four times, opposite ones not at all."""
    factor = np.array([[[1.0, -1.0], [1.0, -1.0]]], dtype=np.float32)
    interactions = Interactions(factor)

    losses = [
        interactions.together(np.array(columns)) for columns in ([0, 0], [0, 1], [1, 0], [1, 1])
    ]

    assert losses == [2.0, 0.0, 0.0, 2.0]


def test_independent_layers_add_up() -> None:
    """Where every probe sees one layer only, the loss is the additive one."""
    factor = np.zeros((3, 3, 2), dtype=np.float32)
    factor[range(3), range(3)] = [[1, 2], [3, 4], [5, 6]]
    additive = 0.5 * np.array([[1, 4], [9, 16], [25, 36]]) / 3  # [L, B]
    interactions = Interactions(factor)

    for columns in product(range(2), repeat=3):
        expected = additive[range(3), columns].sum()
        assert interactions.together(np.array(columns)) == pytest.approx(expected, rel=1e-12)


def test_many_layers_are_added_in_double_precision() -> None:
    """A thousand layers of 0.1 lose no digits beyond those of float32 itself."""
    factor = np.full((2, 1000, 1), 0.1, dtype=np.float32)

    loss = Interactions(factor).together(np.zeros(1000, dtype=np.intp))

    assert loss == pytest.approx(0.5 * (1000 * float(np.float32(0.1))) ** 2, rel=1e-12)


def test_the_factor_is_copied_and_read_only() -> None:
    """Nobody changes the loss from outside."""
    factor = np.ones((1, 2, 2), dtype=np.float32)
    interactions = Interactions(factor)

    factor[:] = 5.0

    assert interactions.together(np.array([0, 0])) == 2.0
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


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_what_pairs_lose_is_shrunk(share: float) -> None:
    """Products of different layers alone, in proportion."""
    factor = factor_of(0)

    for columns in product(range(4), repeat=3):
        rows = factor[:, range(3), columns]
        pairs = sum((rows[:, i] * rows[:, j]).mean() for i, j in combinations(range(3), 2))
        found = Interactions(factor, share).excess(np.array(columns))
        assert found == pytest.approx((1 - share) * pairs, rel=1e-5, abs=1e-6)


def test_alone_is_the_loss_of_one_layer() -> None:
    """Half the mean square of every cell."""
    factor = factor_of(0)

    np.testing.assert_allclose(
        Interactions(factor).alone, 0.5 * (factor**2).mean(axis=0), rtol=1e-6
    )


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan")])
def test_a_shrinkage_that_is_no_share_is_refused(share: float) -> None:
    """Outside 0 to 1 the loss would no longer be bounded below."""
    with pytest.raises(InputError, match=f"a shrinkage is from 0 to 1, got {share}"):
        Interactions(np.ones((1, 1, 1)), shrinkage=share)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [1, 2]}, "not a valid factor of interactions: at shape: "),
        ({"shrinkage": "0"}, "not a valid factor of interactions: at shrinkage: "),
        ({"more": 1}, "not a valid factor of interactions: at the top level: unknown key 'more'"),
        ({"factor_float32_base64": "AAAA*AAA"}, "not interactions: .* is no base64$"),
        (
            {"shape": [2, 2, 3]},
            r"not interactions: .* has 24 bytes; its shape \[2, 2, 3\] takes 48$",
        ),
    ],
)
def test_what_is_no_factor_is_refused(change: dict[str, object], message: str) -> None:
    """By the key that is wrong."""
    data = Interactions(np.ones((1, 2, 3)), 0.25).to_dict()

    assert Interactions.from_dict(data).to_dict() == data
    with pytest.raises(FileFormatError, match=f"^{message}"):
        Interactions.from_dict(data | change)

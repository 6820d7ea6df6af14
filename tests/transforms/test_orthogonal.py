"""Orthogonal matrices: Hadamard's, random ones, and those that keep a mean."""

import numpy as np
import pytest

from mpq.transforms.orthogonal import (
    around_mean,
    hadamard,
    nearest_orthogonal,
    random_orthogonal,
    randomized_hadamard,
)

SIZES = (1, 2, 4, 8, 12, 20, 28, 36, 44, 60, 64, 96, 576, 768)
"""Sylvester's, both kinds of Paley's, and products; SmolLM2 and small transformers have two."""


@pytest.mark.parametrize("size", SIZES)
def test_hadamard_matrices_are_orthogonal(size: int) -> None:
    """Integers, so that nothing is rounded."""
    found = hadamard(size)

    assert found is not None
    whole = found.astype(np.int64)
    assert np.array_equal(whole @ whole.T, size * np.eye(size, dtype=np.int64))
    assert set(np.unique(found).tolist()) <= {1, -1}
    assert (found[:, 0] == 1).all()


@pytest.mark.parametrize("size", [3, 6, 52, 49, 64, 36])
def test_any_size_has_a_rotation(size: int) -> None:
    """Known or not; the same seed gives the same, another one another."""
    first, second = (randomized_hadamard(size, np.random.default_rng(s)).matrix for s in (0, 1))

    assert np.abs(first @ first.T - np.eye(size)).max() < 1e-12
    assert np.array_equal(first, randomized_hadamard(size, np.random.default_rng(0)).matrix)
    assert not np.allclose(first, second)


@pytest.mark.parametrize("size", [3, 4, 16])
def test_a_mean_is_kept(size: int) -> None:
    """Of every vector, and its length as well."""
    draws = np.random.default_rng(0)
    found = around_mean(random_orthogonal(size - 1, draws))
    x = draws.standard_normal((5, size))

    turned = x @ found

    assert np.allclose(turned.mean(axis=1), x.mean(axis=1), atol=1e-12)
    assert np.allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(x, axis=1))
    assert not np.allclose(turned, x)


def test_the_nearest_of_an_orthogonal_matrix_is_itself() -> None:
    """Also where it was scaled."""
    matrix = random_orthogonal(7, np.random.default_rng(0))

    assert np.allclose(nearest_orthogonal(3 * matrix), matrix)

"""Orthogonal matrices that spread one large number over all: Hadamard matrices, and random ones."""

from typing import Any, Final, TypeAlias

import numpy as np

from mpq.network.reparametrization import Doubles, Orthogonal

Signs: TypeAlias = np.ndarray[Any, np.dtype[np.int8]]
_SMALLEST: Final[dict[int, list[list[int]]]] = {1: [[1]], 2: [[1, 1], [1, -1]]}


def hadamard(size: int) -> Signs | None:
    r"""``[n, n]`` of 1 and -1 with :math:`H H^\top = n I`; ``None``: none that we can build.

    A power of two (Sylvester 1867) times an order of Paley (1933): :math:`q + 1` for a prime
    :math:`q \equiv 3` mod 4, or :math:`2 (q + 1)` for :math:`q \equiv 1` mod 4. Powers of primes,
    which he has as well, are left out. The first column is 1.

    >>> hadamard(2).tolist()
    [[1, 1], [1, -1]]
    >>> [n for n in range(4, 101, 4) if hadamard(n) is None]
    [52, 92, 100]
    """
    if size in _SMALLEST:
        return np.array(_SMALLEST[size], dtype=np.int8)
    if size < 4 or size % 4:
        return None
    half = hadamard(size // 2)
    found = _paley(size) if half is None else np.kron(np.array(_SMALLEST[2], np.int8), half)
    # Rows may change their sign: the first entry of each is 1 then.
    return None if found is None else (found * found[:, :1]).astype(np.int8)


def randomized_hadamard(size: int, generator: np.random.Generator) -> Orthogonal:
    r"""``[n, n]`` of entries of one size, :math:`\mathrm{diag}(\pm 1) H \mathrm{diag}(\pm 1)`.

    The random signs keep channels that are large together from adding up in one (QuIP#, Tseng et
    al. 2024, arXiv:2402.04396). Where no Hadamard matrix is known here, a random orthogonal matrix.
    """
    found = hadamard(size)
    if found is None:
        return Orthogonal(random_orthogonal(size, generator))
    rows, columns = (generator.choice(np.array([1, -1], np.int8), size) for _ in range(2))
    return Orthogonal(rows[:, None] * found * columns)


def random_orthogonal(size: int, generator: np.random.Generator) -> Doubles:
    """``[n, n]``, uniformly drawn: the QR decomposition of a Gaussian matrix (Mezzadri 2007)."""
    orthogonal, triangular = np.linalg.qr(generator.standard_normal((size, size)))
    found: Doubles = orthogonal * np.sign(np.diag(triangular))
    return found


def around_mean(inner: Doubles) -> Doubles:
    r"""``[n, n]`` orthogonal :math:`R` that leaves the mean of a vector as it is: :math:`R 1 = 1`.

    .. math:: R = Q \, \mathrm{diag}(1, S) \, Q^\top, \quad Q e_1 = 1 / \sqrt n

    LayerNorm subtracts the mean, which other rotations would change. ``Q`` is a reflection.

    Args:
        inner: ``S``, ``[n - 1, n - 1]`` orthogonal.
    """
    mirror = reflection(len(inner) + 1)
    middle = np.eye(len(inner) + 1)
    middle[1:, 1:] = inner
    found: Doubles = mirror @ middle @ mirror
    return found


def reflection(size: int) -> Doubles:
    """``[n, n]`` Householder's reflection that takes the first unit vector to the constant one."""
    normal = np.full(size, 1 / np.sqrt(size))
    normal[0] -= 1
    found: Doubles = np.eye(size) - 2 * np.outer(normal, normal) / (normal @ normal)
    return found


def nearest_orthogonal(matrix: Doubles) -> Doubles:
    """``[n, n]``, the closest one in squared error: the polar decomposition's first factor."""
    left, _, right = np.linalg.svd(matrix)
    found: Doubles = left @ right
    return found


def _paley(size: int) -> Signs | None:
    """Paley's two constructions, for primes."""
    if _is_prime(size - 1) and size % 4 == 0:
        return _first_kind(size - 1)
    prime = size // 2 - 1
    return _second_kind(prime) if _is_prime(prime) and prime % 4 == 1 else None


def _first_kind(prime: int) -> Signs:
    skew = _bordered(prime, -1)
    return skew + np.eye(prime + 1, dtype=np.int8)


def _second_kind(prime: int) -> Signs:
    conference, one = _bordered(prime, 1), np.eye(prime + 1, dtype=np.int8)
    two, other = (np.array(x, dtype=np.int8) for x in ([[1, 1], [1, -1]], [[1, -1], [-1, -1]]))
    return (np.kron(conference, two) + np.kron(one, other)).astype(np.int8)


def _bordered(prime: int, sign: int) -> Signs:
    """``[q + 1, q + 1]`` Legendre symbols of differences, with a border of 1 and ``sign``."""
    squares = {i * i % prime for i in range(1, prime)}
    symbols = np.array([0, *(1 if i in squares else -1 for i in range(1, prime))], dtype=np.int8)
    index = np.arange(prime)
    found = np.zeros((prime + 1, prime + 1), dtype=np.int8)
    found[0, 1:], found[1:, 0] = 1, sign
    found[1:, 1:] = symbols[(index[:, None] - index) % prime]
    return found


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % i for i in range(2, int(number**0.5) + 1))

"""Rows of the factor: nothing is lost by replacing many by few, and noise is told from signal."""

from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from mpq.sensitivity.passes import factor_rows
from mpq.sensitivity.passes.factor_rows import FactorRows

Array = npt.NDArray[np.float64]


def normal(seed: int, *shape: int) -> Array:
    """Standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape)


def gathered(rows: Array, step: int = 50) -> FactorRows:
    """Rows ``[S, L, B]`` of one example each, added in parts."""
    found = FactorRows(*rows.shape[1:])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        found.add(rows[part], len(rows[part]))
    return found


def candidates(num_layers: int, num_precisions: int) -> list[npt.NDArray[np.intp]]:
    """Every column per layer."""
    every = product(range(num_precisions), repeat=num_layers)
    return [np.array(candidate, dtype=np.intp) for candidate in every]


@pytest.mark.parametrize("rows_kept", [0, 4096])
@pytest.mark.parametrize("num_rows", [1, 7, 400])
def test_loss_is_that_of_all_rows(
    monkeypatch: pytest.MonkeyPatch, rows_kept: int, num_rows: int
) -> None:
    """For every assignment, half the mean square of the sums, whether rows are replaced or not."""
    monkeypatch.setattr(factor_rows, "_MIN_KEPT", rows_kept)
    rows = normal(0, num_rows, 3, 2)

    interactions = gathered(rows).interactions(shrinkage=0.0)

    for candidate in candidates(3, 2):
        sums = rows[:, range(3), candidate].sum(axis=1)
        assert interactions.together(candidate) == pytest.approx(0.5 * (sums**2).mean(), rel=1e-5)


def test_no_more_rows_are_kept_than_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the number of examples."""
    monkeypatch.setattr(factor_rows, "_MIN_KEPT", 0)
    found = FactorRows(3, 2)

    held = []
    for seed in range(30):
        found.add(normal(seed, 10, 3, 2), 10)
        held.append(len(found.interactions().factor))

    assert max(held) <= 2 * 3 * 2


def test_rows_kept_in_any_case_are_bounded() -> None:
    """Few cells: the rows of 4,096 examples stay, those of more do not."""
    found, rows = FactorRows(2, 1), normal(0, 1000, 2, 1)

    held = []
    for _ in range(10):
        found.add(rows, 1000)
        held.append(len(found.interactions().factor))

    assert held[:4] == [1000, 2000, 3000, 4000]
    assert max(held) <= 4096


def test_replaced_rows_tell_the_same_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Table and amount of shrinkage do not depend on whether rows were replaced."""
    rows = normal(0, 500, 3, 2) + normal(1, 500, 1, 1)
    expected = gathered(rows)

    monkeypatch.setattr(factor_rows, "_MIN_KEPT", 0)
    found = gathered(rows)

    np.testing.assert_allclose(found.table, expected.table, rtol=1e-10)
    assert found.shrinkage() == pytest.approx(expected.shrinkage(), rel=1e-9)
    assert 0.001 < found.shrinkage() < 0.5


def test_table_is_half_the_mean_square() -> None:
    """Of each cell alone."""
    rows = normal(0, 40, 3, 2)

    found = gathered(rows).table

    np.testing.assert_allclose(found, 0.5 * (rows**2).mean(axis=0), rtol=1e-12)


def test_rows_of_several_examples_count_as_these() -> None:
    """A row that is the sum of four independent ones stands for four examples."""
    rows = normal(0, 40, 3, 2)
    expected = gathered(rows).table
    orthogonal = np.zeros((40, 3, 2))
    orthogonal[::4] = np.sqrt((rows.reshape(10, 4, 3, 2) ** 2).sum(axis=1))

    found = FactorRows(3, 2)
    found.add(orthogonal[::4], 40)

    interactions = found.interactions(shrinkage=0.0)
    np.testing.assert_allclose(found.table, expected, rtol=1e-12)
    np.testing.assert_allclose(
        0.5 * (interactions.factor.astype(np.float64) ** 2).mean(axis=0), expected, rtol=1e-5
    )


def test_scale_multiplies_table_and_loss_and_leaves_the_shrinkage() -> None:
    """The loss of every assignment is three times as large."""
    rows = normal(0, 40, 3, 2)
    plain, scaled = gathered(rows), gathered(rows)

    scaled.scale = 3.0

    np.testing.assert_allclose(scaled.table, 3 * plain.table)
    assert scaled.shrinkage() == plain.shrinkage()
    before, after = plain.interactions(0.0), scaled.interactions(0.0)
    for candidate in candidates(3, 2):
        assert after.together(candidate) == pytest.approx(3 * before.together(candidate), rel=1e-5)


def shrinkage_by_hand(rows: Array) -> float:
    """Variance of each product's mean over the sum of squares, pair by pair."""
    num_rows, num_layers, num_precisions = rows.shape
    cells = list(product(range(num_layers), range(num_precisions)))
    noise = power = 0.0
    for one, other in product(cells, cells):
        if one[0] != other[0]:
            products = rows[:, one[0], one[1]] * rows[:, other[0], other[1]]
            noise += products.var() / num_rows
            power += products.mean() ** 2
    return float(np.clip(noise / power, 0, 1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("signal", [0.3, 1.0])
def test_shrinkage_is_the_share_of_sampling_noise(seed: int, signal: float) -> None:
    """In closed form, against a loop over all pairs of cells of different layers."""
    rows = normal(seed, 60, 4, 3) + signal * normal(seed + 100, 60, 1, 1)

    found = gathered(rows, step=7).shrinkage()

    assert found == pytest.approx(shrinkage_by_hand(rows), rel=1e-9)


def test_pure_noise_is_shrunk_away() -> None:
    """Layers that have nothing to do with each other, but for what few examples pretend."""
    found = [gathered(normal(seed, 200, 10, 3)).shrinkage() for seed in range(5)]

    assert min(found) > 0.9


def test_a_strong_common_signal_is_kept() -> None:
    """All layers move the output the same way in every example: there is no noise."""
    signs = np.sign(normal(0, 200, 1, 1))
    rows = signs * (1 + np.arange(12.0).reshape(4, 3))

    assert gathered(rows).shrinkage() == pytest.approx(0, abs=1e-9)
    assert gathered(rows + 0.1 * normal(1, 200, 4, 3)).shrinkage() < 0.01


def test_more_examples_are_shrunk_less() -> None:
    """The noise falls with the number of examples, the signal does not."""
    rows = normal(0, 10_000, 5, 2) + 0.5 * normal(1, 10_000, 1, 1)

    found = [gathered(rows[:count]).shrinkage() for count in (30, 300, 3000)]

    assert found[0] > 3 * found[1] > 6 * found[2]


def test_shrunk_products_are_closer_to_the_truth() -> None:
    """On average over draws, closer than as estimated and than taken for 0."""
    mixing = np.eye(10) + 0.15 * normal(0, 10, 10)
    truth = mixing @ mixing.T
    apart = ~np.eye(10, dtype=np.bool_)

    errors = []
    for seed in range(1, 200):
        rows = normal(seed, 20, 10) @ mixing.T
        share = gathered(rows[:, :, None]).shrinkage()
        estimate = rows.T @ rows / len(rows)
        tried = (estimate, (1 - share) * estimate, 0 * estimate)
        errors.append([((gram - truth)[apart] ** 2).sum() for gram in tried])

    unshrunk, shrunk, diagonal = np.mean(errors, axis=0)
    assert shrunk < 0.8 * unshrunk
    assert shrunk < 0.95 * diagonal


@pytest.mark.parametrize("rows", [np.zeros((9, 3, 2)), normal(0, 9, 1, 2)], ids=["zero", "single"])
def test_where_no_layers_interact_nothing_is_kept(rows: Array) -> None:
    """Nothing to estimate: the additive loss, and no division by 0."""
    found = gathered(rows)

    assert found.shrinkage() == 1.0
    assert found.interactions().shrinkage == 1.0


def test_a_given_shrinkage_is_taken() -> None:
    """Instead of the closed form, which is the default."""
    found = gathered(normal(0, 40, 3, 2))

    assert found.interactions(0.25).shrinkage == 0.25
    assert found.interactions().shrinkage == found.shrinkage()

"""What whole networks teach about sums of layers, against other formulas for the same thing."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from mpq.errors import ModelError
from mpq.hardware_profiles.profiling.correction import (
    KERNEL_SPREAD,
    LAYER_SPREAD,
    NOISE,
    OVERHEAD_SPREAD,
    Correction,
    TimeErrors,
    predicted,
)
from mpq.hardware_profiles.profiling.interval import Interval
from mpq.hardware_profiles.profiling.layer_sums import LayerSums
from mpq.hardware_profiles.profiling.network_times import (
    NetworkTimes,
    random_assignments,
    uniform_assignments,
)
from mpq.problem.cost_table import CostTable, PairwiseCost
from mpq.quantization.precision import Precision

Array = npt.NDArray[np.float64]
PRECISIONS = tuple(map(Precision.parse, ("fp32", "w7a8", "w8a8", "w4g32a8d")))
KERNELS = ("float", "qdq", "nbits")


def sums(num_layers: int = 12, seed: int = 0) -> LayerSums:
    """Layers of very different sizes; integers are faster, conversions cost."""
    rng = np.random.default_rng(seed)
    floats = rng.lognormal(-7, 1, num_layers)
    alone = (
        floats[:, None] * np.array([1.0, 0.4, 0.42, 0.6]) * rng.uniform(0.9, 1.1, (num_layers, 4))
    )
    names = tuple(f"l{i}" for i in range(num_layers))
    conversion = np.array([[0, 1, 1, 1], [1, -1, -1, 0], [1, -1, -1, 0], [1, 0, 0, -1]]) * 2e-5
    pairs = tuple(PairwiseCost(a, b, conversion) for a, b in pairwise(names))
    kernel = np.tile([0, 1, 1, 2], (num_layers, 1))
    return LayerSums(names, PRECISIONS, alone, 0.01 * alone, 3e-4, pairs, kernel, KERNELS)


@dataclass(frozen=True, eq=False)
class Machine:
    """A machine that does not add up: its networks are no plain sum."""

    sums: LayerSums
    overhead_s: float
    factors: Array
    deviations: Array

    @classmethod
    def of(cls, found: LayerSums, seed: int = 1) -> "Machine":
        rng = np.random.default_rng(seed)
        deviations = rng.normal(0, 0.03, found.alone.shape)
        return cls(found, 9e-4, np.array([0.9, 1.25, 1.4, 0.7]), deviations)

    def seconds(self, candidates: npt.NDArray[np.intp]) -> Array:
        """Written out layer by layer."""
        found = []
        for row in candidates:
            time = self.overhead_s
            for layer, column in enumerate(row):
                factor = self.factors[self.sums.kernel[layer, column]]
                time += (factor + self.deviations[layer, column]) * self.sums.alone[layer, column]
            for layer in range(len(row) - 1):
                pair = self.sums.pairs[layer].values[row[layer], row[layer + 1]]
                time += self.factors[-1] * pair
            found.append(time)
        return np.array(found)

    def measure(self, count: int, seed: int, noise: float = 0.005) -> NetworkTimes:
        candidates = random_assignments(self.sums.table(), (), count, seed)
        seconds = self.seconds(candidates)
        seconds = seconds * np.random.default_rng(seed).normal(1, noise, count)
        intervals = (Interval(x, 0.99 * x, 1.01 * x, x, 0.0, 60) for x in seconds)
        return NetworkTimes(candidates, tuple(intervals))


def test_correction_predicts_networks_that_it_has_not_seen() -> None:
    """24 networks of 48 cells: a fifth of the plain sum's error at most."""
    machine = Machine.of(sums())
    measured = machine.measure(24, seed=2)
    unseen = random_assignments(machine.sums.table(), (), 200, 3)
    truth = machine.seconds(unseen)

    table = Correction.fit(machine.sums, measured).apply(machine.sums)

    plain = TimeErrors.of(predicted(machine.sums.table(), unseen), truth)
    found = TimeErrors.of(predicted(table, unseen), truth)
    assert found.median_absolute_error < 0.02 < 0.1 < plain.median_absolute_error
    assert found.spearman > max(0.99, plain.spearman)
    assert found.num_networks == 200


def test_correction_equals_the_dense_posterior_mean() -> None:
    """Precision form, ``(X' N X + P)^-1 (X' N y + P m)``, one feature per unknown."""
    machine = Machine.of(sums(5))
    known, measured = machine.sums, machine.measure(7, seed=4)
    seconds = measured.seconds
    columns = 1 + 3 + 1 + 5 * 4
    design = np.zeros((7, columns))
    for network, row in enumerate(measured.candidates):
        design[network, 0] = 1
        for layer, column in enumerate(row):
            design[network, 1 + known.kernel[layer, column]] += known.alone[layer, column]
            design[network, 5 + 4 * layer + column] = known.alone[layer, column]
        for layer in range(4):
            design[network, 4] += known.pairs[layer].values[row[layer], row[layer + 1]]
    mean = np.array([known.between_s, 1, 1, 1, 1, *[0.0] * 20])
    spread = [OVERHEAD_SPREAD * np.median(seconds), *[KERNEL_SPREAD] * 4, *[LAYER_SPREAD] * 20]
    prior = np.diag(np.array(spread) ** -2.0)
    half_widths = np.array([(x.high_s - x.low_s) / 2 for x in measured.intervals])
    weights = np.diag(np.maximum(NOISE * seconds, half_widths / 2) ** -2.0)
    expected = np.linalg.solve(
        design.T @ weights @ design + prior, design.T @ weights @ seconds + prior @ mean
    )

    found = Correction.fit(known, measured)

    assert found.overhead_s == pytest.approx(expected[0], rel=1e-6)
    np.testing.assert_allclose(found.factors, expected[1:5], rtol=1e-6)
    np.testing.assert_allclose(found.deviations.reshape(-1), expected[5:], atol=1e-9)


def test_no_network_leaves_the_plain_sum() -> None:
    """There is nothing to learn from."""
    known = sums()
    nothing = NetworkTimes(np.zeros((0, 12), dtype=np.intp), ())

    for correction in (Correction.none(known), Correction.fit(known, nothing)):
        table = correction.apply(known)
        np.testing.assert_array_equal(table.values, known.alone)
        assert table.constant == known.between_s
        assert all(
            np.array_equal(a.values, b.values)
            for a, b in zip(table.pairs, known.pairs, strict=True)
        )


def test_corrected_table_says_what_the_correction_means() -> None:
    """Its total is the formula, for any assignment, and no layer takes less than nothing."""
    machine = Machine.of(sums())
    exact = Correction(machine.overhead_s, machine.factors, machine.deviations)
    candidates = random_assignments(machine.sums.table(), (), 20, 5)

    table = exact.apply(machine.sums)
    negative = replace(exact, deviations=exact.deviations - 2).apply(machine.sums)

    np.testing.assert_allclose(predicted(table, candidates), machine.seconds(candidates))
    assert (table.unit, table.precisions) == ("seconds", PRECISIONS)
    assert (negative.values == 0).all()
    assert exact.to_dict(machine.sums) == pytest.approx(
        {
            "overhead_s": 9e-4, "factor_float": 0.9, "factor_qdq": 1.25, "factor_nbits": 1.4,
            "factor_pairs": 0.7,
        }
    )  # fmt: skip


def test_parts_of_an_assignment_are_the_sums_by_hand() -> None:
    """Three layers: float, int8, packed."""
    known = sums(3)
    candidate = np.array([0, 2, 3])

    cells, by_kernel = known.cells(candidate).reshape(3, 4), known.by_kernel(candidate)

    taken = known.alone[0, 0], known.alone[1, 2], known.alone[2, 3]
    assert by_kernel.tolist() == pytest.approx([*taken, 2e-5 + 0.0])
    assert (cells[0, 0], cells[1, 2], cells[2, 3]) == taken
    assert cells.sum() == pytest.approx(sum(taken))


def test_random_assignments_are_those_that_run() -> None:
    """Ties are alike, no cell is empty, every precision comes up, and a seed is a seed."""
    values = np.ones((6, 4))
    values[0, 3] = values[2, 1] = values[3, 2] = np.nan
    names = tuple(f"l{i}" for i in range(6))
    table = CostTable("latency", "seconds", names, PRECISIONS, values)
    ties = (("l0", "l2"), ("l3", "l5"))

    found = random_assignments(table, ties, 300, 0)

    assert np.isfinite(values[np.arange(6), found]).all()
    np.testing.assert_array_equal(found[:, 0], found[:, 2])
    np.testing.assert_array_equal(found[:, 3], found[:, 5])
    assert set(found[:, 0].tolist()) == {0, 2}
    assert set(found[:, 3].tolist()) == {0, 1, 3}
    assert set(found[:, 1].tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(found, random_assignments(table, ties, 300, 0))
    assert not np.array_equal(found, random_assignments(table, ties, 300, 1))
    np.testing.assert_array_equal(uniform_assignments(table), [[0] * 6])


def test_shares_of_random_assignments_differ() -> None:
    """Not all networks are half and half: those that are mostly of one precision come up too."""
    known = sums(40)

    found = random_assignments(known.table(), (), 100, 0)

    shares = (found == 0).mean(axis=1)
    assert (shares > 0.6).any()
    assert (shares < 0.05).any()


def test_tied_layers_that_have_no_precision_in_common_are_refused() -> None:
    """They would have to run apart."""
    values = np.array([[1.0, np.nan], [np.nan, 1.0]])
    table = CostTable("latency", "seconds", ("a", "b"), PRECISIONS[:2], values)

    with pytest.raises(ModelError, match="a and b .*no precision in common; add fp32"):
        random_assignments(table, (("a", "b"),), 3, 0)


def test_agreement_is_rank_correlation_and_errors() -> None:
    """By hand; where everything is predicted alike there are no ranks."""
    measured = np.array([1.0, 2.0, 3.0, 4.0])

    found = TimeErrors.of(np.array([1.1, 3.0, 2.7, 4.0]), measured)
    alike = TimeErrors.of(np.full(4, 2.0), measured)

    assert found.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))  # two neighbours change places
    assert found.median_absolute_error == pytest.approx(0.1)
    assert found.largest_absolute_error == pytest.approx(0.5)
    assert alike.spearman == 0

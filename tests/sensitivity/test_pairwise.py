"""Pairs of layers: quadratic networks where they are all there is, and brute force."""

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from mpq.errors import InputError
from mpq.network.examples import Calibration
from mpq.network.metric import KL, KLDivergence, OutputMetric, SquaredError
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.sensitivity import Estimation, Measured, Pairwise, Sensitivity
from mpq.sensitivity.pairwise import gram_factor
from mpq.workflows.evaluate import Reference

Array = npt.NDArray[np.float64]
CHOICES = tuple(map(Precision.parse, ("w2", "fp32", "w3a4d", "w5")))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Sum(nn.Module):
    """The sum of four layers, one of them called twice, so that errors simply add up."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(5, 3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = sum(part(x) for part in self.parts) + self.parts[1](x.flip(1))
        return out


class Setting:
    """A network, its data, and the divergence of whole assignments."""

    def __init__(self, model: nn.Module, data: list[Tensor], metric: OutputMetric = KL) -> None:
        self.data = Calibration(data)
        self.network = Network.of(model.eval(), self.data, metric=metric)
        self.quantizer = Quantizer(ActivationRanges({}))
        self.reference = Reference(self.network.module, self.data, metric)

    def estimate(
        self, estimator: Pairwise | Measured, candidates: tuple[Precision, ...] = CHOICES
    ) -> Sensitivity:
        """Of every layer at every choice."""
        return estimator.estimate(Estimation(self.network, self.data, self.quantizer, candidates))

    def measure(
        self, candidate: tuple[int, ...], candidates: tuple[Precision, ...] = CHOICES
    ) -> float:
        """Of an assignment."""
        names = [layer.name for layer in self.network.layers]
        precisions = {n: candidates[c] for n, c in zip(names, candidate, strict=True)}
        with quantized(self.network, precisions, self.quantizer):
            return self.reference.compare(self.network.module).divergence


@pytest.mark.parametrize("batched", [False, True])
def test_quadratic_network_is_priced_exactly(batched: bool) -> None:
    """Squared error of a sum: the loss of every assignment is its quadratic form."""
    x = torch.randn(9, 5)
    setting = Setting(Sum(), [x[:4], x[4:]], SquaredError())

    found = setting.estimate(Pairwise(batched=batched))

    assert found.interactions is not None
    for candidate in itertools.product(range(len(CHOICES)), repeat=4):
        expected = setting.measure(candidate)
        assert found.interactions.together(np.array(candidate)) == pytest.approx(expected, rel=1e-4)


def test_pairs_of_a_network_of_three_layers_are_those_of_brute_force() -> None:
    """Any two layers cost what both do together, as far as their changes are small."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    setting = Setting(model, [torch.randn(20, 5), torch.randn(7, 5)])
    candidates = tuple(map(Precision.parse, ("w4", "fp32", "w6", "w7a8d")))

    found = setting.estimate(Pairwise(), candidates)

    assert found.interactions is not None
    for candidate in itertools.product(range(4), repeat=3):
        if candidate.count(1) == 1:
            expected = setting.measure(candidate, candidates)
            assert found.interactions.together(np.array(candidate)) == pytest.approx(
                expected, rel=0.1
            )


def test_table_is_what_is_measured_of_one_layer() -> None:
    """And so is the interactions' loss of one layer, to the last digits of float32."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    setting = Setting(model, [torch.randn(20, 5)])
    expected = setting.estimate(Measured())

    found = setting.estimate(Pairwise())

    assert (found.table.name, found.table.unit) == ("pairwise", "nats")
    np.testing.assert_array_equal(found.table.values, expected.table.values)
    assert found.standard_error is not None
    assert expected.standard_error is not None
    np.testing.assert_array_equal(found.standard_error.values, expected.standard_error.values)
    assert found.interactions is not None
    for row, column in itertools.product(range(2), range(4)):
        candidate = np.ones(2, dtype=np.intp)
        candidate[row] = column
        loss = found.interactions.together(candidate)
        assert loss == pytest.approx(found.table.values[row, column], rel=1e-5)


def make_pairs(factor: Array) -> tuple[Array, Array]:
    """Divergences of one and of two layers where the loss is half a mean of squares."""
    alone = 0.5 * (factor**2).mean(axis=0)
    both = factor[:, :, :, None, None] + factor[:, None, None]
    return alone, 0.5 * (both**2).mean(axis=0)


@pytest.mark.parametrize("shape", [(40, 5, 3), (10, 8, 6), (1, 4, 2), (7, 1, 3)])
def test_factor_is_found_where_there_is_one(shape: tuple[int, int, int]) -> None:
    """Losses of all sizes; what two precisions of one layer have in common is not told."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=shape) * np.exp(2 * rng.normal(size=shape[1:]))
    factor[:, 0, 0] = 0

    found = gram_factor(*make_pairs(factor))

    layers = np.arange(shape[1])
    for _ in range(50):
        candidate = rng.integers(shape[2], size=shape[1])
        expected = 0.5 * np.mean(factor[:, layers, candidate].sum(axis=1) ** 2)
        loss = 0.5 * np.mean(found[:, layers, candidate].sum(axis=1) ** 2)
        assert loss == pytest.approx(expected, rel=1e-4)
    assert (found[:, 0, 0] == 0).all()


def test_impossible_correlation_is_clipped_to_a_possible_one() -> None:
    """Two layers that together cost less than none: they cancel as far as they can."""
    alone = np.array([[1.0], [4.0]])
    pairs = np.full((2, 1, 2, 1), -3.0)

    found = gram_factor(alone, pairs)

    assert 0.5 * (found**2).mean(axis=0) == pytest.approx(alone)
    assert 0.5 * (found.sum(axis=1) ** 2).mean() == pytest.approx(1.0)  # (2 - 1) ** 2


def test_network_that_loses_nothing_has_no_interactions() -> None:
    """Zeros, not a division by zero."""
    found = gram_factor(np.zeros((2, 3)), np.zeros((2, 3, 2, 3)))

    assert found.shape[1:] == (2, 3)
    assert (found == 0).all()


class StoppedError(Exception):
    """As if the process were killed."""


def test_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same interactions, bit by bit, without measuring the same pairs again."""
    x = torch.randn(12, 5)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    setting = Setting(model, [x[:6], x[6:]])
    expected = setting.estimate(Pairwise())
    kept = Pairwise(journal=str(tmp_path / "journal.jsonl"))
    computed: list[None] = []
    compute = KLDivergence.divergence
    # Single layers: 2 batches of 3 layers at 3 precisions; pairs: 2 batches of 3 pairs at 9.
    alone, all_pairs = 18, 54
    limit = alone + 40

    def stopping(self: KLDivergence, reference: Tensor, outputs: Tensor) -> Tensor:
        computed.append(None)
        if len(computed) > limit:
            raise StoppedError
        return compute(self, reference, outputs)

    monkeypatch.setattr(KLDivergence, "divergence", stopping)
    with pytest.raises(StoppedError):
        setting.estimate(kept)
    computed.clear()
    # 27 of the first batch; of the second, three rows of the middle layer, of three pairs each.
    limit = alone + all_pairs - 27 - 9

    found = setting.estimate(kept)

    assert found.interactions is not None
    assert expected.interactions is not None
    np.testing.assert_array_equal(found.interactions.factor, expected.interactions.factor)


def test_too_many_passes_are_refused_before_anything_runs() -> None:
    """The message says how many are needed."""
    setting = Setting(Sum(), [torch.randn(4, 5)])
    passes = 4 * 3 + 6 * 9

    with pytest.raises(
        InputError,
        match=rf"{passes} forward passes over the data \(4 layers, 3 precisions\), more than "
        rf"max_passes={passes - 1}; raise it",
    ):
        setting.estimate(Pairwise(max_passes=passes - 1))

    assert setting.estimate(Pairwise(max_passes=passes)).interactions is not None

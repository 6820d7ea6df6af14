"""Measured scores, one layer at a time, against a network quantized by hand in the test."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor, nn

from mpq.errors import DataError, InputError, UnknownNameError
from mpq.network.examples import Calibration
from mpq.network.metric import KL, KLDivergence, OutputMetric, SquaredError
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.sensitivity import Estimation, Measured, Sensitivity
from mpq.workflows.evaluate import Reference

Array = npt.NDArray[np.float64]
CHOICES = tuple(map(Precision.parse, ("w2", "w4a3sd", "fp32", "w6")))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def round_to(x: Tensor, bits: int) -> Tensor:
    """Symmetric rounding of every row with its own full range, in numpy."""
    rows = x.detach().double().numpy()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = np.maximum(rows.min(axis=-1) / low, rows.max(axis=-1) / high)[..., None]
    scale = np.where(scale > 0, scale, 1.0)  # a row of zeros
    return torch.from_numpy(np.clip(np.round(rows / scale), low, high) * scale).float()


def divergence(reference: Tensor, other: Tensor) -> float:
    """Mean over examples and positions, by scipy."""
    return float(divergences(reference, other).mean())


def divergences(reference: Tensor, other: Tensor) -> Array:
    """Of every example and position, by scipy."""
    p, q = (x.detach().double().numpy() for x in (reference, other))
    log_p, log_q = scipy.special.log_softmax(p, -1), scipy.special.log_softmax(q, -1)
    found: Array = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    return found


def make_model() -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def with_rounded(model: nn.Module, layer: str, bits: int) -> nn.Module:
    """A copy with one weight rounded in numpy."""
    changed = copy.deepcopy(model)
    linear = changed.get_submodule(layer)
    assert isinstance(linear, nn.Linear)
    linear.weight = nn.Parameter(round_to(linear.weight, bits))
    return changed


def estimate(
    estimator: Measured,
    model: nn.Module,
    data: Any,
    *candidates: Precision,
    metric: OutputMetric = KL,
) -> Sensitivity:
    """Without calibrated ranges, weights rounded over their full range."""
    network = Network.of(model, data, metric=metric)
    quantizer = Quantizer(ActivationRanges({}), weight_range="minmax")
    return estimator.estimate(
        Estimation(network, Calibration.of(data), quantizer, candidates or CHOICES)
    )


@pytest.mark.parametrize("shape", [(11, 5), (11, 4, 5)])
def test_loss_is_the_divergence_after_quantizing_one_layer(shape: tuple[int, ...]) -> None:
    """Weights and inputs rounded in numpy, uneven batches, vectors and sequences."""
    model, x = make_model(), torch.randn(shape)

    table = estimate(Measured(), model, [x[:3], x[3:4], x[4:]]).table

    assert (table.name, table.unit) == ("measured", "nats")
    for row, layer in enumerate(("0", "2")):
        for column, (bits, input_bits) in enumerate([(2, None), (4, 3)]):
            changed = with_rounded(model, layer, bits)
            if input_bits is not None:
                linear = changed.get_submodule(layer)
                linear.register_forward_pre_hook(lambda _, args: (round_to(args[0], 3),))
            expected = divergence(model(x), changed(x))
            assert table.values[row, column] == pytest.approx(expected, rel=1e-3)
    assert (table.values[:, 2] == 0).all()


def test_masked_positions_do_not_count() -> None:
    """Padding is left out of the mean over an example."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            out: Tensor = self.fc(x)
            return out

    model, x = Masked().eval(), torch.randn(6, 4, 5)
    mask = torch.tensor([1, 1, 1, 0]).expand(6, 4)

    found = estimate(Measured(), model, [{"x": x, "attention_mask": mask}], CHOICES[0])

    changed = nn.functional.linear(x[:, :3], round_to(model.fc.weight, 2), model.fc.bias)
    expected = divergence(model.fc(x[:, :3]), changed)
    assert found.table.values[0, 0] == pytest.approx(expected, rel=1e-4)


def test_one_layer_alone_is_what_is_measured() -> None:
    """A network of one layer: the table is the whole network's divergence at each precision."""
    model, x = nn.Linear(5, 3).eval(), torch.randn(8, 5)
    candidates = tuple(Precision.parse(f"w{bits}") for bits in range(2, 9))

    found = estimate(Measured(), model, [x], *candidates)

    expected = [
        divergence(model(x), nn.functional.linear(x, round_to(model.weight, bits), model.bias))
        for bits in range(2, 9)
    ]
    assert found.table.values[0] == pytest.approx(expected, rel=1e-3)


def test_numbers_are_those_of_whole_passes() -> None:
    """A residual CNN with calibrated ranges: as by running the whole network for every cell."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mid = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.stem(x))
            out: Tensor = self.head((self.relu(self.mid(x)) + x).mean(dim=(2, 3)))
            return out

    candidates = tuple(map(Precision.parse, ("w2", "w4a8", "w8a8")))
    data = Calibration([torch.randn(n, 1, 6, 6) for n in (4, 3)])
    network = Network.of(Small().eval(), data)
    quantizer = Quantizer(ActivationRanges.calibrate(network, data, candidates))

    found = Measured().estimate(Estimation(network, data, quantizer, candidates)).table.values

    reference = Reference(network.module, data)
    for row, layer in enumerate(network.layers):
        for column, candidate in enumerate(candidates):
            with quantized(network, {layer.name: candidate}, quantizer):
                expected = reference.compare(network.module).divergence
            assert found[row, column] == pytest.approx(expected, rel=1e-12)


def test_standard_error_is_that_of_the_mean_over_examples() -> None:
    """As scipy has it, over uneven batches."""
    model, x = make_model(), torch.randn(11, 5)

    found = estimate(Measured(), model, [x[:3], x[3:4], x[4:]]).standard_error

    assert found is not None
    assert (found.name, found.unit) == ("measured_standard_error", "nats")
    expected = scipy.stats.sem(divergences(model(x), with_rounded(model, "2", 2)(x)))
    assert found.values[1, 0] == pytest.approx(expected, rel=1e-4)
    assert (found.values[:, 2] == 0).all()


def test_one_example_has_no_standard_error() -> None:
    """Nothing is known of how examples differ."""
    found = estimate(Measured(), make_model(), [torch.randn(1, 5)])

    assert found.standard_error is None


def test_loss_is_the_rise_of_the_cross_entropy() -> None:
    """Mean over the targets of each example; those that are ignored, and examples without any, do
    not count; what falls costs 0."""
    model, x = make_model(), torch.randn(9, 4, 5)
    targets = torch.randint(0, 3, (9, 4))
    targets[0], targets[1, 2:] = -100, -100

    table = estimate(Measured("loss"), model, [(x[:4], targets[:4]), (x[4:], targets[4:])]).table

    def cross_entropy(network: nn.Module) -> float:
        logits = network(x).detach().double().numpy()
        chosen = np.take_along_axis(
            scipy.special.log_softmax(logits, -1), targets.clamp_min(0).numpy()[..., None], -1
        )[..., 0]
        counted = (targets != -100).numpy()
        return float(
            -np.mean([row[keep].mean() for row, keep in zip(chosen[1:], counted[1:], strict=True)])
        )

    assert table.unit == "nats"
    for row, layer in enumerate(("0", "2")):
        for column, bits in ((0, 2), (3, 6)):
            rise = cross_entropy(with_rounded(model, layer, bits)) - cross_entropy(model)
            expected = max(rise, 0.0)
            assert table.values[row, column] == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert (table.values == 0).sum() > 2  # fp32, and what falls


def test_noise_to_signal_ratio_is_the_sqnr() -> None:
    """``-10 log10`` of the table is the SQNR in dB, of examples with the same ratio."""
    model, x = nn.Linear(5, 3, bias=False).eval(), torch.randn(1, 5).repeat(4, 1)

    table = estimate(Measured("sqnr"), model, [x], CHOICES[0]).table

    signal = model(x).detach()
    noise = signal - x @ round_to(model.weight, 2).T
    decibels = 20 * np.log10(float(signal.norm() / noise.norm()))
    assert table.unit == "relative"
    assert -10 * np.log10(table.values[0, 0]) == pytest.approx(decibels, rel=1e-5)


def test_cosine_is_one_minus_that_of_the_outputs() -> None:
    """Averaged over positions and examples."""
    model, x = make_model(), torch.randn(6, 4, 5)

    table = estimate(Measured("cosine"), model, [x], CHOICES[0]).table

    before, after = model(x).detach(), with_rounded(model, "0", 2)(x).detach()
    expected = 1 - float(nn.functional.cosine_similarity(before, after, dim=-1).mean())
    assert table.unit == "relative"
    assert table.values[0, 0] == pytest.approx(expected, rel=1e-4)


class Sum(nn.Module):
    """The sum of two layers' single outputs: their errors simply add up."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 1), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.left(x) + self.right(x)
        return out


@pytest.mark.parametrize("batched", [False, True])
def test_interactions_are_exact_where_one_sign_is_all_there_is(batched: bool) -> None:
    """Half the squared error of a single number that is a sum: any probe gives it exactly."""
    model, x = Sum().eval(), torch.randn(9, 5)
    estimator = Measured(interactions=True, num_probes=2, shrinkage=0.0, batched=batched)

    found = estimate(estimator, model, [x[:4], x[4:]], metric=SquaredError())

    assert found.interactions is not None
    error = {
        name: (model(x) - with_rounded(model, name, 2)(x)).detach().double().numpy()[:, 0]
        for name in ("left", "right")
    }
    both = found.interactions.together(np.array([0, 0]))
    assert both == pytest.approx(0.5 * np.mean((error["left"] + error["right"]) ** 2), rel=1e-4)
    for row, name in enumerate(("left", "right")):
        alone = [2, 2]
        alone[row] = 0
        assert found.table.values[row, 0] == pytest.approx(
            0.5 * np.mean(error[name] ** 2), rel=1e-4
        )
        assert found.interactions.together(np.array(alone)) == pytest.approx(
            found.table.values[row, 0], rel=1e-5
        )
    assert found.interactions.together(np.array([2, 2])) == 0


def test_interactions_estimate_the_divergence_of_small_changes() -> None:
    """Many probes of a softmax: one layer alone costs what was measured, two what they do."""
    model, x = make_model(), torch.randn(40, 5)
    w6 = CHOICES[3]

    found = estimate(Measured(interactions=True, num_probes=300, shrinkage=0.0), model, [x], w6)

    assert found.interactions is not None
    changed = with_rounded(with_rounded(model, "0", 6), "2", 6)
    expected = divergence(model(x), changed(x))
    assert found.interactions.together(np.array([0, 0])) == pytest.approx(expected, rel=0.1)
    own = 0.5 * np.square(found.interactions.factor).mean(axis=0)
    np.testing.assert_allclose(own, found.table.values, rtol=0.1)


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples linear layers compute, call by call, from now on."""
    calls: list[int] = []
    forward = nn.Linear.forward

    def counted(self: nn.Linear, x: Tensor) -> Tensor:
        calls.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    return calls


def test_settled_cells_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten batches, those that are needed for a standard error of a third of the mean."""
    model, x = make_model(), torch.randn(200, 5)
    parts = x.split(20)
    data = Calibration(list(parts))
    calls = count_calls(monkeypatch)
    Network.of(model, data)  # both estimates below find the layers first
    finding = len(calls)
    calls.clear()

    found = estimate(Measured(tolerance=0.3), model, data, CHOICES[0])
    few = len(calls) - finding
    calls.clear()
    estimate(Measured(), model, data, CHOICES[0])

    assert few < (len(calls) - finding) / 2
    changed = {row: with_rounded(model, layer, 2) for row, layer in enumerate(("0", "2"))}
    for row in (0, 1):
        by_example = divergences(model(x), changed[row](x))
        for used in range(20, 201, 20):
            done = by_example[:used]
            if scipy.stats.sem(done) < 0.3 * done.mean():
                break
        assert found.table.values[row, 0] == pytest.approx(done.mean(), rel=1e-3)
        assert used < 200


def test_layer_that_a_batch_does_not_call_costs_nothing_there() -> None:
    """An expert that only the second batch is sent to: half of that batch's loss, and never
    settled by batches that say nothing of it."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.left(x) if bool(x[0, 0] > 0) else self.right(x)
            return out

    model, x = Experts().eval(), torch.randn(40, 5)
    x[0, 0], x[20, 0] = 1, -1
    candidate = CHOICES[0]
    network = Network.of(model, [x[:20], x[20:]])
    both = Network(network.module, network.layers, ())  # its rows are examples here
    quantizer = Quantizer(ActivationRanges({}), weight_range="minmax")

    found = Measured(tolerance=0.9).estimate(
        Estimation(both, Calibration([x[:20], x[20:]]), quantizer, (candidate,))
    )

    expected = (
        divergence(
            model(x[20:]),
            nn.functional.linear(x[20:], round_to(model.right.weight, 2), model.right.bias),
        )
        / 2
    )
    assert found.table.values[1, 0] == pytest.approx(expected, rel=1e-4)


def test_batched_passes_give_the_same_in_fewer_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three precisions at once, up to the last digits of the outputs."""
    model, x = make_model(), torch.randn(30, 5)
    data = Calibration([x[:20], x[20:]])
    expected = estimate(Measured(), model, data).table.values
    calls = count_calls(monkeypatch)

    found = estimate(Measured(batched=True), model, data).table.values

    np.testing.assert_allclose(found, expected, rtol=1e-3)
    # The second batch: a recording, three precisions of the second layer, three of the first one
    # with one call of the second.
    assert calls[-9:] == [30, 30, 10, 10, 10, 10, 10, 10, 30]


class StoppedError(Exception):
    """As if the process were killed."""


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The so many-th divergence is not computed any more."""
    computed: list[None] = []
    compute = KLDivergence.divergence

    def stopping(self: KLDivergence, reference: Tensor, outputs: Tensor) -> Tensor:
        computed.append(None)
        if len(computed) > count:
            raise StoppedError
        return compute(self, reference, outputs)

    monkeypatch.setattr(KLDivergence, "divergence", stopping)


@pytest.mark.parametrize("interactions", [False, True])
@pytest.mark.parametrize("is_torn", [False, True])
def test_killed_run_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interactions: bool, is_torn: bool
) -> None:
    """The same numbers, bit by bit, and no layer of a batch is measured twice."""
    model, x = make_model(), torch.randn(12, 5)
    data = Calibration(list(x.split(4)))
    path = tmp_path / "journal.jsonl"
    plain = Measured(interactions=interactions)
    kept = Measured(interactions=interactions, journal=str(path))
    expected = estimate(plain, model, data)
    with monkeypatch.context() as patch:
        stop_after(patch, 11)  # of 3 batches x 2 layers x 3 precisions
        with pytest.raises(StoppedError):
            estimate(kept, model, data)
    if is_torn:
        path.write_bytes(path.read_bytes()[:-7])

    with monkeypatch.context() as patch:
        stop_after(patch, 18 - 9 + 3 * is_torn)
        found = estimate(kept, model, data)
        again = estimate(kept, model, data)

    for result in (found, again):
        np.testing.assert_array_equal(result.table.values, expected.table.values)
        assert result.standard_error is not None
        assert expected.standard_error is not None
        np.testing.assert_array_equal(result.standard_error.values, expected.standard_error.values)
        if interactions:
            assert result.interactions is not None
            assert expected.interactions is not None
            np.testing.assert_array_equal(result.interactions.factor, expected.interactions.factor)


def test_finished_journal_needs_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is in the file."""
    model, data = make_model(), Calibration([torch.randn(4, 5)])
    estimator = Measured(journal=str(tmp_path / "journal.jsonl"))
    network = Network.of(model, data)
    quantizer = Quantizer(ActivationRanges({}))
    estimator.estimate(Estimation(network, data, quantizer, CHOICES))
    calls = count_calls(monkeypatch)

    estimator.estimate(Estimation(network, data, quantizer, CHOICES))

    assert calls == []


def other_weights(model: nn.Sequential, x: Tensor) -> tuple[nn.Module, list[Tensor], Measured]:
    with torch.no_grad():
        model.get_parameter("0.weight")[0, 0] += 1
    return model, [x], Measured()


def other_data(model: nn.Sequential, x: Tensor) -> tuple[nn.Module, list[Tensor], Measured]:
    return model, [x + 1], Measured()


def other_option(model: nn.Sequential, x: Tensor) -> tuple[nn.Module, list[Tensor], Measured]:
    return model, [x], Measured(tolerance=0.5)


@pytest.mark.parametrize(
    ("change", "what"),
    [(other_weights, "weights"), (other_data, "data"), (other_option, "tolerance")],
)
def test_journal_of_another_measurement_is_refused(
    tmp_path: Path,
    change: Callable[[nn.Sequential, Tensor], tuple[nn.Module, list[Tensor], Measured]],
    what: str,
) -> None:
    """The message says what is different, and what to do."""
    path, x = tmp_path / "journal.jsonl", torch.randn(4, 5)
    estimate(Measured(journal=str(path)), make_model(), [x])
    torch.manual_seed(0)
    model, data, estimator = change(make_model(), x)
    kept = Measured(tolerance=estimator.tolerance, journal=str(path))

    torch.manual_seed(0)
    with pytest.raises(InputError, match=rf"journal.jsonl is of another .*\(other .*{what}"):
        estimate(kept, model, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_probes": 0}, "num_probes >= 1; got 0"),
        ({"tolerance": -0.1}, "tolerance from 0 to 1; got -0.1"),
        ({"shrinkage": 2.0}, "shrinkage from 0 to 1; got 2.0"),
        ({"interactions": True, "score": "loss"}, "score=divergence and tolerance=0"),
        ({"interactions": True, "tolerance": 0.1}, "score=divergence and tolerance=0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    """With the rule and the value."""
    with pytest.raises(InputError, match=message):
        Measured(**options)


def test_unknown_score_is_refused() -> None:
    """With what there is."""
    with pytest.raises(UnknownNameError, match=r"no score 'snr'; did you mean 'sqnr'\?"):
        Measured("snr")


def test_loss_without_targets_is_refused() -> None:
    """The message says what to yield."""
    with pytest.raises(
        DataError,
        match=r"score=loss, unlike score=divergence, needs targets, .* yield \(inputs, targets\)",
    ):
        estimate(Measured("loss"), make_model(), [torch.randn(4, 5)])


def test_loss_of_ignored_targets_is_refused() -> None:
    """A mean over nothing is no number."""
    with pytest.raises(DataError, match="no target of the data is counted"):
        estimate(Measured("loss"), make_model(), [(torch.randn(4, 5), torch.full((4,), -100))])


def test_loss_of_a_regression_is_refused() -> None:
    """Cross entropy needs classes."""
    data = [(torch.randn(4, 5), torch.zeros(4, dtype=torch.long))]

    with pytest.raises(InputError, match="needs class probabilities, and the metric is 'squared"):
        estimate(Measured("loss"), make_model(), data, metric=SquaredError())
